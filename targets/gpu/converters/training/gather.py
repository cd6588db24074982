"""GatherGradient: each row of the data adds up the rows of dY that were read from it, in order, without locks.

    next[k] = the first later place of the same index      leads[k] = there is no earlier one
    ddata[o, index, j] = dy[o, k, j] + dy[o, next[k], j] + ...     where k leads, else zero

A thread follows the chain of one leading place, so rows that no index names are only cleared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import const, dims


def gather_gradient(c: Context, inputs: Inputs) -> Outputs:
    """GatherGradient."""
    dy, indices = inputs[:2]
    shape = c.out_shape
    axis, count = c.integer("axis") % max(len(shape), 1), math.prod(shape_of(indices))
    outer, inner = math.prod(shape[:axis]), math.prod(shape[axis + 1 :])
    if dtype_of(dy) not in ("float32", "float64") or 0 in shape or count == 0:
        return NotImplemented
    places = c.te("gather_rows", lambda k: _rows(k, shape[axis]), c.reshape(indices, (count,)), pattern=OPAQUE)
    later = c.te("gather_next", _next, places, pattern=OPAQUE)
    earlier = c.te("gather_earlier", _earlier, places, pattern=OPAQUE)
    flat = c.reshape(dy, (outer, count, inner))
    operands = flat, places, later, earlier
    return c.reshape(c.te("gather_gradient", lambda *v: _added(v, shape[axis]), *operands, pattern=OPAQUE), shape)


def _rows(indices: te.Tensor, height: int) -> te.Tensor:
    """The row of each index[K]: negative ones count from the end; -1 for those out of range."""

    def element(k: Expr) -> Expr:
        index = indices[k].astype("int64")
        row = tirx.Select(index < 0, index + height, index)
        return tirx.Select(tirx.all(row >= 0, row < height), row, const(-1, "int64")).astype("int32")

    return te.compute(indices.shape, element, name="rows")


def _next(rows: te.Tensor) -> te.Tensor:
    """[K]: the first later place of the same row; K where there is none."""
    (count,) = dims(rows)
    r = te.reduce_axis((0, count), "later")

    def element(k: Expr) -> Expr:
        same = tirx.all(r > k, rows[r] == rows[k])
        return te.min(tirx.Select(same, r.astype("int32"), const(count, "int32")), axis=[r])

    return te.compute((count,), element, name="next")


def _earlier(rows: te.Tensor) -> te.Tensor:
    """[K]: the first place of the same row."""
    (count,) = dims(rows)
    r = te.reduce_axis((0, count), "earlier")

    def element(k: Expr) -> Expr:
        return te.min(tirx.Select(rows[r] == rows[k], r.astype("int32"), const(count, "int32")), axis=[r])

    return te.compute((count,), element, name="first")


def _added(operands: Sequence[te.Tensor], height: int) -> te.Tensor:
    """ddata[O, height, n] of dy[O, K, n] and rows, later and first [K]."""
    dy = operands[0]
    outer, count, n = dims(dy)
    zero = const(0, dy.dtype)

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        given, where, after, lead = ins
        (result,) = outs
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                with T.parallel(0, outer * height * n) as i:
                    T.buffer_store(result, zero, _digits(i, height, n))
                with T.parallel(0, outer * count * n) as i:
                    block, k, column = _digits(i, count, n)
                    with T.If(tirx.all(lead[k] == k, where[k] >= 0)), T.Then():
                        total = T.alloc_buffer((1,), str(dy.dtype), scope="local")
                        place = T.alloc_buffer((1,), "int32", scope="local")
                        T.buffer_store(total, zero, [0])
                        T.buffer_store(place, k, [0])
                        with T.While(place[0] < count):
                            T.buffer_store(total, total[0] + given[block, place[0], column], [0])
                            T.buffer_store(place, after[place[0]], [0])
                        T.buffer_store(result, total[0], [block, where[k], column])
            return builder.get().body

    shape = outer, height, n
    return te.extern([shape], list(operands), body, name="gather_gradient", dtype=[str(dy.dtype)])


def _digits(flat: Expr, height: int, n: int) -> list[Expr]:
    rest = tirx.floordiv(flat, n)
    return [tirx.floordiv(rest, height), tirx.floormod(rest, height), tirx.floormod(flat, n)]
