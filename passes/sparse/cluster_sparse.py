"""Run only the blocks of sparse weights, after clustering their outputs so that blocks are dense."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import ops
from graphopt.cost.model import CostModel
from graphopt.cost.node_workload import workload_of
from graphopt.cost.workload import PRECISION, TILE, Timing, Workload
from graphopt.errors import GraphoptError
from graphopt.graph.edit import Editor, dims
from graphopt.ops import MINIMUM_OPSET
from graphopt.ops.sparse import block_density, pack_blocks, vector_density
from graphopt.passes.sparse.candidates import Candidate, blocks, dense
from graphopt.passes.sparse.cluster_channels import cluster_channels
from graphopt.passes.sparse.compress_columns import emit_columns
from graphopt.passes.sparse.linear import Linear, read_linear
from graphopt.pipeline.pass_base import Alternative, Choice, Pass, PassResult, Refusal, option
from graphopt.solve import clustering


@dataclass(frozen=True)
class ClusterSparse(Pass):
    """Replace products with sparse constant matrices by products with the blocks that hold weights other than zero.

        y = MatMul(x, w)  ->  y = BlockSparseMatMul(x, blocks, rows, starts)
                              y = Gather(BlockSparseMatMul(x, blocks, rows, starts), places)   clustered outputs
                              y = Concat(BlockSparseMatMul(x, ...), MatMul(x, w[:, n:]))       ranges of outputs
                              y = CompressedColumnsMatMul(x, codes, zeros, pointers, book)     few values, few rows

    Outputs that need the same inputs are brought together (`graphopt.solve.clustering`), so that a block holds few
    zeros: offline, where all that reads them can follow (`permute`), also those of convolutions, which `select-conv`
    looks at later; elsewhere a Gather puts them back. Each shape of block is estimated, the best few are measured
    beside the dense product, with the pattern that they have, and the fastest is taken. Nothing is rounded: results
    differ by the order of summation alone, but that a zero weight no longer turns an infinite input into NaN.
    """

    name: ClassVar[str] = "cluster-sparse"

    max_density: float = option(0.6, "denser matrices stay as they are")
    min_weights: int = option(4096, "smaller matrices stay as they are")
    measured: int = option(3, "shapes of blocks that are measured beside the dense product, the best by estimate")
    gain: float = option(1.05, "how many times faster than the dense product blocks have to be")
    costs: CostModel = field(default_factory=CostModel, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            GraphoptError: one is out of range.
        """
        if not 0 <= self.max_density <= 1:
            raise GraphoptError(f"max-density must be a share from 0 to 1, not {self.max_density:g}")
        if self.min_weights < 0:
            raise GraphoptError(f"min-weights must be a number from 0 on, not {self.min_weights}")
        if self.measured < 1:
            raise GraphoptError(f"measured must be a number from 1 on, not {self.measured}")
        if not 0 < self.gain < math.inf:
            raise GraphoptError(f"gain must be a number above 0, as 1.05, not {self.gain:g}")

    def on(self, costs: CostModel) -> ClusterSparse:
        """The same pass with the cost model `costs`."""
        return replace(self, costs=costs)

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; a sparse product gets a Choice or a Refusal."""
        if model.opset_imports.get("", 1) < MINIMUM_OPSET:
            return PassResult(model, False)
        editor = Editor(model, self.name)
        notes = cluster_channels(editor, self.costs.machine, self.max_density)
        layers: dict[Linear, list[Candidate]] = {}
        refusals = []
        for node in model.graph:
            linear = read_linear(node, self.costs.machine.floats)
            if linear is None or linear.weight.size < self.min_weights or linear.density > self.max_density:
                continue
            workload = workload_of(node)
            if workload is None:
                refusals.append(Refusal(str(node.name), "its shapes or attributes have no representation as a cost"))
                continue
            as_dense = dense(linear, workload, self.costs)
            offered = blocks(linear, as_dense, self.costs)
            layers[linear] = [as_dense, *offered[: self.measured]]
            notes.append(_densities(linear, offered))
        choices = []
        for (linear, _), offered in zip(layers.items(), self._timed(list(layers.values())), strict=True):
            best = min(offered, key=lambda each: each.seconds * (self.gain if each.sparse else 1.0))
            choices.append(_choice(linear, best, offered))
            if len(best.pieces) > 1:
                notes.append(_ranges(linear, best))
            if best.sparse:
                _emit(editor, linear, best)
        return PassResult(model, editor.modified, tuple(refusals), tuple(choices), tuple(notes))

    def _timed(self, layers: Sequence[Sequence[Candidate]]) -> list[list[Candidate]]:
        """The candidates of each layer with measured seconds, where those of all are known."""
        # Candidates of one piece compete. Pieces do not: none is slow because another one is shorter.
        groups = [[each.workloads[0] for each in layer if len(each.workloads) == 1] for layer in layers]
        groups += [[piece] for layer in layers for each in layer if len(each.workloads) > 1 for piece in each.workloads]
        known: dict[Workload, Timing | None] = {}
        for group, timed in zip(groups, self.costs.timings(groups), strict=True):
            known.update(zip(group, timed, strict=True))
        return [_with(layer, known) for layer in layers]


def _with(layer: Sequence[Candidate], known: Mapping[Workload, Timing | None]) -> list[Candidate]:
    timings = [[known[workload] for workload in each.workloads] for each in layer]
    if any(timing is None for each in timings for timing in each):
        return list(layer)
    return [
        each.at([timing for timing in timed if timing is not None]) for each, timed in zip(layer, timings, strict=True)
    ]


def _densities(linear: Linear, offered: Sequence[Candidate]) -> str:
    """How dense the weights are, and the vectors of outputs that hold one: as given, clustered, and at random."""
    rows = linear.weight.T
    widths = [each.shape[1] for each in offered if each.shape[0] == 1]
    if not widths:
        squares = dict.fromkeys(each.shape for each in offered if all(each.shape))
        listed = [f"{block_density(rows, *shape):.1%} of the blocks of {shape[1]}x{shape[0]}" for shape in squares]
        held = f"; {', '.join(listed)} hold one" if listed else ""
        return f"{linear.node.name}: {linear.density:.1%} of the weights are not zero{held}"
    width = max(widths)
    orders = [each.outputs for each in offered if each.shape == (1, width) and each.outputs is not None]
    clustered = f", {vector_density(rows[orders[0]], width):.1%} clustered" if orders else ""
    random = clustering.expected_of_random(linear.density, width)
    given = vector_density(rows, width)
    return (
        f"{linear.node.name}: {linear.density:.1%} of the weights are not zero; {given:.1%} of the vectors of {width} "
        f"outputs hold one{clustered}, {random:.1%} would at random"
    )


def _ranges(linear: Linear, best: Candidate) -> str:
    """How each range of outputs is computed."""
    kinds = (f"in blocks of {piece.width}x{piece.depth}" if piece.width else "dense" for piece in best.pieces)
    parts = (f"{piece.stop - piece.start} {kind}" for piece, kind in zip(best.pieces, kinds, strict=True))
    order = "" if best.outputs is None else ", in another order,"
    return f"{linear.node.name}: of the {linear.weight.shape[1]} outputs{order} {', then '.join(parts)}"


def _choice(linear: Linear, best: Candidate, offered: Sequence[Candidate]) -> Choice:
    others = tuple(
        Alternative(each.name, each.seconds, "slower" if each.seconds > best.seconds else "not faster by enough")
        for each in offered
        if each is not best
    )
    return Choice(
        str(linear.node.name), best.name, best.seconds, others, best.tile if best.sparse else "", best.measured
    )


def _emit(editor: Editor, linear: Linear, best: Candidate) -> None:
    """Replace the product by those of its pieces, side by side."""
    if best.columns:
        emit_columns(editor, linear)
        return
    node, n = linear.node, linear.weight.shape[1]
    result, x = node.outputs[0], linear.x
    shape = dims(result)
    assert shape is not None
    weight = best.weight(linear)
    axis = {"axis": len(shape) - 1}

    def insert(op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any], extent: int = n) -> ir.Value:
        name = f"{node.name}.{op_type.lower()}"
        return editor.insert(
            node,
            op_type,
            inputs,
            attributes,
            shape=(*shape[:-1], extent),
            dtype=result.dtype,
            name=name,
            output=name,
            origin=[node],
            domain=ops.DOMAIN if op_type == "BlockSparseMatMul" else "",
        )

    if best.inputs is not None:
        x = insert("Gather", [x, editor.constant(best.inputs, f"{node.name}.inputs")], axis, len(weight))
    values = []
    for piece in best.pieces:
        part, extent = weight[:, piece.start : piece.stop], piece.stop - piece.start
        if piece.width:
            packed = zip(pack_blocks(part, piece.depth, piece.width), ("blocks", "rows", "starts"), strict=True)
            operands = [editor.constant(array, f"{node.name}.{name}") for array, name in packed]
            values.append(insert("BlockSparseMatMul", [x, *operands], {"outputs": [extent]}, extent))
            _mark(values[-1], best)
        else:
            values.append(insert("MatMul", [x, editor.constant(part, f"{node.name}.dense")], {}, extent))
    value = values[0] if len(values) == 1 else insert("Concat", values, axis)
    if best.outputs is not None:
        value = insert("Gather", [value, editor.constant(np.argsort(best.outputs), f"{node.name}.places")], axis)
    if linear.bias is not None:
        value = insert("Add", [value, linear.bias], {})
    editor.swap(node, value)


def _mark(y: ir.Value, best: Candidate) -> None:
    """Write tile and units into the metadata of the producer of `y`, where its converter reads them."""
    node = y.producer()
    for key, said in ((TILE, best.tile), (PRECISION, best.workloads[0].units)):
        if said and node is not None:
            node.metadata_props[key] = said
