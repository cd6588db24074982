"""The recurrence of an LSTM or GRU backwards through time, as one kernel.

In step s, at time t = T - 1 - s, a block of units takes dh = dY[t] + dG[t + 1] R, then computes its dG[t], elementwise.
So a step needs one barrier, as forward: each product reads the dG of all units, and what follows needs its own alone.
R[G * H, H] is packed as [UB, G * H, U]: a block of U hidden units reads one contiguous stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.kernels.recurrent import sums, threads
from graphopt.targets.cpu.kernels.recurrent.cell_gradient import CellGradient
from graphopt.targets.cpu.kernels.recurrent.rnn import GATES, MIN_SHARED
from graphopt.targets.cpu.machine import CpuMachine


@dataclass(frozen=True, slots=True)
class Plan:
    """The partition of the work: blocks of `vectors` times `lanes` hidden units, `rows` of the batch at once.

    With `shared` steps the threads divide the blocks of each step; otherwise each takes rows through all steps.
    """

    cell: str
    steps: int
    batch: int
    hidden: int
    dtype: str
    lanes: int
    vectors: int
    rows: int
    shared: bool

    @property
    def depth(self) -> int:
        """Products of a sum: the gates of all units."""
        return GATES[self.cell] * self.hidden

    @property
    def units(self) -> int:
        """Hidden units in a block."""
        return self.lanes * self.vectors

    @property
    def blocks(self) -> int:
        """Blocks of hidden units; the last one is zero padded."""
        return -(-self.hidden // self.units)


def plan(cell: str, shape: tuple[int, int, int], machine: CpuMachine, dtype: str) -> Plan:
    """Partition the work of `shape` (steps, batch, hidden units) for `machine`.

    Threads that take rows apart need no barriers, where R stays in the second-level cache of each. The width of a
    block is the one whose multiply-adds, or loads, of a step are fewest for the busiest thread.
    """
    steps, batch, hidden = shape
    lanes, weights = machine.lanes(dtype), GATES[cell] * hidden * hidden
    resident = weights * ITEM_BYTES[dtype] <= machine.l2_bytes // 2 and batch >= machine.cores
    shared = not resident and machine.cores > 1 and hidden > lanes and weights * batch >= MIN_SHARED
    together = -(-batch // machine.cores) if resident else batch

    def rows_of(vectors: int) -> int:
        held = min(together, max(1, (machine.level.registers - vectors - 1) // vectors))
        return -(-together // -(-together // held))  # the same number of tiles, evenly filled

    def cost(vectors: int) -> tuple[float, int]:
        rows = rows_of(vectors)
        blocks = -(-hidden // (vectors * lanes))
        busiest = -(-blocks // machine.cores) if shared else blocks
        return busiest * -(-together // rows) * max(rows * vectors, rows + vectors), vectors

    vectors = min(range(1, 5), key=cost)
    return Plan(cell, steps, batch, hidden, dtype, lanes, vectors, rows_of(vectors), shared)


def pack(r: te.Tensor, plan: Plan) -> te.Tensor:
    """R[G * H, H] as [UB, G * H, U]."""

    def element(block: Expr, k: Expr, u: Expr) -> Expr | te.TensorSlice:
        unit = block * plan.units + u
        if plan.hidden % plan.units == 0:
            return r[k, unit]
        return tirx.if_then_else(unit < plan.hidden, r[k, unit], const(0, plan.dtype))

    return te.compute((plan.blocks, plan.depth, plan.units), element, name="pack")


def compute(plan: Plan, packed: te.Tensor, operands: Mapping[str, te.Tensor]) -> list[te.Tensor]:
    """The gradients of all steps.

    Args:
        plan: The partition of the work.
        packed: R by `pack`.
        operands: dY[T, N, H], gates[T, N, G * H], and by name: for an LSTM C[T, N, H], c0, dh_last and dc_last[N, H];
            for a GRU U and Y[T, N, H], h0 and dh_last[N, H].

    Returns:
        dG[T, N, G * H]; for an LSTM dh0, dc0[N, H]; for a GRU dU[T, N, H], dh0; then workspace of the kernel.
    """
    line, state = (plan.steps, plan.batch, plan.hidden), (plan.batch, plan.hidden)
    shapes: dict[str, tuple[int, ...]] = {"dG": (plan.steps, plan.batch, plan.depth)}
    shapes |= {"dh0": state, "dc0": state} if plan.cell == "LSTM" else {"dU": line, "dh0": state}
    shapes["carried"] = (plan.batch, plan.blocks * plan.units)

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        given = dict(zip(operands, ins[1:], strict=True))
        return _Template(plan, ins[0], given | dict(zip(shapes, outs, strict=True))).emit()

    inputs = [packed, *operands.values()]
    return list(te.extern([*shapes.values()], inputs, body, dtype=[plan.dtype] * len(shapes), name="recurrence"))


class _Template:
    """Emits the loops. Step T of T + 1 adds only the products, which are dh0 then."""

    def __init__(self, plan: Plan, packed: tirx.Buffer, buffers: Mapping[str, tirx.Buffer]) -> None:
        self.plan, self.packed, self.buffers = plan, packed, buffers

    def emit(self) -> tirx.Stmt:
        """The kernel: load the last gradients of the states, go through all steps."""
        plan = self.plan
        parts = [self._start("carried", "dh_last")]
        if plan.cell == "LSTM":
            parts.append(self._start("dc0", "dc_last"))
        parts.append(self._shared_steps() if plan.shared else self._separate_steps())
        return tirx.SeqStmt(parts)

    def _start(self, name: str, source: str) -> tirx.Stmt:
        """Copy [N, H] into `name`, whose rows may be wider."""
        target, given, hidden = self.buffers[name], self.buffers[source], self.plan.hidden
        with IRBuilder() as builder:
            with T.grid(*(int(extent) for extent in target.shape)) as (row, u):
                value = tirx.Select(u < hidden, given[row, tirx.min(u, hidden - 1)], const(0, self.plan.dtype))
                T.buffer_store(target, value, [row, u])
            return builder.get()

    def _separate_steps(self) -> tirx.Stmt:
        """Every thread takes rows of the batch through all steps, without barriers."""
        plan = self.plan

        def stream(task: Expr) -> None:
            with T.serial(0, plan.steps + 1) as step, T.serial(0, plan.blocks) as j:
                block = T.bind(tirx.Select(step % 2 == 0, j, plan.blocks - 1 - j))
                threads.of_tile(plan.batch, plan.rows, task, partial(self._tile, step, block))

        return threads.apart(-(-plan.batch // plan.rows), stream)

    def _shared_steps(self) -> tirx.Stmt:
        """The blocks of each step are divided among the threads, with a barrier after it."""
        plan = self.plan

        def block_of(_: int, step: Expr, task: Expr) -> None:
            block = T.bind(task)
            threads.over_tiles(plan.batch, plan.rows, partial(self._tile, step, block))

        return threads.together(plan.steps + 1, plan.blocks, 1, block_of)

    def _tile(self, step: Expr, block: Expr, row: Expr, rows: int) -> None:
        """dh of a block of units for `rows` rows from `row` on, and what follows from it."""
        plan, first = self.plan, block * self.plan.units

        def start(i: int, vector: int, lane: Expr) -> Expr:
            return self.buffers["carried"][row + i, first + vector * plan.lanes + lane]

        totals = sums.of_products(rows, plan.vectors, plan.lanes, plan.dtype, start, self._runs(step, block, row))
        # The sums stay in registers if their indices are constants; a copy lets the code of a cell be one, in a loop.
        kept = T.alloc_buffer((rows * plan.units,), plan.dtype, scope="local")
        for place in range(0, rows * plan.units, plan.lanes):
            with T.vectorized(0, plan.lanes) as lane:
                T.buffer_store(kept, totals[place + lane], [place + lane])
        with T.serial(0, rows) as i, T.serial(0, plan.vectors) as vector:
            unit = vector * plan.lanes
            cell = CellGradient(
                self.buffers,
                plan.hidden,
                plan.lanes,
                plan.dtype,
                t=plan.steps - 1 - step,
                row=row + i,
                unit=first + unit,
                totals=kept,
                place=i * plan.units + unit,
                ragged=plan.hidden % plan.units != 0,
            )
            with T.If(step < plan.steps):
                with T.Then():
                    cell.lstm() if plan.cell == "LSTM" else cell.gru()
                with T.Else():
                    cell.last()

    def _runs(self, step: Expr, block: Expr, row: Expr) -> list[sums.Run]:
        """dG of the step before times R; of a GRU's third gate the recurrent side has another gradient, dU."""
        depth, hidden = self.plan.depth, self.plan.hidden
        parts = [("dG", 0, depth)] if self.plan.cell == "LSTM" else [("dG", 0, 2 * hidden), ("dU", 2 * hidden, hidden)]

        def run(name: str, first: int, extent: int) -> sums.Run:
            source = self.buffers[name]
            return sums.Run(
                extent,
                lambda i, k: source[self.plan.steps - step, row + i, k],
                lambda k, vector, lane: self.packed[block, first + k, vector * self.plan.lanes + lane],
                step > 0,
            )

        return [run(*part) for part in parts]
