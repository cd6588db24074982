"""Recurrent layers: the partition of their work, and the packing of their weights.

The products of the inputs with W do not depend on the recurrence: one GEMM computes them for all steps. Its
columns are ordered [D, UB, G, U]: D directions, UB blocks of U hidden units, and the G gates of a block side by side.
R is packed the same way, R[D, UB, H, G, U], so that a block of units reads one contiguous stream and then has every
gate of its units in registers, where the cell is updated (`cell.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels import math as fast
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.machine import CpuMachine

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Gates in ONNX's order: input, output, forget, cell; update, reset, hidden; the one of a plain RNN."""

MIN_SHARED = 1 << 17
"""Multiply-adds in a step below which a barrier (about half a microsecond) costs what a second thread saves."""


def _relu(x: Expr) -> Expr:
    zero = const(0, str(x.ty.dtype))
    return tirx.Select(x < zero, zero, x)


ACTIVATIONS: dict[str, Callable[[Expr], Expr]] = {"Sigmoid": fast.sigmoid, "Tanh": fast.tanh, "Relu": _relu}


@dataclass(frozen=True, slots=True)
class Layer:
    """A recurrent layer and the partition of its work.

    `activations` are in ONNX's order (f, g, h), the same in both directions; `reset_after` is GRU's
    linear_before_reset. `vectors` times `lanes` hidden units make a block, `rows` of the batch are computed at once.
    With `shared` steps the threads divide the blocks of each step; otherwise each takes directions and rows of the
    batch through all steps by itself.
    """

    cell: str
    steps: int
    batch: int
    hidden: int
    directions: int
    reverse: bool
    dtype: str
    activations: tuple[str, ...]
    reset_after: bool
    lanes: int
    vectors: int
    rows: int
    shared: bool

    @property
    def gates(self) -> int:
        """Gates of the cell."""
        return GATES[self.cell]

    @property
    def units(self) -> int:
        """Hidden units in a block."""
        return self.lanes * self.vectors

    @property
    def blocks(self) -> int:
        """Blocks in a direction; the last one is zero padded."""
        return -(-self.hidden // self.units)

    @property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """(first gate, gates) of the products in a step: a GRU that resets h before its product has two, in turn."""
        return ((0, 2), (2, 1)) if self.cell == "GRU" and not self.reset_after else ((0, self.gates),)


def plan(
    cell: str,
    shape: tuple[int, int, int],
    directions: int,
    machine: CpuMachine,
    dtype: str,
    *,
    activations: tuple[str, ...],
    reverse: bool = False,
    reset_after: bool = False,
) -> Layer:
    """Partition the work of a layer of `shape` (steps, batch, hidden units) for `machine`."""
    steps, batch, hidden = shape
    lanes, registers, gates = machine.lanes(dtype), machine.level.registers, GATES[cell]
    weights = gates * hidden * hidden
    # Eight independent sums hide the latency of a multiply-add; where R streams from a farther cache, which takes
    # longer, narrow rows are read faster, and the cores share smaller blocks more evenly.
    sums = 8 if weights * ITEM_BYTES[dtype] <= 2 * machine.l1_bytes else 4
    vectors = max((v for v in (4, 2) if v * gates <= sums and batch == 1 and v * lanes <= hidden), default=1)
    held = gates * vectors
    rows = min(batch, max(1, (registers - held - 1) // held))
    rows = -(-batch // -(-batch // rows))  # the same number of tiles, evenly filled
    streams = directions * -(-batch // rows)
    resident = weights * ITEM_BYTES[dtype] <= machine.l2_bytes // 2 and streams >= machine.cores
    several = min(machine.cores, directions * -(-hidden // (vectors * lanes))) > 1
    shared = several and not resident and weights * batch * directions >= MIN_SHARED
    return Layer(
        cell, steps, batch, hidden, directions, reverse, dtype, activations, reset_after, lanes, vectors, rows, shared
    )


def _unit(
    layer: Layer, block: Expr, unit: Expr, value: Callable[[Expr], Expr | te.TensorSlice]
) -> Expr | te.TensorSlice:
    """`value` of a hidden unit, zero for those that pad the last block."""
    index = block * layer.units + unit
    if layer.hidden % layer.units == 0:
        return value(index)
    return tirx.if_then_else(index < layer.hidden, value(index), const(0, layer.dtype))


def pack_input(w: te.Tensor, layer: Layer) -> te.Tensor:
    """W[D, G * H, I] as rows [D, UB, G, U, I]."""
    h = layer.hidden
    return te.compute(
        (layer.directions, layer.blocks, layer.gates, layer.units, int(w.shape[2])),
        lambda d, b, g, u, i: _unit(layer, b, u, lambda at: w[d, g * h + at, i]),
        name="pack",
    )


def pack_recurrent(r: te.Tensor, layer: Layer, first: int, count: int) -> te.Tensor:
    """`count` gates of R[D, G * H, H] from `first` on, as [D, UB, H, count, U]."""
    h = layer.hidden
    return te.compute(
        (layer.directions, layer.blocks, h, count, layer.units),
        lambda d, b, k, g, u: _unit(layer, b, u, lambda at: r[d, (first + g) * h + at, k]),
        name="pack",
    )


def pack_vectors(v: te.Tensor, layer: Layer, first: int, count: int) -> te.Tensor:
    """`count` vectors of v[D, * H] (biases, peepholes) from `first` on, as [D, UB, count, U]."""
    h = layer.hidden
    return te.compute(
        (layer.directions, layer.blocks, count, layer.units),
        lambda d, b, g, u: _unit(layer, b, u, lambda at: v[d, (first + g) * h + at]),
        name="pack",
    )


def pack_bias(v: te.Tensor, layer: Layer) -> te.Tensor:
    """Wb + Rb of v[D, 2 * G * H] as [D, UB, G, U]; without the Rb that a GRU multiplies with its reset gate."""
    h, gates = layer.hidden, layer.gates

    def element(d: Expr, b: Expr, g: Expr, u: Expr) -> Expr:
        recurrent = _unit(layer, b, u, lambda at: v[d, (gates + g) * h + at])
        if layer.reset_after:
            recurrent = tirx.Select(g < 2, recurrent, const(0, layer.dtype))
        return _unit(layer, b, u, lambda at: v[d, g * h + at]) + recurrent

    return te.compute((layer.directions, layer.blocks, gates, layer.units), element, name="pack")
