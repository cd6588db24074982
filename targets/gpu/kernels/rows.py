"""Softmax and normalization of rows on GPUs: a row is read once, and kept in registers of the threads that share it.

The threads of a row add up by shuffles (of a warp, and of its warps): TVM's reduction across threads, which OpenCL does
in shared memory. Many short rows share a block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.code import SYNCHRONIZED
from graphopt.targets.gpu.kernels.rows_launch import LaunchConfig, Rows

ATTRIBUTES = {SYNCHRONIZED: 1}
"""Attributes of the functions: a reduction across threads brings its own barriers."""


def softmax(x: te.Tensor, work: Rows, config: LaunchConfig, logarithm: bool) -> te.Tensor:
    """Softmax (or its logarithm) along the last axis of x[rows, n]."""
    return _extern("softmax", [x], lambda row: row.softmax(logarithm), work, config)


def layer_norm(
    x: te.Tensor,
    weight: te.Tensor,
    bias: te.Tensor | None,
    epsilon: float,
    work: Rows,
    config: LaunchConfig,
    place: Callable[[Expr, Expr], Expr] = lambda row, column: column,
) -> te.Tensor:
    """(x - mean) / sqrt(variance + epsilon) * weight + bias along the last axis of x[rows, n]; bias may be None.

    Two passes over the row, so that a large mean does not cancel the variance.

    Args:
        place: (row, column) -> where the weight and the bias of that element are; by default at its column.
    """
    given = [x, weight] if bias is None else [x, weight, bias]
    return _extern("layer_norm", given, lambda row: row.layer_norm(epsilon, place), work, config)


def rms_norm(x: te.Tensor, weight: te.Tensor, epsilon: float, work: Rows, config: LaunchConfig) -> te.Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight along the last axis of x[rows, n]."""
    return _extern("rms_norm", [x, weight], lambda row: row.rms_norm(epsilon), work, config)


def _extern(
    name: str, inputs: Sequence[te.Tensor], write: Callable[[_Row], None], work: Rows, config: LaunchConfig
) -> te.Tensor:
    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                with ExitStack() as stack:
                    block = stack.enter_context(T.launch_thread("blockIdx.x", math.ceil(work.rows / config.rows)))
                    row: Expr = block
                    if config.rows > 1:
                        row = block * config.rows + stack.enter_context(T.launch_thread("threadIdx.y", config.rows))
                    lane = stack.enter_context(T.launch_thread("threadIdx.x", config.lanes))
                    write(_Row(work, config, ins, outs[0], row, lane))
            return builder.get().body

    return te.extern([dims(inputs[0])], inputs, body, dtype=[str(inputs[0].dtype)], name=name)


def _added(first: Expr, factor: Expr) -> Callable[[Expr], Expr]:
    return lambda total: first + total * factor


def _add(a: Expr, b: Expr) -> Expr:
    return a + b


@dataclass(slots=True)
class _Row:
    """The work of one thread on its row."""

    work: Rows
    config: LaunchConfig
    inputs: Sequence[tirx.Buffer]
    output: tirx.Buffer
    row: Expr
    lane: Expr
    kept: tirx.Buffer | None = None
    facts: Any = None
    neutral: float = 0.0

    def softmax(self, logarithm: bool) -> None:
        """Exponentials relative to the largest element, over their sum."""
        self._read(-math.inf)
        top = self._reduce(0, tirx.max, -math.inf, lambda x, _: x, lambda highest: highest)
        stored = self.config.kept and not logarithm
        if stored:
            self._change(lambda x, _: tirx.exp(x - top))

        def power(x: Expr, _: Expr) -> Expr:
            return x if stored else tirx.exp(x - top)

        if logarithm:
            shift = self._reduce(1, _add, 0, power, lambda total: top + tirx.log(total))
            self._write(lambda x, _: x - shift)
        else:
            factor = self._reduce(1, _add, 0, power, lambda total: self._const(1) / total)
            self._write(lambda x, column: power(x, column) * factor)

    def layer_norm(self, epsilon: float, place: Callable[[Expr, Expr], Expr]) -> None:
        """Centred, scaled by the deviation, and by the weights of its column."""
        weight, bias = self.inputs[1], self.inputs[2] if len(self.inputs) > 2 else None
        inverse = self._const(1.0 / self.work.n)
        self._read(0)
        mean = self._reduce(0, _add, 0, lambda x, _: x, lambda total: total * inverse)

        def centred(x: Expr, column: Expr) -> Expr:
            exists = self._exists(column)
            return x - mean if exists is None else tirx.Select(exists, x - mean, self._const(0))

        def square(x: Expr, column: Expr) -> Expr:
            return centred(x, column) * centred(x, column)

        if self.config.kept:  # removes what rounding left of a row of equal elements, exactly
            mean = self._reduce(2, _add, 0, centred, _added(mean, inverse))
        factor = self._reduce(1, _add, 0, square, lambda total: tirx.rsqrt(total * inverse + self._const(epsilon)))

        def finish(x: Expr, column: Expr) -> Expr:
            at = place(self.row, column)
            value = (x - mean) * factor * weight[at].astype(self.work.accumulate)
            return value if bias is None else value + bias[at].astype(self.work.accumulate)

        self._write(finish)

    def rms_norm(self, epsilon: float) -> None:
        """Scaled by the root of its mean square, and by the weight of its column."""
        inverse = self._const(1.0 / self.work.n)
        self._read(0)  # what does not exist adds nothing
        factor = self._reduce(
            0, _add, 0, lambda x, _: x * x, lambda total: tirx.rsqrt(total * inverse + self._const(epsilon))
        )
        self._write(lambda x, column: x * factor * self.inputs[1][column].astype(self.work.accumulate))

    def _const(self, value: float) -> Expr:
        return const(value, self.work.accumulate)

    def _local(self, count: int) -> tirx.Buffer:
        return T.alloc_buffer((count,), self.work.accumulate, scope="local")

    def _column(self, turn: Expr) -> Expr:
        """The first element of a turn; those of neighbouring threads are neighbours."""
        return (turn * self.config.lanes + self.lane) * self.config.vector

    def _exists(self, column: Expr) -> Expr | None:
        """Whether elements from `column` on are in the row, as all of a vector are; None where they always are."""
        return inside((column, self.work.n, self.config.lanes * self.config.vector))

    def _load(self, buffer: tirx.Buffer, start: Expr | int, column: Expr) -> None:
        """Load a vector from memory; rows of the last block that do not exist read the last row."""
        rows = self.work.rows
        row = self.row if rows % self.config.rows == 0 else tirx.min(self.row, rows - 1)
        exists = self._exists(column)
        with T.vectorized(0, self.config.vector) as i:
            value = self.inputs[0][row, column + i].astype(self.work.accumulate)
            if exists is not None:
                value = tirx.if_then_else(exists, value, self._const(self.neutral))
            T.buffer_store(buffer, value, [start + i])

    def _read(self, neutral: float) -> None:
        """Load the row into registers, `neutral` for what does not exist."""
        self.neutral = neutral
        # Filled before the first reduction: its result may lie in shared memory, and TVM would put buffers there whose
        # lifetimes begin later.
        self.facts = self._local(3)
        with T.unroll(0, 3) as i:
            T.buffer_store(self.facts, self._const(0), [i])
        if self.config.kept:
            self.kept = self._local(self.config.turns * self.config.vector)
            with T.unroll(0, self.config.turns) as turn:
                self._load(self.kept, turn * self.config.vector, self._column(turn))

    def _each(self, use: Callable[[tirx.Buffer, Expr | int, Expr], None]) -> None:
        """`use` of a buffer, where in it the vector of a turn begins, and its first column."""
        if self.config.kept:
            with T.unroll(0, self.config.turns) as turn:
                use(self.kept, turn * self.config.vector, self._column(turn))
            return
        with T.serial(0, self.config.turns) as turn:
            buffer = self._local(self.config.vector)
            self._load(buffer, 0, self._column(turn))
            use(buffer, 0, self._column(turn))

    def _change(self, value: Callable[[Expr, Expr], Expr]) -> None:
        def use(buffer: tirx.Buffer, start: Expr | int, column: Expr) -> None:
            with T.unroll(0, self.config.vector) as i:
                T.buffer_store(buffer, value(buffer[start + i], column + i), [start + i])

        self._each(use)

    def _reduce(
        self,
        number: int,
        combine: Callable[[Expr, Expr], Expr],
        neutral: float,
        value: Callable[[Expr, Expr], Expr],
        finish: Callable[[Expr], Expr],
    ) -> Expr:
        """`finish` of what `combine` makes of the values of all elements of the row; kept as fact `number`."""
        own, reduced = self._local(1), self._local(1)
        T.buffer_store(own, self._const(neutral), [0])

        def use(buffer: tirx.Buffer, start: Expr | int, column: Expr) -> None:
            with T.unroll(0, self.config.vector) as i:
                T.buffer_store(own, combine(own[0], value(buffer[start + i], column)), [0])

        self._each(use)
        if self.config.lanes == 1:
            T.buffer_store(self.facts, finish(own[0]), [number])
            return self.facts[number]
        reducer = T.comm_reducer(lambda a, b: combine(a, b), [self._const(neutral)])
        with T.attr(reducer, "reduce_scope", T.reinterpret("handle", T.uint64(0))):
            T.evaluate(T.tvm_thread_allreduce(T.uint32(1), own[0], T.bool(True), reduced[0], self.lane))
        T.buffer_store(self.facts, finish(reduced[0]), [number])
        return self.facts[number]

    def _write(self, value: Callable[[Expr, Expr], Expr]) -> None:
        def use(buffer: tirx.Buffer, start: Expr | int, column: Expr) -> None:
            places = (
                (self.row, self.work.rows, self.config.rows),
                (column, self.work.n, self.config.lanes * self.config.vector),
            )
            with when(inside(*places)), T.vectorized(0, self.config.vector) as i:
                result = value(buffer[start + i], column + i).astype(str(self.output.dtype))
                T.buffer_store(self.output, result, [self.row, column + i])

        self._each(use)
