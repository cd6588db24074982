"""Read compressed columns instead of dense weights where products have few rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import ops
from graphopt.errors import GraphoptError
from graphopt.graph.edit import Editor, dims
from graphopt.ops import MINIMUM_OPSET
from graphopt.ops.compressed import MAX_VALUES, distinct_values, pack_columns
from graphopt.passes.sparse.linear import Linear, read_linear
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option


@dataclass(frozen=True)
class CompressColumns(Pass):
    """Replace products of few rows with sparse matrices of few values by products with compressed columns.

        y = MatMul(x, w)  ->  y = CompressedColumnsMatMul(x, codes, zeros, pointers, codebook)

    Such a product takes as long as reading its weights does: 12 bits for each that is not zero, instead of 32 for
    every one. Nothing is rounded: weights that have more values stay dense, and `graphopt compress --bits` shares them.
    """

    name: ClassVar[str] = "compress-columns"

    max_rows: int = option(4, "products with more rows stay dense: they read each weight once for all rows")
    min_sparsity: float = option(0.75, "matrices of which a smaller share is zero stay dense")
    min_weights: int = option(4096, "smaller matrices stay dense")

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            GraphoptError: one is out of range.
        """
        if self.max_rows < 1:
            raise GraphoptError(f"max-rows must be a number from 1 on, not {self.max_rows}")
        if not 0 <= self.min_sparsity <= 1:
            raise GraphoptError(f"min-sparsity must be a share from 0 to 1, not {self.min_sparsity:g}")
        if self.min_weights < 0:
            raise GraphoptError(f"min-weights must be a number from 0 on, not {self.min_weights}")

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; a product that is sparse but has too many values gets a Refusal."""
        if model.opset_imports.get("", 1) < MINIMUM_OPSET:
            return PassResult(model, False)
        editor = Editor(model, self.name)
        refusals, notes = [], []
        for node in list(model.graph):
            linear = read_linear(node, ("float32",))
            if linear is None or linear.rows > self.max_rows or linear.weight.size < self.min_weights:
                continue
            if linear.density > 1 - self.min_sparsity:
                continue
            reason = obstacle(linear)
            if reason is not None:
                refusals.append(Refusal(str(node.name), reason))
                continue
            notes.append(emit_columns(editor, linear))
        return PassResult(model, editor.modified, tuple(refusals), (), tuple(notes))


def obstacle(linear: Linear) -> str | None:
    """Why the weights have no compressed columns, as the end of a sentence about them; None if they have."""
    if linear.weight.dtype.name != "float32":
        return "its weights are not float32"
    weights = linear.weight[linear.weight != 0]
    if not np.isfinite(weights).all():
        return "it has weights that are not finite"
    if distinct_values(weights) is None:
        return f"its weights have more than {MAX_VALUES} values; share them with graphopt compress --bits"
    return None


def emit_columns(editor: Editor, linear: Linear) -> str:
    """Replace the product; returns a sentence on the bytes of its weights."""
    node, result = linear.node, linear.node.outputs[0]
    packed: tuple[NDArray[Any], ...] = pack_columns(linear.weight)
    names = ("codes", "zeros", "pointers", "codebook")
    operands = [editor.constant(array, f"{node.name}.{each}") for array, each in zip(packed, names, strict=True)]
    shape, name = dims(result), f"{node.name}.compressed"
    value = editor.insert(
        node,
        "CompressedColumnsMatMul",
        [linear.x, *operands],
        {"outputs": [linear.weight.shape[1]]},
        shape=shape,
        dtype=result.dtype,
        name=name,
        output=name,
        origin=[node],
        domain=ops.DOMAIN,
    )
    if linear.bias is not None:
        added = f"{node.name}.add"
        value = editor.insert(
            node, "Add", [value, linear.bias], shape=shape, dtype=result.dtype, name=added, output=added, origin=[node]
        )
    before, after = linear.weight.nbytes, sum(array.nbytes for array in packed)
    text = f"{node.name}: {linear.density:.1%} of the weights are not zero; they take {after} bytes instead of {before}"
    editor.swap(node, value)
    return text
