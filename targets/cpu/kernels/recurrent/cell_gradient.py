"""The gradients of a vector of hidden units in one step: of what goes into the gates, and of the states before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels import math as fast
from graphopt.targets.common.kernels.blocks import const

Lanes = Callable[[Expr], Any]
"""From a lane of the vector to its number, or to its indices in a buffer."""

Set = Callable[[tirx.Buffer, Lanes, Lanes], None]
"""Stores into a buffer, at the indices, the numbers of all lanes."""


@dataclass(frozen=True, slots=True)
class CellGradient:
    """At time `t`, for `row` of the batch and the units from `unit` on.

    `totals[place]` and its neighbours hold dh without dY. A `ragged` layer has a block that reaches beyond its units;
    the units of such a vector are computed one by one.
    """

    buffers: Mapping[str, tirx.Buffer]
    hidden: int
    lanes: int
    dtype: str
    t: Expr
    row: Expr
    unit: Expr
    totals: tirx.Buffer
    place: Expr
    ragged: bool

    def lstm(self) -> None:
        """dG[t], and dc before the step."""
        self._emit(3, self._lstm)

    def gru(self) -> None:
        """dG[t], dU[t], and the part of dh before the step that goes around the gates."""
        self._emit(3, self._gru)

    def last(self) -> None:
        """dh before the first step."""
        self._emit(1, lambda held, put: put(self.buffers["dh0"], self._state, lambda lane: held[lane]))

    def _emit(self, slots: int, body: Callable[[tirx.Buffer, Set], None]) -> None:
        """`body` with an array of `slots` vectors, the first of which is dh without dY."""
        held = T.alloc_buffer((slots * self.lanes,), self.dtype, scope="local")
        with T.vectorized(0, self.lanes) as lane:
            T.buffer_store(held, self.totals[self.place + lane], [lane])

        def vector(buffer: tirx.Buffer, index: Lanes, value: Lanes) -> None:
            with T.vectorized(0, self.lanes) as lane:
                T.buffer_store(buffer, value(lane), index(lane))

        def one_by_one(buffer: tirx.Buffer, index: Lanes, value: Lanes) -> None:
            with T.serial(0, tirx.max(self.hidden - self.unit, 0)) as lane:
                T.buffer_store(buffer, value(lane), index(lane))

        if not self.ragged:
            body(held, vector)
            return
        with T.If(self.unit + self.lanes <= self.hidden):
            with T.Then():
                body(held, vector)
            with T.Else():
                body(held, one_by_one)

    def _state(self, lane: Expr) -> tuple[Expr, ...]:
        return self.row, self.unit + lane

    def _line(self, name: str) -> Lanes:
        return lambda lane: self.buffers[name][self.t, self.row, self.unit + lane]

    def _before(self, name: str, start: str) -> Lanes:
        """`name` of the time before, `start` before the first."""
        line, first = self.buffers[name], self.buffers[start]
        return lambda lane: tirx.if_then_else(
            self.t > 0, line[self.t - 1, self.row, self.unit + lane], first[self._state(lane)]
        )

    def _gate(self, number: int) -> Lanes:
        """Its place in gates and dG."""
        return lambda lane: (self.t, self.row, number * self.hidden + self.unit + lane)

    def _kept_gate(self, number: int) -> Lanes:
        place = self._gate(number)
        return lambda lane: self.buffers["gates"][place(lane)]

    def _slot(self, held: tirx.Buffer, slot: int) -> Lanes:
        return lambda lane: held[slot * self.lanes + lane]

    def _slope(self, gate: Expr) -> Expr:
        """The derivative of a sigmoid by its result."""
        return gate * (const(1, self.dtype) - gate)

    def _lstm(self, held: tirx.Buffer, put: Set) -> None:
        one, buffers, lanes = const(1, self.dtype), self.buffers, self.lanes
        i, o, f, u = map(self._kept_gate, range(4))
        dh, squashed, dc = (self._slot(held, slot) for slot in range(3))
        dy, cell, before = self._line("dY"), self._line("C"), self._before("C", "c0")
        put(held, lambda lane: [lane], lambda lane: dh(lane) + dy(lane))
        put(held, lambda lane: [lanes + lane], lambda lane: fast.tanh(cell(lane)))
        put(
            held,
            lambda lane: [2 * lanes + lane],
            lambda lane: (
                buffers["dc0"][self._state(lane)] + dh(lane) * o(lane) * (one - squashed(lane) * squashed(lane))
            ),
        )
        put(buffers["dG"], self._gate(0), lambda lane: dc(lane) * u(lane) * self._slope(i(lane)))
        put(buffers["dG"], self._gate(1), lambda lane: dh(lane) * squashed(lane) * self._slope(o(lane)))
        put(buffers["dG"], self._gate(2), lambda lane: dc(lane) * before(lane) * self._slope(f(lane)))
        put(buffers["dG"], self._gate(3), lambda lane: dc(lane) * i(lane) * (one - u(lane) * u(lane)))
        put(buffers["dc0"], self._state, lambda lane: dc(lane) * f(lane))
        put(buffers["carried"], self._state, lambda _: const(0, self.dtype))

    def _gru(self, held: tirx.Buffer, put: Set) -> None:
        one, buffers, lanes = const(1, self.dtype), self.buffers, self.lanes
        z, r, u = map(self._kept_gate, range(3))
        dh, du = (self._slot(held, slot) for slot in range(2))
        dy, linear, before = self._line("dY"), self._line("U"), self._before("Y", "h0")
        put(held, lambda lane: [lane], lambda lane: dh(lane) + dy(lane))
        put(
            held,
            lambda lane: [lanes + lane],
            lambda lane: dh(lane) * (one - z(lane)) * (one - u(lane) * u(lane)),
        )
        put(buffers["dG"], self._gate(0), lambda lane: dh(lane) * (before(lane) - u(lane)) * self._slope(z(lane)))
        put(buffers["dG"], self._gate(1), lambda lane: du(lane) * linear(lane) * self._slope(r(lane)))
        put(buffers["dG"], self._gate(2), du)
        put(buffers["dU"], lambda lane: (self.t, self.row, self.unit + lane), lambda lane: du(lane) * r(lane))
        put(buffers["carried"], self._state, lambda lane: dh(lane) * z(lane))
