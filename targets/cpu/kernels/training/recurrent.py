"""The gradient of a recurrent layer, from the last step to the first, as one kernel with hand-written loops.

    LSTM  dg = the gradients of i, o, f, u before their activation    dh = dg R             dc = dc f
    GRU   dg = those of z, r, u    dl = dg but r du for its last part  dh = dl R + dh z

A task takes rows of the batch through all steps by itself. R[G H, H] is read as it is: a row of it is multiplied with
one number of dg for each row of the batch, and the sums of a few vectors of dh stay in registers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels import math as fast
from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.cpu.machine import CpuMachine

Store = Callable[[tirx.Buffer, Expr, Sequence[Expr]], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """`rows` of the batch times `vectors` of `lanes` hidden units are summed in registers."""

    steps: int
    batch: int
    hidden: int
    dtype: str
    lanes: int
    vectors: int
    rows: int

    @staticmethod
    def of(shape: Sequence[int], dtype: str, machine: CpuMachine) -> Plan:
        """The plan for dY of `shape` [T, N, H]: tiles small enough that each core has one."""
        steps, batch, hidden = shape
        lanes = machine.lanes(dtype)
        vectors = 2 if hidden % (2 * lanes) == 0 else 1
        most = (machine.level.registers - vectors - 1) // vectors
        rows = max(1, min(most, -(-batch // machine.cores)))
        return Plan(steps, batch, hidden, dtype, lanes, vectors, -(-batch // -(-batch // rows)))


def lstm(tensors: Sequence[te.Tensor], plan: Plan) -> list[te.Tensor]:
    """(dG, dh0, dc0) of dY, gates, C, c0, R, dh_last and dc_last."""
    t, n, h = plan.steps, plan.batch, plan.hidden
    shapes = [(t, n, 4 * h), (n, h), (n, h)]
    return list(te.extern(shapes, list(tensors), lambda i, o: _Lstm(plan, i, o).emit(), dtype=[plan.dtype] * 3))


def gru(tensors: Sequence[te.Tensor], plan: Plan) -> list[te.Tensor]:
    """(dG, dU, dh0) of dY, gates, U, Y, h0, R and dh_last, and scratch."""
    t, n, h = plan.steps, plan.batch, plan.hidden
    shapes = [(t, n, 3 * h), (t, n, h), (n, h), (n, h)]
    return list(te.extern(shapes, list(tensors), lambda i, o: _Gru(plan, i, o).emit(), dtype=[plan.dtype] * 4))


class _Template:
    """The loops that both cells have."""

    def __init__(self, plan: Plan, ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> None:
        self.plan, self.ins, self.outs = plan, ins, outs

    def emit(self) -> tirx.Stmt:
        """Full tiles of the batch in parallel, then the rest."""
        plan = self.plan
        tiles, rest = divmod(plan.batch, plan.rows)
        with IRBuilder() as builder:
            with T.parallel(0, tiles) as task:
                self._stream(task * plan.rows, plan.rows)
            parts = [builder.get()]
        if rest:
            with IRBuilder() as builder:
                with T.serial(0, 1):
                    self._stream(tirx.IntImm("int32", tiles * plan.rows), rest)
                parts.append(builder.get())
        return tirx.SeqStmt(parts) if rest else parts[0]

    def _stream(self, first: Expr, rows: int) -> None:
        plan = self.plan
        self._elements(first, rows, self.begin)
        with T.serial(0, plan.steps) as turn:
            step = plan.steps - 1 - turn
            self._elements(first, rows, lambda row, unit: self.cell(step, row, unit))
            block = plan.lanes * plan.vectors
            if plan.hidden >= block:
                with T.serial(0, plan.hidden // block) as at:
                    self._product(step, first, rows, at * block, plan.vectors, plan.lanes)
            if plan.hidden % block:
                start = tirx.IntImm("int32", plan.hidden // block * block)
                self._product(step, first, rows, start, 1, plan.hidden % block)

    def _elements(self, first: Expr, rows: int, emit: Callable[[Expr, Expr], None]) -> None:
        """`emit` for every hidden unit of the rows, in vectors."""
        plan = self.plan
        with T.serial(0, rows) as i:
            if plan.hidden >= plan.lanes:
                with T.serial(0, plan.hidden // plan.lanes) as vector, T.vectorized(0, plan.lanes) as lane:
                    emit(first + i, vector * plan.lanes + lane)
            if plan.hidden % plan.lanes:
                with T.serial(0, plan.hidden % plan.lanes) as u:
                    emit(first + i, plan.hidden // plan.lanes * plan.lanes + u)

    def _product(self, step: Expr, first: Expr, rows: int, start: Expr, vectors: int, lanes: int) -> None:
        """dh of some units: the sum over all gates' units of their gradients times the rows of R."""
        sums = T.alloc_buffer((rows * vectors * lanes,), self.plan.dtype, scope="local")
        for place in range(0, rows * vectors * lanes, lanes):
            with T.vectorized(0, lanes) as lane:
                T.buffer_store(sums, const(0, self.plan.dtype), [place + lane])
        for part, (factors, offset, count) in enumerate(self.factors()):
            with T.serial(0, count) as k, T.unroll(0, rows) as i:
                factor = factors[step, first + i, offset + k]
                with T.unroll(0, vectors) as vector, T.vectorized(0, lanes) as lane:
                    place = (i * vectors + vector) * lanes + lane
                    weight = self.recurrent[self.parts[part] + k, start + vector * lanes + lane]
                    T.buffer_store(sums, sums[place] + factor * weight, [place])
        for i in range(rows):
            for vector in range(vectors):
                with T.vectorized(0, lanes) as lane:
                    unit = start + vector * lanes + lane
                    self.finish(first + i, unit, sums[(i * vectors + vector) * lanes + lane])

    recurrent: tirx.Buffer
    parts: tuple[int, ...]
    """The rows of R at which the factors begin."""

    def factors(self) -> list[tuple[tirx.Buffer, int, int]]:
        """(buffer [T, N, ..], offset, count) of the numbers that R's rows are multiplied with."""
        raise NotImplementedError

    def begin(self, row: Expr, unit: Expr) -> None:
        """Set the gradients of the last states."""
        raise NotImplementedError

    def cell(self, step: Expr, row: Expr, unit: Expr) -> None:
        """The gradients of one unit's gates, and of its state but for the product."""
        raise NotImplementedError

    def finish(self, row: Expr, unit: Expr, total: Expr) -> None:
        """Store dh, whose product with R is `total`."""
        raise NotImplementedError


class _Lstm(_Template):
    def __init__(self, plan: Plan, ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> None:
        super().__init__(plan, ins, outs)
        self.dy, self.gates, self.c, self.c0, self.recurrent, self.dh_last, self.dc_last = ins
        self.dg, self.dh, self.dc = outs
        self.parts = (0,)

    def factors(self) -> list[tuple[tirx.Buffer, int, int]]:
        return [(self.dg, 0, 4 * self.plan.hidden)]

    def begin(self, row: Expr, unit: Expr) -> None:
        T.buffer_store(self.dh, self.dh_last[row, unit], [row, unit])
        T.buffer_store(self.dc, self.dc_last[row, unit], [row, unit])

    def cell(self, step: Expr, row: Expr, unit: Expr) -> None:
        h, one = self.plan.hidden, const(1, self.plan.dtype)
        i, o, f, u = (self.gates[step, row, gate * h + unit] for gate in range(4))
        old = tirx.Select(step > 0, self.c[tirx.max(step - 1, 0), row, unit], self.c0[row, unit])
        dh = self.dh[row, unit] + self.dy[step, row, unit]
        # The place of the first gate holds tanh(c) until its gradient is stored there, which is last.
        T.buffer_store(self.dg, fast.tanh(self.c[step, row, unit]), [step, row, unit])
        squashed = self.dg[step, row, unit]
        T.buffer_store(self.dc, self.dc[row, unit] + dh * o * (one - squashed * squashed), [row, unit])
        dc = self.dc[row, unit]
        T.buffer_store(self.dg, dh * squashed * (o * (one - o)), [step, row, h + unit])
        T.buffer_store(self.dg, dc * old * (f * (one - f)), [step, row, 2 * h + unit])
        T.buffer_store(self.dg, dc * i * (one - u * u), [step, row, 3 * h + unit])
        T.buffer_store(self.dg, dc * u * (i * (one - i)), [step, row, unit])
        T.buffer_store(self.dc, dc * f, [row, unit])

    def finish(self, row: Expr, unit: Expr, total: Expr) -> None:
        T.buffer_store(self.dh, total, [row, unit])


class _Gru(_Template):
    def __init__(self, plan: Plan, ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> None:
        super().__init__(plan, ins, outs)
        self.dy, self.gates, self.linear, self.y, self.h0, self.recurrent, self.dh_last = ins
        self.dg, self.dl, self.dh, self.kept = outs
        self.parts = (0, 2 * plan.hidden)

    def factors(self) -> list[tuple[tirx.Buffer, int, int]]:
        return [(self.dg, 0, 2 * self.plan.hidden), (self.dl, 0, self.plan.hidden)]

    def begin(self, row: Expr, unit: Expr) -> None:
        T.buffer_store(self.dh, self.dh_last[row, unit], [row, unit])

    def cell(self, step: Expr, row: Expr, unit: Expr) -> None:
        h, one = self.plan.hidden, const(1, self.plan.dtype)
        z, r, u = (self.gates[step, row, gate * h + unit] for gate in range(3))
        old = tirx.Select(step > 0, self.y[tirx.max(step - 1, 0), row, unit], self.h0[row, unit])
        dh = self.dh[row, unit] + self.dy[step, row, unit]
        du = dh * (one - z) * (one - u * u)
        T.buffer_store(self.kept, dh * z, [row, unit])
        T.buffer_store(self.dg, dh * (old - u) * (z * (one - z)), [step, row, unit])
        T.buffer_store(self.dg, du * self.linear[step, row, unit] * (r * (one - r)), [step, row, h + unit])
        T.buffer_store(self.dg, du, [step, row, 2 * h + unit])
        T.buffer_store(self.dl, du * r, [step, row, unit])

    def finish(self, row: Expr, unit: Expr, total: Expr) -> None:
        T.buffer_store(self.dh, total + self.kept[row, unit], [row, unit])


def unpacked(kept: te.Tensor, hidden: int, first: int, count: int) -> te.Tensor:
    """Slots `first`, ... of kept[T, N, 1, UB, G + 1, U] as [T, N, count * H]."""
    t, n, _, _, _, units = dims(kept)

    def element(step: Expr, row: Expr, place: Expr) -> Expr:
        slot, unit = tirx.floordiv(place, hidden), tirx.floormod(place, hidden)
        return kept[step, row, 0, tirx.floordiv(unit, units), first + slot, tirx.floormod(unit, units)]

    return te.compute((t, n, count * hidden), element, name="unpacked")
