"""How threads divide the time steps of a recurrence: the work of each step between barriers, or rows apart."""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx.script.builder.frame import AttrFrame

Tile = Callable[[Expr, int], None]
"""Emits the work of some rows of the batch: from which row on, and how many."""


def apart(tasks: int, emit: Callable[[Expr], None]) -> tirx.Stmt:
    """Tasks without barriers; `emit`(task) goes through all steps."""
    with IRBuilder() as builder:
        with (T.parallel if tasks > 1 else T.serial)(0, tasks) as task:
            emit(task)
        return builder.get()


def together(steps: int, tasks: int, phases: int, emit: Callable[[int, Expr, Expr], None]) -> tirx.Stmt:
    """In each phase of each step the threads divide the tasks, then meet; `emit`(phase, step, task).

    A thread gets the same tasks in every step, in every second step backwards: what the last step read last from
    the second-level cache is read first. The threads get consecutive tasks, `own` of them; going backwards through
    each thread's own is a permutation of all, right for any division.
    """
    count = tirx.call_packed("runtime.NumThreads")
    own = tirx.Var("own", "int32")
    with IRBuilder() as builder:
        with _pragma("parallel_launch_point"), T.serial(0, steps) as step:
            for phase in range(phases):
                with _pragma("parallel_barrier_when_finish"), T.parallel(0, tasks) as i:
                    start = i // own * own
                    end = tirx.min(start + own, tasks) - 1
                    emit(phase, step, tirx.Select(step % 2 == 0, i, start + end - i))
        return tirx.SeqStmt([tirx.Bind(own, (tasks + count - 1) // count), builder.get()])


def over_tiles(batch: int, rows: int, tile: Tile) -> None:
    """All rows, `rows` at once; the last tile may be smaller."""
    tiles, rest = divmod(batch, rows)
    with T.serial(0, tiles) as number:
        tile(number * rows, rows)
    if rest:
        tile(tirx.IntImm("int32", tiles * rows), rest)


def of_tile(batch: int, rows: int, number: Expr, tile: Tile) -> None:
    """The rows of tile `number`; the last tile may be smaller."""
    tiles, rest = divmod(batch, rows)
    if not rest:
        tile(number * rows, rows)
        return
    with T.If(number < tiles):
        with T.Then():
            tile(number * rows, rows)
        with T.Else():
            tile(tirx.IntImm("int32", tiles * rows), rest)


def _pragma(key: str) -> AttrFrame:
    """A pragma for TVM's code generator: where its thread pool starts, or where the threads meet at a barrier."""
    return T.attr(tirx.const(0), f"pragma_{key}", 1)
