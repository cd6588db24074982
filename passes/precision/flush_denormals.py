"""Flush denormal weights to zero where they are too small to matter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import tensor_of
from graphopt.graph.edit import Editor, is_op
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal

SUMS = ("Add", "Conv", "ConvTranspose", "Gemm", "MatMul", "Mul", "Sub")
"""Operators that multiply by a constant or add it, elementwise or in sums of products."""

LEAST_RATIO = 2.0**-40
"""An element this much smaller than the largest of its tensor is far below the rounding (2^-24) of their sum."""


@dataclass(frozen=True)
class FlushDenormals(Pass):
    """Denormal numbers among the weights become zero.

        y = Conv(x, [0.7, 1e-40, -2e-39])   ->   y = Conv(x, [0.7, 0, 0])

    Weight decay leaves hundreds of thousands of them in some networks, and many processors take a hundred cycles for a
    product with one. A float32 or float64 constant is changed only if all its consumers are products and sums, and if
    its largest element is so large that a denormal is below its rounding: the effect is then below 2^-126 times an
    activation.
    """

    name: ClassVar[str] = "flush-denormals"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the initializers of the main graph."""
        editor = Editor(model, self.name)
        refusals: list[Refusal] = []
        flushed = tensors = 0
        for value in tuple(model.graph.initializers.values()):
            denormal = _denormal(value)
            if denormal is None or not value.uses():
                continue
            array, where = denormal
            if (reason := _obstacle(value, array)) is not None:
                refusals.append(Refusal(str(value.name), reason))
                continue
            changed = editor.constant(np.where(where, array.dtype.type(0), array), str(value.name))
            value.replace_all_uses_with(changed)
            model.graph.initializers.pop(str(value.name))
            editor.modified = True
            flushed, tensors = flushed + int(where.sum()), tensors + 1
        notes = (f"{flushed} denormal weights of {tensors} tensors are taken as zero",) if flushed else ()
        return PassResult(model, editor.modified, tuple(refusals), notes=notes)


def _denormal(value: ir.Value) -> tuple[NDArray[Any], NDArray[np.bool_]] | None:
    """(the constant, mask of its denormal elements); None if it has none."""
    tensor = tensor_of(value)
    if tensor is None or tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE) or not tensor.size:
        return None
    array = tensor.numpy()
    if not all(array.strides):  # a zero stride: a broadcast element, which is never materialized
        return None
    where = (np.abs(array) < np.finfo(array.dtype).tiny) & (array != 0)
    return (array, where) if where.any() else None


def _obstacle(value: ir.Value, array: NDArray[Any]) -> str | None:
    if value.is_graph_output():
        return "it is an output of the model"
    reader = next((node for node, _ in value.uses() if not is_op(node, *SUMS)), None)
    if reader is not None:
        return f"{reader.op_type} reads it, which may tell a denormal number from zero"
    finite = np.abs(array[np.isfinite(array)])
    if not finite.max(initial=0.0) * LEAST_RATIO >= np.finfo(array.dtype).tiny:
        return "its largest element is hardly larger than a denormal number"
    return None
