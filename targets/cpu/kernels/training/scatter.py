"""The gradient of Gather: rows of dy are added to the rows of the data that they were read from.

    ddata[o, indices[k], :] += dy[o, k, :]     for k in order

A task clears and owns some columns of all rows, so equal indices add up in order, without locks, whatever the number
of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.cpu.kernels.tiling import largest_divisor

STRIP = 64
"""Columns of a task, at most: a few lines of the cache."""


def rows(dy: te.Tensor, indices: te.Tensor, height: int) -> te.Tensor:
    """ddata[O, height, n] of dy[O, K, n] and indices[K]; negative ones count from the end, others add nothing."""
    outer, count, n = dims(dy)
    width = largest_divisor(n, STRIP)

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        given, where, result = ins[0], ins[1], outs[0]
        with IRBuilder() as ib, T.parallel(0, outer * (n // width)) as task:
            block, start = tirx.floordiv(task, n // width), tirx.floormod(task, n // width) * width
            with T.serial(0, height) as row, T.serial(0, width) as column:
                T.buffer_store(result, const(0, dy.dtype), (block, row, start + column))
            with T.serial(0, count) as k:
                index = where[k].astype("int64")
                row = tirx.Select(index < 0, index + height, index)
                with T.If(tirx.all(row >= 0, row < height)), T.Then(), T.serial(0, width) as column:
                    at = block, row, start + column
                    T.buffer_store(result, result[at] + given[block, k, start + column], at)
        return ib.get()

    return te.extern([(outer, height, n)], [dy, indices], body, name="scatter_rows", dtype=[str(dy.dtype)])
