"""The cells of recurrent layers: the update of the state from the sums of the gates, and what training keeps of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.kernels.recurrent.rnn import ACTIVATIONS, Layer


@dataclass(frozen=True, slots=True)
class Cell:
    """The update of one vector of hidden units, from the sums of its gates."""

    layer: Layer
    buffers: Mapping[str, Any]
    alive: Expr | None  # whether the step lies within the row's length; None where all rows have all steps
    step: Expr
    at: Expr
    d: Expr
    block: Expr
    row: Expr
    unit: int
    sums: tirx.Buffer
    base: int

    @property
    def _activations(self) -> list[Callable[[Expr], Expr]]:
        """f, g, h."""
        return [ACTIVATIONS[name] for name in self.layer.activations]

    @contextmanager
    def _lanes(self) -> Iterator[Expr]:
        with T.vectorized(0, self.layer.lanes) as lane:
            yield lane

    def _set(self, buffer: tirx.Buffer, value: Callable[[Expr], Expr], index: Callable[[Expr], Sequence[Expr]]) -> None:
        with self._lanes() as lane:
            T.buffer_store(buffer, value(lane), index(lane))

    def _gate(self, gate: int) -> Callable[[Expr], Expr]:
        place = self.base + gate * self.layer.units + self.unit
        return lambda lane: self.sums[place + lane]

    def _apply(self, gate: int, value: Callable[[Expr], Expr]) -> None:
        place = self.base + gate * self.layer.units + self.unit
        self._set(self.sums, value, lambda lane: [place + lane])

    def _hidden(self, lane: Expr) -> tuple[Expr, ...]:
        return self.d, self.row, self.block * self.layer.units + self.unit + lane

    def _old(self, lane: Expr) -> Expr:
        return self.buffers["h"][(self.step % 2, *self._hidden(lane))]

    def _kept(self, new: Expr, old: Expr) -> Expr:
        """A state after the step: the old one where the row has ended."""
        return new if self.alive is None else tirx.Select(self.alive, new, old)

    def _new(self, value: Callable[[Expr], Expr]) -> None:
        self._set(
            self.buffers["h"],
            lambda lane: self._kept(value(lane), self._old(lane)),
            lambda lane: ((self.step + 1) % 2, *self._hidden(lane)),
        )

    def _keep(self, name: str, value: Callable[[Expr], Expr], *gate: int) -> None:
        """Store the vector into the result `name` [T, B, H] or [T, B, gates, H], where there is one."""
        result, layer = self.buffers.get(name), self.layer
        if result is None:
            return
        first = self.block * layer.units + self.unit
        if layer.hidden % layer.units == 0:
            self._set(result, value, lambda lane: (self.at, self.row, *gate, first + lane))
            return
        vector = T.alloc_buffer((layer.lanes,), layer.dtype, scope="local")  # so that the sums stay in registers
        self._set(vector, value, lambda lane: [lane])
        with T.serial(0, tirx.max(tirx.min(layer.hidden - first, layer.lanes), 0)) as u:
            T.buffer_store(result, vector[u], [self.at, self.row, *gate, first + u])

    def lstm0(self) -> None:
        """c = f c + i tanh(g), h = o tanh(c); a peephole adds p c to a gate, the new c for the output gate."""
        f, g, h = self._activations
        c, peepholes = self.buffers["c"], self.buffers["extra"]

        def looked(gate: int) -> Callable[[Expr], Expr]:
            def value(lane: Expr) -> Expr:
                total = self._gate(gate)(lane)
                if peepholes is not None:
                    total = total + peepholes[self.d, self.block, gate, self.unit + lane] * c[self._hidden(lane)]
                return f(total)

            return value

        i, o, forget, new = (self._gate(gate) for gate in range(4))
        self._apply(0, looked(0))
        self._apply(2, looked(2))
        self._apply(3, lambda lane: g(new(lane)))

        def mixed(lane: Expr) -> Expr:
            old = c[self._hidden(lane)]
            return self._kept(forget(lane) * old + i(lane) * new(lane), old)

        self._set(c, mixed, self._hidden)
        self._apply(1, looked(1))
        self._new(lambda lane: o(lane) * h(c[self._hidden(lane)]))
        for gate, each in enumerate((i, o, forget, new)):
            self._keep("gates", each, gate)
        self._keep("inner", lambda lane: c[self._hidden(lane)])

    def gru0(self) -> None:
        """The update gate z, and r h for the second product, or, where the reset comes after it, all of the step."""
        f, g = self._activations
        update, reset = self._gate(0), self._gate(1)
        if not self.layer.reset_after:
            self._set(self.buffers["update"], lambda lane: f(update(lane)), self._hidden)
            self._set(self.buffers["reset"], lambda lane: f(reset(lane)) * self._old(lane), self._hidden)
            return
        product = self._gate(2)
        projected = self.buffers["projected"]
        self._apply(0, lambda lane: f(update(lane)))
        self._apply(1, lambda lane: f(reset(lane)))
        self._keep("inner", product)
        self._apply(
            2,
            lambda lane: g(
                projected[self.at, self.row, self.d, self.block, 2, self.unit + lane] + reset(lane) * product(lane)
            ),
        )
        self._new(lambda lane: (const(1, self.layer.dtype) - update(lane)) * product(lane)
                  + update(lane) * self._old(lane))  # fmt: skip
        for gate, each in enumerate((update, reset, product)):
            self._keep("gates", each, gate)

    def gru1(self) -> None:
        """h = (1 - z) n + z h."""
        _, g = self._activations
        new = self._gate(0)
        self._apply(0, lambda lane: g(new(lane)))

        def mixed(lane: Expr) -> Expr:
            z = self.buffers["update"][self._hidden(lane)]
            return (const(1, self.layer.dtype) - z) * new(lane) + z * self._old(lane)

        self._new(mixed)

    def rnn0(self) -> None:
        """h = f(sum)."""
        (f,) = self._activations
        self._new(lambda lane: f(self._gate(0)(lane)))
