"""Pools on the plain layout, a row of the output at a time: first across the window's rows, then along it.

    column[w] = reduce over the taps of the other axes of x[.., row stride + tap dilation - pad, w - left]
    y[.., row, place] = reduce over t of column[place stride + t dilation]

So a window of k x k takes 2k steps and not k * k, and both loops run along memory. An average divides by how many
elements the window has, which is the product of the counts along each axis.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.converters.pooling import Pool
from graphopt.targets.common.kernels.blocks import const, dims

MIN_PARALLEL = 1 << 15
"""Steps below which waking another core costs more than it saves."""

MANY_PLANES = 64
"""With at least as many planes each plane is a task, with fewer each row."""

MOST_ROWS = 16
"""Rows of a window that one loop combines; more are added one after another."""


def largest(x: te.Tensor, pool: Pool) -> te.Tensor:
    """y[*outer, *pool.out] in the dtype of x.

    A window that sees nothing above it gives the lowest number; of floats and with dilations it gives -inf. So does
    ONNX Runtime, whose vector code has no dilations.
    """
    dtype = str(x.dtype)
    infinite = dtype.startswith("float") and set(pool.dilations) != {1}
    lowest = const(-math.inf, dtype) if infinite else tirx.min_value(dtype)
    return _defined(x, pool, lowest, tirx.max)


def average(x: te.Tensor, counts: te.Tensor, pool: Pool) -> te.Tensor:
    """y[*outer, *pool.out] of floats; a window at position p has the product of counts[axis, p[axis]] elements."""
    return _defined(x, pool, const(0, str(x.dtype)), lambda a, b: a + b, counts)


def _defined(
    x: te.Tensor, pool: Pool, start: Expr, combine: Callable[[Expr, Expr], Expr], counts: te.Tensor | None = None
) -> te.Tensor:
    outer = dims(x)[: -len(pool.out)]

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        with IRBuilder() as ib:
            _Rows(ins[0], outs[0], pool, start, combine, *ins[1:]).write()
        return ib.get()

    given = [x] if counts is None else [x, counts]
    return te.extern([(*outer, *pool.out)], given, body, dtype=[str(x.dtype)], name="pool")


class _Rows:
    """Emits the loops."""

    def __init__(
        self,
        x: tirx.Buffer,
        y: tirx.Buffer,
        pool: Pool,
        start: Expr,
        combine: Callable[[Expr, Expr], Expr],
        counts: tirx.Buffer | None = None,
    ) -> None:
        self.x, self.y, self.pool, self.start, self.combine, self.counts = x, y, pool, start, combine, counts
        shape = [int(extent) for extent in x.shape]
        self.outer, self.image = shape[: -len(pool.out)], shape[-len(pool.out) :]

    def write(self) -> None:
        pool, columns, planes = self.pool, self.image[-1], math.prod(self.outer)
        reach = (pool.kernel[-1] - 1) * pool.dilations[-1] + 1
        width = max((pool.out[-1] - 1) * pool.strides[-1] + reach, pool.pads[-1] + columns)
        rows = math.prod(pool.out[:-1])
        work = planes * rows * (math.prod(pool.kernel[:-1]) * columns + pool.kernel[-1] * pool.out[-1])
        apart = 1 if planes >= MANY_PLANES else rows
        loop = T.parallel if work >= MIN_PARALLEL else T.serial
        with loop(0, planes * apart) as task, T.serial(0, rows // apart) as inner:
            plane = _unravelled(tirx.floordiv(task, apart), self.outer)
            row = _unravelled(inner if apart == 1 else tirx.floormod(task, apart), pool.out[:-1])
            column = T.alloc_buffer((width,), str(self.x.dtype), scope="local")
            first = [at * stride - pad for at, stride, pad in zip(row, pool.strides, pool.pads, strict=False)]
            if math.prod(pool.kernel[:-1]) > MOST_ROWS:
                self._fill(column, 0, width)
                self._across(column, plane, first, [])
            else:
                with T.If(self._rows_inside(first)):
                    with T.Then():
                        self._fill(column, 0, pool.pads[-1])
                        self._fill(column, pool.pads[-1] + columns, width)
                        self._at_once(column, plane, first)
                    with T.Else():
                        self._fill(column, 0, width)
                        self._across(column, plane, first, [])
            self._along(column, plane, row)

    def _fill(self, column: tirx.Buffer, start: int, end: int) -> None:
        if start < end:
            with T.serial(start, end) as at:
                T.buffer_store(column, self.start, (at,))

    def _rows_inside(self, first: list[Expr]) -> Expr:
        """Whether all rows of the window lie in the image."""
        pool, conditions = self.pool, [tirx.const(True, "bool")]
        for at, taps, dilation, extent in zip(first, pool.kernel, pool.dilations, self.image, strict=False):
            conditions += [at >= 0, at + (taps - 1) * dilation < extent]
        return tirx.all(*conditions)

    def _at_once(self, column: tirx.Buffer, plane: list[Expr], first: list[Expr]) -> None:
        """Combine all rows of the window in one loop."""
        pool, left = self.pool, self.pool.pads[-1]
        with T.serial(0, self.image[-1]) as k:
            result: Expr | None = None
            for taps in itertools.product(*map(range, pool.kernel[:-1])):
                at = [start + tap * d for start, tap, d in zip(first, taps, pool.dilations, strict=False)]
                value = self.x[(*plane, *at, k)]
                # The start takes part as in `_across`: of nothing but -inf the result must not depend on the row.
                result = self.combine(self.start if result is None else result, value)
            T.buffer_store(column, result, (k + left,))

    def _across(self, column: tirx.Buffer, plane: list[Expr], first: list[Expr], at: list[Expr]) -> None:
        """Combine the rows of the window, from its `first` on, as far as they lie in the image."""
        axis, left = len(at), self.pool.pads[-1]
        if axis == len(first):
            conditions = [c for a, extent in zip(at, self.image, strict=False) for c in (a >= 0, a < extent)]
            inside = tirx.all(*conditions) if conditions else tirx.const(True, "bool")
            with T.If(inside), T.Then(), T.serial(0, self.image[-1]) as k:
                result = self.combine(column[k + left], self.x[(*plane, *at, k)])
                T.buffer_store(column, result, (k + left,))
            return
        pool = self.pool
        with T.serial(0, pool.kernel[axis]) as tap:
            self._across(column, plane, first, [*at, first[axis] + tap * pool.dilations[axis]])

    def _along(self, column: tirx.Buffer, plane: list[Expr], row: list[Expr]) -> None:
        """Combine the columns of the window."""
        pool = self.pool
        with T.serial(0, pool.out[-1]) as place:
            first = place * pool.strides[-1]
            result: Expr = column[first]
            for tap in range(1, pool.kernel[-1]):
                result = self.combine(result, column[first + tap * pool.dilations[-1]])
            if self.counts is not None:
                cells: Expr = self.counts[len(row), place]
                for axis, at in enumerate(row):
                    cells = cells * self.counts[axis, at]
                result = result / cells
            T.buffer_store(self.y, result, (*plane, *row, place))


def _unravelled(place: Expr, shape: Sequence[int]) -> list[Expr]:
    indices: list[Expr] = []
    for extent in reversed(shape):
        indices.insert(0, tirx.floormod(place, extent) if len(indices) + 1 < len(shape) else place)
        place = tirx.floordiv(place, extent)
    return indices
