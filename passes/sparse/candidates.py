"""Ways to compute a product with a sparse matrix: dense, in blocks of every shape, in ranges of outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.cost import roofline
from graphopt.cost.model import CostModel
from graphopt.cost.roofline import Machine
from graphopt.cost.workload import PRECISION, Operand, Timing, Workload
from graphopt.graph.edit import dims
from graphopt.ops.compressed import pack_columns
from graphopt.ops.sparse import pack_blocks
from graphopt.passes.sparse.compress_columns import obstacle
from graphopt.passes.sparse.layers import grouped
from graphopt.passes.sparse.linear import Linear
from graphopt.solve import clustering, coclustering, heights

FEW_ROWS = 4
"""Rows up to which a kernel decodes compressed columns."""

CALL = 3e-6
"""Seconds to call one more kernel."""

RANGES_WORTH = 0.9
"""Outputs are cut into ranges if that is estimated to leave at most this share of the time of any other candidate."""

HOPELESS = 1.5
"""Both sides of square blocks are clustered in turn if the first turn takes at most so many times the best seconds."""

FEWER = 0.98
"""Another order is offered if it leaves at most this share of the blocks."""

Order = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Piece:
    """Outputs from `start` to before `stop`, in blocks of `depth` x `width`; both are 0 for a dense product."""

    start: int
    stop: int
    depth: int = 0
    width: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One way to compute a product: its pieces, and the workload of each.

    `outputs` and `inputs` are the orders in which blocks are formed, None where they are those given; `move` are the
    seconds to gather inputs, to put pieces side by side, and to put outputs back. Blocks are packed again when they are
    needed: those of all candidates of a model would take several times its size. `columns` are compressed columns,
    which have no pieces.
    """

    name: str
    seconds: float
    pieces: tuple[Piece, ...]
    workloads: tuple[Workload, ...]
    outputs: Order | None = None
    inputs: Order | None = None
    move: float = 0.0
    tile: str = ""
    columns: bool = False
    measured: bool = False

    @property
    def sparse(self) -> bool:
        """Whether it is not the dense product."""
        return self.columns or any(piece.width for piece in self.pieces)

    @property
    def shape(self) -> tuple[int, int]:
        """(inputs, outputs) of all blocks; zeros for dense products and for ranges of several shapes."""
        shapes = {(piece.depth, piece.width) for piece in self.pieces}
        return shapes.pop() if len(shapes) == 1 else (0, 0)

    def weight(self, linear: Linear) -> NDArray[Any]:
        """The matrix [K, N] in the orders of this candidate."""
        weight = linear.weight if self.outputs is None else linear.weight[:, self.outputs]
        return weight if self.inputs is None else weight[self.inputs]

    def at(self, timings: Sequence[Timing]) -> Candidate:
        """The candidate with measured seconds."""
        tile = timings[0].tile if len(timings) == 1 else ""
        return replace(self, seconds=sum(each.seconds for each in timings) + self.move, tile=tile, measured=True)


def dense(linear: Linear, workload: Workload, costs: CostModel) -> Candidate:
    """The dense product, whose node has the workload `workload`."""
    k, n = linear.weight.shape
    seconds = roofline.product(costs.machine, linear.rows, n, k, linear.weight.itemsize)
    return Candidate("dense", costs.estimated(workload, seconds, workload.units), (Piece(0, n),), (workload,))


def blocks(linear: Linear, as_dense: Candidate, costs: CostModel) -> list[Candidate]:
    """Blocks of every shape, outputs and inputs as they are and clustered where that saves some; the best first."""
    offered = _vectors(linear, as_dense.seconds, costs)
    best = min((as_dense, *offered), key=lambda each: each.seconds)
    squares = list(_squares(linear, offered, best.seconds, costs))
    limit = RANGES_WORTH * min(each.seconds for each in (as_dense, *offered, *squares))
    others = (*_ranges(linear, offered, limit, costs), *_columns(linear, costs))
    return sorted((*offered, *squares, *others), key=lambda each: each.seconds)


def _vectors(linear: Linear, seconds: float, costs: CostModel) -> list[Candidate]:
    """Blocks of one input.

    Narrower ones than the widest are clustered only if that brought outputs of the widest together, which outputs that
    share inputs do at any width, and if their bound takes less than `seconds` and than all so far.
    """
    n = linear.weight.shape[1]
    support = np.ascontiguousarray((linear.weight != 0).T)
    widths = [width for depth, width in costs.machine.sparse_blocks if depth == 1 and width <= 2 * n]
    offered = [_uniform(linear, costs, 1, width) for width in widths]
    saved, moved = 1.0, _move(linear, costs.machine, outputs=True)

    def may_win(problem: clustering.Problem) -> bool:
        least = _seconds(linear, costs.machine, (clustering.bound(problem), 1, problem.height))
        return least + moved < min(seconds, *(each.seconds for each in offered))

    for width in sorted(widths, reverse=True):
        problem = clustering.Problem(support, width)
        if width == 1 or (width < max(widths) and (saved > clustering.HOPELESS or not may_win(problem))):
            continue
        given, solution = clustering.as_given(problem), clustering.cluster(problem)
        saved = min(saved, solution.columns / max(1, given.columns))
        if solution.columns < FEWER * given.columns:
            offered.append(_uniform(linear, costs, 1, width, np.array(solution.order)))
    return offered


def _squares(linear: Linear, vectors: Sequence[Candidate], seconds: float, costs: CostModel) -> Iterator[Candidate]:
    """Square blocks. Both sides are clustered only if the best that could come of it takes less than `seconds`.

    And if clustering the inputs once, for outputs as the widest vectors have them, comes near.
    """
    k, n = linear.weight.shape
    support = np.ascontiguousarray((linear.weight != 0).T)
    machine = costs.machine
    held = (math.prod(each.workloads[0].operands[1].shape) for each in vectors if each.pieces[0].width > 1)
    values = min(held, default=int(support.sum()))
    widest = (
        max(vectors, key=lambda each: (each.pieces[0].width, each.outputs is not None)).outputs if vectors else None
    )
    for depth, width in machine.sparse_blocks:
        if depth == 1 or k % depth or width > 2 * n:
            continue
        given = _uniform(linear, costs, depth, width)
        yield given
        full = -(-values // (depth * width)), depth, width
        moved = _move(linear, machine, inputs=True)
        if _estimated(given, full, linear, costs) + moved >= seconds:
            continue
        first = grouped(support if widest is None else support[widest], width)
        tried = clustering.cluster(clustering.Problem(np.ascontiguousarray(first.T), depth)).columns
        if _estimated(given, (tried, depth, width), linear, costs) + moved >= HOPELESS * seconds:
            continue
        problem = coclustering.Problem(support, width, depth)
        solution = coclustering.cocluster(problem)
        if solution.blocks < FEWER * coclustering.as_given(problem).blocks:
            outputs, inputs = (np.array(order) for order in (solution.rows, solution.columns))
            yield _uniform(linear, costs, depth, width, outputs, inputs)


def _ranges(linear: Linear, vectors: Sequence[Candidate], limit: float, costs: CostModel) -> Iterator[Candidate]:
    """Ranges of outputs, each dense or in blocks of its own width, if they take at most `limit` seconds.

    Outputs are as they are, or in the order that the widest vectors have.
    """
    (k, n), machine = linear.weight.shape, costs.machine
    if not vectors or n < 2 * machine.vector_lanes or PRECISION in linear.node.metadata_props:
        return
    widths = [width for depth, width in machine.sparse_blocks if depth == 1 and width <= n]
    kinds = [heights.Kind(width, _seconds(linear, machine, (1, 1, width), moved=False)) for width in widths]
    whole = roofline.product(machine, linear.rows, n, k, linear.weight.itemsize)
    kinds.append(heights.Kind(machine.vector_lanes, whole * machine.vector_lanes / (n * k), dense=True))
    support = np.ascontiguousarray((linear.weight != 0).T)
    widest = max(vectors, key=lambda each: (each.pieces[0].width, each.outputs is not None)).outputs
    for order in (None,) if widest is None else (None, widest):
        rows = support if order is None else support[order]
        solution = heights.cut(heights.Problem(rows, tuple(kinds), CALL))
        move = _move(linear, machine, outputs=True) + (0.0 if order is None else _move(linear, machine, outputs=True))
        if len(solution.ranges) == 1 or solution.seconds + move > limit:
            continue
        pieces = tuple(
            Piece(each.start, each.stop, *((1, widths[each.kind]) if each.kind < len(widths) else (0, 0)))
            for each in solution.ranges
        )
        weight = linear.weight if order is None else linear.weight[:, order]
        workloads = tuple(_workload(linear, weight, piece) for piece in pieces)
        name = f"sparse {len(pieces)} ranges{'' if order is None else ' clustered'}"
        yield Candidate(name, solution.seconds + move, pieces, workloads, order, None, move)


def _columns(linear: Linear, costs: CostModel) -> Iterator[Candidate]:
    """Compressed columns, for few rows and few values: they read 12 bits for each weight."""
    shape = dims(linear.x)
    if shape is None or linear.rows > FEW_ROWS or obstacle(linear) is not None:
        return
    (k, n), dtype = linear.weight.shape, linear.weight.dtype.name
    codes, zeros, pointers, codebook = pack_columns(linear.weight)
    indices = [Operand.of_indices(array) for array in (codes, zeros, pointers)]
    workload = Workload(
        "CompressedColumnsMatMul",
        (Operand(shape, dtype), *indices, Operand(codebook.shape, dtype, True)),
        (*shape[:-1], n),
        (("outputs", (n,)),),
    )
    seconds = roofline.compressed_columns(costs.machine, linear.rows, n, k, len(codes))
    yield Candidate("sparse columns", costs.estimated(workload, seconds), (), (workload,), columns=True)


def _uniform(
    linear: Linear,
    costs: CostModel,
    depth: int,
    width: int,
    outputs: Order | None = None,
    inputs: Order | None = None,
) -> Candidate:
    """Blocks of one shape."""
    weight = linear.weight if outputs is None else linear.weight[:, outputs]
    weight = weight if inputs is None else weight[inputs]
    piece = Piece(0, weight.shape[1], depth, width)
    workload = _workload(linear, weight, piece)
    move = _move(linear, costs.machine, outputs=outputs is not None, inputs=inputs is not None)
    seconds = _seconds(linear, costs.machine, workload.operands[1].shape)
    seconds = costs.estimated(workload, seconds, workload.units) + move
    name = f"sparse {width}x{depth}{'' if outputs is None else ' clustered'}"
    return Candidate(name, seconds, (piece,), (workload,), outputs, inputs, move)


def _workload(linear: Linear, weight: NDArray[Any], piece: Piece) -> Workload:
    shape, dtype = dims(linear.x), weight.dtype.name
    assert shape is not None
    part = weight[:, piece.start : piece.stop]
    x, out = Operand(shape, dtype), (*shape[:-1], part.shape[1])
    if not piece.width:
        return Workload("MatMul", (x, Operand(part.shape, dtype, True)), out, domain="")
    packed, *indices = pack_blocks(part, piece.depth, piece.width)
    operands = x, Operand(packed.shape, dtype, True), *map(Operand.of_indices, indices)
    units = str(linear.node.metadata_props.get(PRECISION, ""))
    return Workload("BlockSparseMatMul", operands, out, (("outputs", (part.shape[1],)),), units=units)


def _estimated(given: Candidate, shape: tuple[int, int, int], linear: Linear, costs: CostModel) -> float:
    """Estimated seconds of the candidate with blocks [count, depth, width]."""
    (workload,) = given.workloads
    x, stored, *_ = workload.operands
    fewer = replace(workload, operands=(x, replace(stored, shape=shape)))
    return costs.estimated(fewer, _seconds(linear, costs.machine, shape), workload.units)


def _seconds(linear: Linear, machine: Machine, shape: tuple[int, ...], *, moved: bool = True) -> float:
    """Estimated seconds of blocks [count, depth, width]; of their arithmetic and weights alone if not `moved`."""
    k, n = linear.weight.shape if moved else (0, 0)
    count, depth, width = shape
    return roofline.block_sparse(machine, linear.rows, n, k, (count, depth, width), linear.weight.itemsize)


def _move(linear: Linear, machine: Machine, *, outputs: bool = False, inputs: bool = False) -> float:
    """Seconds to copy all outputs, all inputs or both."""
    k, n = linear.weight.shape
    values = linear.rows * (n * outputs + k * inputs)
    return roofline.transform(machine, values * linear.weight.itemsize)
