"""Blocked summation of long sums of products, as in ONNX Runtime: a tile's sums restart at zero after some steps.

    for k < K:                    total = 0
        tile += a[k] * b[k]   ->  for part < K / steps:
                                      tile = 0
                                      for k < steps: tile += a * b
                                      total += tile
                                  tile = total

In one sum each of K additions rounds a number as large as the total, and a constant operand rounds to the same side
each time. The parts cost one load, addition and store of the tile in some hundred steps.
"""

from __future__ import annotations

import math

import tvm
from tvm import s_tir, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV

from graphopt.targets.common.tir.expressions import parts

MARK = "graphopt.partial"
"""Loop annotation: how many iterations a part has."""

STEPS = 256
"""Additions in a part, or a few more."""


def mark(sch: s_tir.Schedule, loop: LoopRV, terms: int) -> None:
    """Mark `loop`, each of whose iterations adds `terms` products, to be cut into parts if its sums are long."""
    iterations = int(sch.get(loop).extent)
    length = max(1, STEPS // terms)
    if iterations >= 2 * length:
        sch.annotate(loop, MARK, length)


def cut(statement: tirx.For) -> tirx.Stmt:
    """The lowered statement with its marked loop in parts; unchanged where an index of a store is not constant."""
    annotations = dict(statement.annotations)
    length = int(annotations.pop(MARK))
    bounds = statement.loop_var, statement.min, statement.extent, statement.kind, statement.body
    plain = tirx.For(*bounds, statement.thread_binding, annotations, statement.step)
    places = _places(statement.body)
    if not places or not isinstance(statement.extent, tirx.IntImm) or not isinstance(statement.min, tirx.IntImm):
        return plain
    totals: list[tuple[tirx.Buffer, tirx.Buffer]] = []
    for buffer, _ in places:
        if not any(buffer.same_as(known) for known, _ in totals):
            totals.append((buffer, tirx.decl_buffer(buffer.shape, buffer.dtype, "total", scope="local")))

    def total_of(buffer: tirx.Buffer) -> tirx.Buffer:
        return next(total for known, total in totals if known.same_as(buffer))

    def moved(target: bool, source: bool, adds: bool = False) -> list[tirx.BufferStore]:
        """Stores into the totals or the tile, from either, for each place."""
        stores = []
        for buffer, index in places:
            pair = (buffer, total_of(buffer))
            value = tirx.BufferLoad(pair[source], index)
            value = tirx.Add(tirx.BufferLoad(pair[target], index), value) if adds else value
            stores.append(tirx.BufferStore(pair[target], value, index))
        return stores

    kind, extent = statement.loop_var.ty.dtype, int(statement.extent)
    part, step = tirx.Var("part", kind), tirx.Var("step", kind)
    count = math.ceil(extent / length)
    inner: Expr = tirx.IntImm(kind, length)
    if extent % length:
        inner = tirx.Min(inner, tirx.IntImm(kind, extent) - part * length)
    at = tirx.Bind(statement.loop_var, statement.min + part * length + step)
    zero = [tirx.BufferStore(buffer, _zero(buffer, index), index) for buffer, index in places]
    steps = tirx.For(
        step, tirx.IntImm(kind, 0), inner, statement.kind, tirx.SeqStmt([at, statement.body]), None, annotations
    )
    body = tirx.SeqStmt([*zero, steps, *moved(True, False, adds=True)])
    return tirx.SeqStmt(
        [
            *(tirx.AllocBuffer(total) for _, total in totals),
            *moved(True, False),
            tirx.For(part, tirx.IntImm(kind, 0), tirx.IntImm(kind, count), tirx.ForKind.SERIAL, body),
            *moved(False, True),
        ]
    )


def _places(statement: tirx.Stmt) -> list[tuple[tirx.Buffer, list[Expr]]]:
    """Buffers and indices of all stores, each once; none where an index is not constant."""
    stores: dict[str, tuple[tirx.Buffer, list[Expr]]] = {}
    waiting = [statement]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, tirx.SeqStmt):
            waiting.extend(inner)
        elif isinstance(inner, tirx.For | tirx.AttrStmt):
            waiting.append(inner.body)
        elif isinstance(inner, tirx.IfThenElse):
            waiting.append(inner.then_case)
        elif isinstance(inner, tirx.BufferStore):
            index = list(inner.indices)
            if any(isinstance(part, tirx.Var) for each in index for part in parts(each)):
                return []
            stores.setdefault(f"{inner.buffer}{index}", (inner.buffer, index))
        elif not isinstance(inner, tirx.Evaluate | tirx.Bind):
            return []
    return list(stores.values())


def _zero(buffer: tirx.Buffer, index: list[Expr]) -> Expr:
    kind = tvm.DataType(str(buffer.dtype))
    lanes = kind.lanes * tvm.DataType(str(index[-1].ty.dtype)).lanes
    zero = tirx.const(0, str(kind).split("x")[0])
    return zero if lanes == 1 else tirx.Broadcast(zero, lanes)
