"""Software prefetch of the next weights of a kernel while it computes with the current ones.

A kernel reads a panel of weights once for each of its register tiles. Only the first pass reads memory, faster than its
bandwidth, and the core stalls; then memory idles while the other tiles are computed. So each pass over a panel
prefetches a part of the next one:

    for step:                       for step:
        tile += a * panel    ->         prefetch line (pass * steps + step) * share of the next panel, and its next ones
                                        tile += a * panel

A kernel of one pass is bound by memory anyway, and the hardware prefetcher fetches the lines ahead of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV, SBlockRV

MARK = "graphopt.prefetch"
"""Loop annotation: each iteration fetches a share."""

LINE = 64
"""Bytes of a cache line, on every processor with the instructions that we generate code for."""

SECOND_LEVEL = 2
"""LLVM's degree of locality for lines that are kept out of the first-level cache."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Weights that lie one panel after another, each gone through `passes` times in a row.

    One pass is the body of the `outer` outermost loops; `place` computes (panel, pass) from their variables.
    """

    buffer: tirx.Buffer
    panel: int
    """Elements of a panel."""
    passes: int
    outer: int
    place: Callable[..., tuple[Expr, Expr]]


def mark(sch: s_tir.Schedule, loop: LoopRV) -> None:
    """Mark `loop`, which holds the unrolled steps of a register tile, as the loop that prefetches."""
    sch.annotate(loop, MARK, 1)


def weights_of(sch: s_tir.Schedule, block: SBlockRV) -> tirx.Buffer:
    """The buffer of the second factor of a sum of products, which is the last that `block` reads."""
    return sch.get(block).reads[-1].source


def insert(sch: s_tir.Schedule, stream: Stream) -> tirx.PrimFunc:
    """The scheduled function with prefetches at the start of its marked loop, without the mark; none for one pass."""
    function = sch.mod["main"]
    fetches = _fetches if stream.passes > 1 else lambda _stream, _loops: []
    return function.with_body(_rewritten(function.body, [], lambda loops: fetches(stream, loops)))


def _fetches(stream: Stream, loops: Sequence[tirx.For]) -> list[tirx.Stmt]:
    number, turn = stream.place(*(loop.loop_var for loop in loops[: stream.outer]))
    step: Expr | int = 0
    for loop in loops[stream.outer :]:
        step = step * loop.extent + loop.loop_var
    steps = math.prod(int(loop.extent) for loop in loops[stream.outer :])
    elements = LINE * 8 // tvm.DataType(str(stream.buffer.dtype)).bits
    lines = -(-stream.panel // elements)
    share = -(-lines // (steps * stream.passes))
    first = (turn * steps + step) * share
    start = (number + 1) * stream.panel + first * elements
    zeros = [tirx.const(0, "int64")] * (len(stream.buffer.shape) - 1)
    prefetches = [
        tirx.Evaluate(
            tirx.call_llvm_intrin(
                "void",
                "llvm.prefetch",
                tirx.address_of(stream.buffer[(*zeros, start + line * elements)]),  # past the end nothing is fetched
                tirx.const(0, "int32"),
                tirx.const(SECOND_LEVEL, "int32"),
                tirx.const(1, "int32"),
            )
        )
        for line in range(share)
    ]
    if steps * stream.passes * share == lines:
        return prefetches
    return [tirx.IfThenElse(first < lines, tirx.SeqStmt(prefetches) if share > 1 else prefetches[0], None)]


def _rewritten(
    statement: tirx.Stmt, loops: list[tirx.For], fetches: Callable[[list[tirx.For]], list[tirx.Stmt]]
) -> tirx.Stmt:
    if isinstance(statement, tirx.SeqStmt):
        return tirx.SeqStmt([_rewritten(part, loops, fetches) for part in statement])
    if isinstance(statement, s_tir.SBlockRealize):
        block = statement.block
        body = _rewritten(block.body, loops, fetches)
        if body.same_as(block.body):
            return statement
        parts = (block.iter_vars, block.reads, block.writes, block.name_hint, body, block.init, block.alloc_buffers)
        replaced = s_tir.SBlock(*parts, block.match_buffers, block.annotations)
        return s_tir.SBlockRealize(statement.iter_values, statement.predicate, replaced)
    if not isinstance(statement, tirx.For):
        return statement
    annotations, around = dict(statement.annotations), [*loops, statement]
    if annotations.pop(MARK, None) is not None:
        prefetches = fetches(around)
        body = tirx.SeqStmt([*prefetches, statement.body]) if prefetches else statement.body
    else:
        body = _rewritten(statement.body, around, fetches)
        if body.same_as(statement.body):
            return statement
    bounds = (statement.loop_var, statement.min, statement.extent, statement.kind)
    return tirx.For(*bounds, body, statement.thread_binding, annotations, statement.step)
