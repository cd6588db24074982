"""Train with sparse weights from the first step on: parameters become the groups that are not zero."""

from __future__ import annotations

import enum
import fnmatch
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph.constness import stored
from graphopt.graph.edit import Editor, dims, is_op
from graphopt.graph.state import GRADIENT, NEXT, Role, mark, role, states
from graphopt.passes.prune.granularity import Granularity
from graphopt.passes.prune.masks import Criterion, scores
from graphopt.passes.training.sparse.parameter import SPARSE, SparseParameter
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option


class Start(enum.StrEnum):
    """Which groups are kept at the start."""

    RANDOM = "random"
    MAGNITUDE = "magnitude"


@dataclass(frozen=True)
class SparseTraining(Pass):
    """Of the weights of products and convolutions a share trains, and only that share has gradient and optimizer state.

        y = MatMul(x, w)   ->   y = MatMul(x, Reshape(ScatterND(zeros, w.places, w.values)))

    It runs before `differentiate`: the gradient of ScatterND reads the gradients of `w.values` at `w.places`, so that
    momentum and sums of gradients are as small as the weights; the dense weight exists while a step needs it. Between
    steps `reallocate` moves groups to other places. Where kept groups are blocks of 16x1, training ends in weights that
    `cluster-sparse` finds. Biases, normalizations and small layers stay dense.
    """

    name: ClassVar[str] = "sparse-training"

    density: float = option(0.1, "share of the groups of a layer that are kept")
    granularity: str = option("element", "what is kept or left out together: element, block:16x1, kernel, row, ...")
    start: Start = option(Start.RANDOM, "which groups are kept at first: random, or those of largest magnitude")
    slack: float = option(0.0, "room for more groups in each layer, as a share, so that layers can exchange them")
    min_weights: int = option(1024, "layers with fewer weights stay dense")
    skip: str = option("", "parameters that stay dense: patterns of names, with + between them")
    seed: int = option(0, "of the random start")

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            GraphoptError: one is out of range.
        """
        if not 0 < self.density <= 1:
            raise GraphoptError(f"the density must be above 0 and at most 1, not {self.density:g}")
        if not 0 <= self.slack <= 10:
            raise GraphoptError(f"the slack must be a share from 0 to 10, not {self.slack:g}")
        if self.seed < 0:
            raise GraphoptError(f"the seed must be from 0 on, not {self.seed}")
        if Granularity.parse(self.granularity).kind == "n:m":
            raise GraphoptError(f"sparse-training keeps whole groups, which {self.granularity} has not; use block:HxW")

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph.

        Raises:
            ModelError: the model has gradients already.
        """
        parameters = [value for value in states(model.graph) if role(value) is Role.PARAMETER]
        if any(key in value.metadata_props for value in parameters for key in (GRADIENT, NEXT)):
            raise ModelError("the model has gradients already; run sparse-training before differentiate")
        editor = Editor(model, self.name)
        refusals, kept, whole = [], 0, 0
        for number, value in enumerate(parameters):
            if SPARSE in value.metadata_props or len(dims(value) or ()) < 2:
                continue
            found = self._geometry(value)
            if isinstance(found, str):
                refusals.append(Refusal(str(value.name), found))
                continue
            kept += self._replace(editor, value, found, np.random.default_rng([self.seed, number]))
            whole += math.prod(found.shape)
        note = f"{kept} of {whole} weights of products and convolutions train ({kept / max(whole, 1):.1%})"
        return PassResult(model, editor.modified, tuple(refusals), notes=(note,) if whole else ())

    def _geometry(self, value: ir.Value) -> SparseParameter | str:
        """How a parameter is split into groups, or why it stays dense, as a sentence."""
        name, shape, granularity = str(value.name), dims(value), Granularity.parse(self.granularity)
        axes = _axes(value)
        if shape is None or axes is None:
            return "it is no weight of a MatMul, Gemm or Conv alone"
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.skip.split("+")):
            return "it is to be skipped"
        if math.prod(shape) < self.min_weights:
            return f"it has fewer than {self.min_weights} weights"
        conv = len(shape) > 2
        if conv and shape[1] == 1:
            return "it is a depthwise convolution, which has few weights"
        if granularity.kind == "element":
            axes = tuple(range(len(shape)))  # as it is stored, so that nothing has to be transposed
        whole = SparseParameter(name, f"{name}.values", f"{name}.places", shape, axes, (1, 1, 1))
        if misfit := granularity.misfit(whole.extents, conv=conv):
            return f"it {misfit}"
        return SparseParameter(name, whole.values, whole.places, shape, axes, granularity.group(whole.extents))

    def _replace(self, editor: Editor, value: ir.Value, sparse: SparseParameter, rng: np.random.Generator) -> int:
        """Put the groups that are kept in place of the parameter; how many weights they have."""
        tensor = stored(value)
        assert tensor is not None
        blocks = sparse.split(tensor.numpy())
        count = max(1, round(self.density * sparse.groups))
        slots = min(sparse.groups, math.ceil(count * (1 + self.slack)))
        places = np.full(slots, sparse.groups, np.int32)
        places[:count] = np.sort(self._chosen(blocks, count, rng))
        values = np.zeros((slots, sparse.size), blocks.dtype)
        values[:count] = blocks[places[:count]]
        parameter, where = editor.constant(values, sparse.values), editor.constant(places, sparse.places)
        mark(parameter, Role.PARAMETER)
        mark(where, Role.COUNTER)  # a step leaves it as it is
        named = SparseParameter(
            sparse.name, str(parameter.name), str(where.name), sparse.shape, sparse.axes, sparse.group
        )
        parameter.metadata_props[SPARSE] = named.to_json()
        readers = {node for node, _ in value.uses()}
        before = next(node for node in editor.graph if node in readers)
        editor.replace(value, _dense(editor, before, parameter, where, sparse, spare=slots > count))
        editor.graph.initializers.pop(str(value.name))
        return count * sparse.size

    def _chosen(self, blocks: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[Any]:
        if self.start is Start.RANDOM:
            return rng.choice(len(blocks), count, replace=False)
        worth = scores(blocks[:, :, None], (1, blocks.shape[1], 1), Criterion.MAGNITUDE).reshape(-1)
        return np.argpartition(-worth, count - 1)[:count]


def _axes(value: ir.Value) -> tuple[int, ...] | None:
    """The axes of a weight as [outputs, inputs, taps...], if all that reads it agrees."""
    rank = len(dims(value) or ())
    found: set[tuple[int, ...]] = set()
    for node, index in value.uses():
        if is_op(node, "Transpose") and rank == 2 and not node.outputs[0].is_graph_output():
            inner = _axes(node.outputs[0])
            found.add(inner[::-1] if inner else ())
        elif index != 1 or not is_op(node, "MatMul", "Gemm", "Conv") or (rank > 2) != is_op(node, "Conv"):
            found.add(())
        elif is_op(node, "MatMul") or (is_op(node, "Gemm") and not node.attributes.get_int("transB", 0)):
            found.add((1, 0))
        else:
            found.add(tuple(range(rank)))
        if node.graph is not value.graph:
            found.add(())  # a branch reads it
    return next(iter(found)) or None if len(found) == 1 and not value.is_graph_output() else None


def _dense(
    editor: Editor, before: ir.Node, values: ir.Value, places: ir.Value, sparse: SparseParameter, *, spare: bool
) -> ir.Value:
    """The dense weight, computed before the node that reads it first; with `spare` some slots may be empty.

    Its zeros depend on the places, so that they are no constant as large as the weight.
    """
    name = sparse.name

    def emit(
        op_type: str, inputs: list[ir.Value], shape: tuple[int, ...], dtype: ir.DataType | None, **attributes: Any
    ) -> ir.Value:
        label = f"{name}.{op_type.lower()}"
        return editor.insert(before, op_type, inputs, attributes, shape=shape, dtype=dtype, name=label, output=label)

    def ints(numbers: tuple[int, ...]) -> ir.Value:
        return editor.constant(np.array(numbers, np.int64), f"{name}.shape")

    slots, rows = dims(values), (sparse.groups + spare, sparse.size)
    assert slots is not None
    dtype, wide = values.dtype, ir.DataType.INT64
    assert dtype is not None
    indices = emit("Cast", [places], (slots[0],), wide, to=wide.value)
    column = emit("Reshape", [indices, ints((-1, 1))], (slots[0], 1), wide)
    first = emit("Slice", [column, ints((0,)), ints((1,))], (1, 1), wide)
    nothing = emit("Cast", [emit("Sub", [first, first], (1, 1), wide)], (1, 1), dtype, to=dtype.value)
    zeros = emit("Expand", [nothing, ints(rows)], rows, dtype)
    blocks = emit("ScatterND", [zeros, column, values], rows, dtype)
    if spare:
        blocks = emit("Slice", [blocks, ints((0,)), ints((sparse.groups,))], (sparse.groups, sparse.size), dtype)
    split = (*sparse.grid, *sparse.group)
    moved = emit("Reshape", [blocks, ints(split)], split, dtype)
    order = sparse.order
    if [axis for axis in order if split[axis] > 1] != sorted(axis for axis in order if split[axis] > 1):
        moved = emit("Transpose", [moved], tuple(split[axis] for axis in order), dtype, perm=list(order))
    return emit("Reshape", [moved, ints(sparse.shape)], sparse.shape, dtype)
