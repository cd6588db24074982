"""Run only the blocks of sparse weights, after clustering their outputs so that blocks are dense."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import ops
from graphopt.cost import roofline
from graphopt.cost.model import CostModel
from graphopt.cost.node_workload import workload_of
from graphopt.cost.workload import Operand, Timing, Workload
from graphopt.graph.edit import Editor, dims
from graphopt.ops import MINIMUM_OPSET
from graphopt.ops.sparse import pack_blocks, vector_density
from graphopt.passes.sparse.cluster_channels import cluster_channels
from graphopt.passes.sparse.linear import Linear, read_linear
from graphopt.pipeline.pass_base import Alternative, Choice, Pass, PassResult, Refusal, option
from graphopt.solve import clustering

WIDTHS = ((1, 1), (1, 4), (1, 8), (1, 16), (16, 16), (32, 32))
"""(inputs, outputs) of the blocks that are tried."""

FLOATS = ("float32", "float64")


@dataclass(frozen=True)
class ClusterSparse(Pass):
    """Replace products with sparse constant matrices by products with the blocks that hold weights other than zero.

        y = MatMul(x, w)  ->  y = BlockSparseMatMul(x, blocks, rows, starts)
                              y = Gather(BlockSparseMatMul(x, blocks, rows, starts), places)   clustered outputs

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

    def on(self, costs: CostModel) -> ClusterSparse:
        """The same pass with the cost model `costs`."""
        return replace(self, costs=costs)

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; a sparse product gets a Choice or a Refusal."""
        if model.opset_imports.get("", 1) < MINIMUM_OPSET:
            return PassResult(model, False)
        editor = Editor(model, self.name)
        notes = cluster_channels(editor, self.costs.machine, self.max_density)
        layers: dict[Linear, list[_Candidate]] = {}
        refusals = []
        for node in model.graph:
            linear = read_linear(node, FLOATS)
            if linear is None or linear.weight.size < self.min_weights or linear.density > self.max_density:
                continue
            dense = workload_of(node)
            if dense is None:
                refusals.append(Refusal(str(node.name), "its shapes or attributes have no representation as a cost"))
                continue
            offered = sorted(self._candidates(linear), key=lambda each: each.seconds)
            layers[linear] = [self._dense(linear, dense), *offered[: self.measured]]
            notes.append(_densities(linear, offered))
        timings = self.costs.timings([[each.workload for each in offered] for offered in layers.values()])
        choices = []
        for (linear, offered), timed in zip(layers.items(), timings, strict=True):
            if all(timing is not None for timing in timed):
                offered = [each.at(timing) for each, timing in zip(offered, timed, strict=True)]
            best = min(offered, key=lambda each: each.seconds * (self.gain if each.sparse else 1.0))
            choices.append(_choice(linear, best, offered))
            if best.sparse:
                _emit(editor, linear, best)
        return PassResult(model, editor.modified, tuple(refusals), tuple(choices), tuple(notes))

    def _dense(self, linear: Linear, workload: Workload) -> _Candidate:
        (k, n), machine = linear.weight.shape, self.costs.machine
        seconds = roofline.product(machine, linear.rows, n, k, linear.weight.itemsize)
        return _Candidate("dense", seconds, workload)

    def _candidates(self, linear: Linear) -> Iterator[_Candidate]:
        """Blocks of every shape, of outputs as they are and clustered where that saves some."""
        k, n = linear.weight.shape
        support = (linear.weight != 0).T
        for depth, width in WIDTHS:
            if k % depth or width > 2 * n:
                continue
            yield self._candidate(linear, depth, width, None)
            if width == 1 or depth > 1:
                continue
            problem = clustering.Problem(support, width)
            solution = clustering.cluster(problem)
            if solution.columns < 0.98 * clustering.columns_of(problem, tuple(range(n))):
                yield self._candidate(linear, depth, width, np.array(solution.order))

    def _candidate(self, linear: Linear, depth: int, width: int, order: NDArray[np.int64] | None) -> _Candidate:
        (k, n), machine = linear.weight.shape, self.costs.machine
        weight = linear.weight if order is None else linear.weight[:, order]
        blocks, *indices = pack_blocks(weight, depth, width)
        seconds = roofline.block_sparse(machine, linear.rows, n, k, blocks.shape, weight.itemsize)
        shape = dims(linear.x)
        assert shape is not None
        dtype = weight.dtype.name
        operands = Operand(shape, dtype), Operand(blocks.shape, dtype, True), *map(Operand.of_indices, indices)
        out = (*shape[:-1], n)
        workload = Workload("BlockSparseMatMul", operands, out, (("outputs", (n,)),), ops.DOMAIN)
        move = 0.0 if order is None else roofline.transform(machine, math.prod(out) * weight.itemsize)
        name = f"sparse {width}x{depth}{'' if order is None else ' clustered'}"
        return _Candidate(name, seconds + move, workload, depth, width, order, move)


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """One way to compute a product: blocks of `depth` x `width`, both 0 for the dense one.

    `move` are the seconds to put outputs back that were sorted by `order`. Blocks are packed again when they are
    needed: those of all candidates of a model would take several times its size.
    """

    name: str
    seconds: float
    workload: Workload
    depth: int = 0
    width: int = 0
    order: NDArray[np.int64] | None = None
    move: float = 0.0
    measured: bool = False

    @property
    def sparse(self) -> bool:
        """Whether it is not the dense product."""
        return self.width > 0

    def at(self, timing: Timing | None) -> _Candidate:
        """The candidate with measured seconds."""
        assert timing is not None
        return replace(self, seconds=timing.seconds + self.move, measured=True)


def _densities(linear: Linear, offered: Sequence[_Candidate]) -> str:
    """How dense the weights are, and the vectors of outputs that hold one: as given, clustered, and at random."""
    width = max(each.width for each in offered if each.depth == 1)
    rows = linear.weight.T
    orders = [each.order for each in offered if (each.width, each.depth) == (width, 1) and each.order is not None]
    clustered = f", {vector_density(rows[orders[0]], width):.1%} clustered" if orders else ""
    random = clustering.expected_of_random(linear.density, width)
    given = vector_density(rows, width)
    return (
        f"{linear.node.name}: {linear.density:.1%} of the weights are not zero; {given:.1%} of the vectors of {width} "
        f"outputs hold one{clustered}, {random:.1%} would at random"
    )


def _choice(linear: Linear, best: _Candidate, offered: Sequence[_Candidate]) -> Choice:
    others = tuple(
        Alternative(each.name, each.seconds, "slower" if each.seconds > best.seconds else "not faster by enough")
        for each in offered
        if each is not best
    )
    return Choice(str(linear.node.name), best.name, best.seconds, others, "", best.measured)


def _emit(editor: Editor, linear: Linear, best: _Candidate) -> None:
    """Replace the product by that of its blocks."""
    node, n = linear.node, linear.weight.shape[1]
    result = node.outputs[0]
    shape = dims(result)
    assert shape is not None
    weight = linear.weight if best.order is None else linear.weight[:, best.order]
    packed = zip(pack_blocks(weight, best.depth, best.width), ("blocks", "rows", "starts"), strict=True)
    operands = [editor.constant(array, f"{node.name}.{name}") for array, name in packed]

    def insert(op_type: str, inputs: Sequence[ir.Value], attributes: dict[str, Any], domain: str = "") -> ir.Value:
        name = f"{node.name}.{op_type.lower()}"
        return editor.insert(
            node,
            op_type,
            inputs,
            attributes,
            shape=shape,
            dtype=result.dtype,
            name=name,
            output=name,
            origin=[node],
            domain=domain,
        )

    value = insert("BlockSparseMatMul", [linear.x, *operands], {"outputs": [n]}, ops.DOMAIN)
    if best.order is not None:
        places = np.empty(n, np.int64)
        places[best.order] = np.arange(n)
        value = insert("Gather", [value, editor.constant(places, f"{node.name}.places")], {"axis": len(shape) - 1})
    if linear.bias is not None:
        value = insert("Add", [value, linear.bias], {})
    editor.swap(node, value)
