"""The recurrence of a layer over all time steps as one kernel, with hand-written loops.

A step at small batch is bound by reading R. Each thread reads the same blocks of R in every step, and in every second
step backwards: the blocks that the last step read last are read first, while they are still in the second-level cache.
Steps are separated by a barrier inside one parallel launch, not by launches.

Stacked layers follow one another. Overlapped as a wavefront, a core would have a layer of its own and read all of its R
in every step, where here it reads half of one layer's in half of the time: the same bytes, from the same caches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T
from tvm.tirx.script.builder.frame import AttrFrame

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.kernels.rnn import ACTIVATIONS, Layer

UNROLL = 4
"""Unrolled steps of a sum of products."""


def compute(
    layer: Layer,
    projected: te.Tensor,
    recurrent: Sequence[te.Tensor],
    initial: Sequence[te.Tensor],
    reset_bias: te.Tensor | None = None,
    peepholes: te.Tensor | None = None,
    lengths: te.Tensor | None = None,
) -> list[te.Tensor]:
    """The recurrence over all steps.

    Args:
        projected: [T, B, D, UB, G, U], the inputs' products and the biases.
        recurrent: `pack_recurrent` of each of `layer.phases`.
        initial: h (and c) before the first step, each [D, B, H].
        reset_bias: [D, UB, 1, U] for a GRU with `reset_after`.
        peepholes: [D, UB, 3, U] for the input, output and forget gate of an LSTM.
        lengths: [B], int32, the steps of each row, at most T; None where all have T. After them Y is zero.

    Returns:
        Y[T, D, B, H], the last h[D, B, H], for an LSTM the last c[D, B, H]; if `layer.keeps` its gates, and the c of
        an LSTM or the product of a GRU's reset gate, as [T, B, D, UB, G + 1, U]; then workspace of the kernel.
    """
    d, b, h, padded = layer.directions, layer.batch, layer.hidden, layer.blocks * layer.units
    kept = [(layer.steps, b, d, layer.blocks, layer.gates + 1, layer.units)] if layer.keeps else []
    shapes = [(layer.steps, d, b, h), *[(d, b, h)] * len(initial), *kept, (2, d, b, padded)]
    if layer.cell == "LSTM":
        shapes.append((d, b, padded))
    if len(layer.phases) > 1:
        shapes += [(d, b, padded)] * 2
    extra = [t for t in (reset_bias, peepholes) if t is not None]
    inputs = [projected, *recurrent, *initial, *extra, *([] if lengths is None else [lengths])]

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        given = iter(ins)
        buffers: dict[str, Any] = {"projected": next(given)}
        buffers["recurrent"] = [next(given) for _ in recurrent]
        buffers["initial"] = [next(given) for _ in initial]
        buffers["extra"] = next(given) if extra else None
        buffers["lengths"] = next(given, None)
        results = iter(outs)
        buffers["y"] = next(results)
        buffers["last"] = [next(results) for _ in initial]
        buffers["kept"] = next(results) if layer.keeps else None
        buffers["h"] = next(results)
        buffers["c"] = next(results) if layer.cell == "LSTM" else None
        buffers["update"], buffers["reset"] = next(results, None), next(results, None)
        return _Template(layer, buffers).emit()

    results_and_scratch = te.extern(shapes, inputs, body, dtype=[layer.dtype] * len(shapes), name="recurrence")
    return (
        list(results_and_scratch)
        if isinstance(results_and_scratch, list | tuple) or hasattr(results_and_scratch, "__len__")
        else [results_and_scratch]
    )


class _Template:
    """Emits the loops of one layer; `step`, `direction`, `block` and so on are loop variables and functions of them."""

    def __init__(self, layer: Layer, buffers: dict[str, Any]) -> None:
        self.layer, self.buffers = layer, buffers
        self.f, *self.gh = [ACTIVATIONS[name] for name in layer.activations]

    def emit(self) -> tirx.Stmt:
        """The kernel: load the initial states, run all steps, store the last states."""
        layer, buffers = self.layer, self.buffers
        states = [buffers["h"]] if buffers["c"] is None else [buffers["h"], buffers["c"]]
        parts = [self._states_in(state, source) for state, source in zip(states, buffers["initial"], strict=True)]
        parts.append(self._shared_steps() if layer.shared else self._separate_steps())
        parts += [self._states_out(state, last) for state, last in zip(states, buffers["last"], strict=True)]
        return tirx.SeqStmt(parts)

    def _state(self, state: tirx.Buffer, turn: Expr | int, *index: Expr) -> tuple[Expr | int, ...]:
        """Index of a state: h is double-buffered, so that a step reads one buffer and writes the other."""
        return (turn, *index) if state is self.buffers["h"] else index

    def _states_in(self, state: tirx.Buffer, source: tirx.Buffer) -> tirx.Stmt:
        layer = self.layer
        with IRBuilder() as builder:
            with T.grid(layer.directions, layer.batch, layer.blocks * layer.units) as (d, row, u):
                inside = tirx.min(u, layer.hidden - 1)
                value = tirx.Select(u < layer.hidden, source[d, row, inside], const(0, layer.dtype))
                T.buffer_store(state, value, self._state(state, 0, d, row, u))
            return builder.get()

    def _states_out(self, state: tirx.Buffer, last: tirx.Buffer) -> tirx.Stmt:
        layer = self.layer
        with IRBuilder() as builder:
            with T.grid(layer.directions, layer.batch, layer.hidden) as (d, row, u):
                T.buffer_store(last, state[self._state(state, layer.steps % 2, d, row, u)], [d, row, u])
            return builder.get()

    def _separate_steps(self) -> tirx.Stmt:
        """Every thread computes its directions and rows through all steps, without barriers."""
        layer = self.layer
        tiles, rest = divmod(layer.batch, layer.rows)
        total = layer.directions * tiles

        def stream(d: Expr, row: Expr, rows: int) -> None:
            with T.serial(0, layer.steps) as step:
                for phase in range(len(layer.phases)):
                    with T.serial(0, layer.blocks) as j:
                        block = T.bind(tirx.Select(step % 2 == 0, j, layer.blocks - 1 - j))
                        self._tile(phase, step, d, block, row, rows)

        with IRBuilder() as builder:
            loop = T.parallel if total > 1 else T.serial
            with loop(0, total) as task:
                stream(task // tiles, task % tiles * layer.rows, layer.rows)
            full_tiles = builder.get()
        if not rest:
            return full_tiles
        with IRBuilder() as builder:
            with T.serial(0, layer.directions) as d:
                stream(d, tirx.IntImm("int32", tiles * layer.rows), rest)
            return tirx.SeqStmt([full_tiles, builder.get()])

    def _shared_steps(self) -> tirx.Stmt:
        """The blocks of each step are divided among the threads, with a barrier after it."""
        layer = self.layer
        tasks = layer.directions * layer.blocks
        tiles, rest = divmod(layer.batch, layer.rows)
        # The threads get consecutive tasks, as many as this; going backwards through each thread's own is then a
        # permutation of all, right for any division.
        threads = tirx.call_packed("runtime.NumThreads")
        own = tirx.Var("own", "int32")
        with IRBuilder() as builder:
            with _pragma("parallel_launch_point"), T.serial(0, layer.steps) as step:
                for phase in range(len(layer.phases)):
                    with _pragma("parallel_barrier_when_finish"), T.parallel(0, tasks) as i:
                        start = i // own * own
                        end = tirx.min(start + own, tasks) - 1
                        task = tirx.Select(step % 2 == 0, i, start + end - i)
                        # Loads, because TVM takes many seconds to simplify a division by a variable in every index.
                        place = T.alloc_buffer((2,), "int32", scope="local")
                        T.buffer_store(place, task // layer.blocks, [0])
                        T.buffer_store(place, task % layer.blocks, [1])
                        d, block = T.bind(place[0]), T.bind(place[1])
                        with T.serial(0, tiles) as tile:
                            self._tile(phase, step, d, block, tile * layer.rows, layer.rows)
                        if rest:
                            row = tirx.IntImm("int32", tiles * layer.rows)
                            self._tile(phase, step, d, block, row, rest)
            return tirx.SeqStmt([tirx.Bind(own, (tasks + threads - 1) // threads), builder.get()])

    def _tile(self, phase: int, step: Expr, d: Expr, block: Expr, row: Expr, rows: int) -> None:
        """The gates of one block of units for `rows` rows from `row` on, and the update of the cell."""
        layer, buffers = self.layer, self.buffers
        first, count = layer.phases[phase]
        weights = buffers["recurrent"][phase]
        source = buffers["reset"] if phase else buffers["h"]
        width = count * layer.units
        places = [self._place(step, d, row + i) for i in range(rows)]
        # A few sums alone would wait for each other: each is then taken in parts, of every second or fourth product.
        parts = next(p for p in (4, 2, 1) if p == 1 or p * rows * width <= 4 * layer.lanes)
        sums = T.alloc_buffer((parts * rows * width,), layer.dtype, scope="local")
        for i in range(rows):
            for vector in range(count * layer.vectors):
                gate, unit = vector // layer.vectors, vector % layer.vectors * layer.lanes
                with T.vectorized(0, layer.lanes) as lane:
                    if layer.reset_after and gate == 2:
                        start = buffers["extra"][d, block, 0, unit + lane]
                    else:
                        start = buffers["projected"][places[i], row + i, d, block, first + gate, unit + lane]
                    T.buffer_store(sums, start, [i * width + vector * layer.lanes + lane])
        for place in range(rows * width, parts * rows * width, layer.lanes):
            with T.vectorized(0, layer.lanes) as lane:
                T.buffer_store(sums, const(0, layer.dtype), [place + lane])

        def multiply(k: Expr, part: Expr | int) -> None:
            with T.unroll(0, rows) as i:
                h = source[self._state(source, step % 2, d, row + i, k)]
                with T.unroll(0, count * layer.vectors) as vector, T.vectorized(0, layer.lanes) as lane:
                    place = (part * rows + i) * width + vector * layer.lanes + lane
                    unit = vector % layer.vectors * layer.lanes + lane
                    weight = weights[d, block, k, vector // layer.vectors, unit]
                    T.buffer_store(sums, sums[place] + h * weight, [place])

        unrolled = layer.hidden // UNROLL * UNROLL
        if unrolled:
            with T.serial(0, layer.hidden // UNROLL) as outer, T.unroll(0, UNROLL) as inner:
                multiply(outer * UNROLL + inner, inner % parts)
        if unrolled < layer.hidden:
            with T.serial(0, layer.hidden - unrolled) as k:
                multiply(unrolled + k, 0)
        for part in range(1, parts):
            for place in range(0, rows * width, layer.lanes):
                with T.vectorized(0, layer.lanes) as lane:
                    total = sums[place + lane] + sums[part * rows * width + place + lane]
                    T.buffer_store(sums, total, [place + lane])
        for i in range(rows):
            for unit in range(0, layer.units, layer.lanes):
                cell = _Cell(self, step, places[i], d, block, row + i, unit, sums, i * width)
                getattr(cell, f"{layer.cell.lower()}{phase}")()
            if phase == len(layer.phases) - 1:
                self._store(step, places[i], d, block, row + i)

    def alive(self, step: Expr, row: Expr) -> Expr | None:
        """Whether `step` lies within the row's length; None where all rows have all steps."""
        lengths = self.buffers["lengths"]
        return None if lengths is None else step < lengths[row]

    def _place(self, step: Expr, d: Expr, row: Expr) -> Expr:
        """The input position that the row reads at `step`; in reverse, its own last one comes first."""
        layer, lengths = self.layer, self.buffers["lengths"]
        if layer.directions == 1 and not layer.reverse:
            return step
        if lengths is None:
            backward = layer.steps - 1 - step
        else:  # a length beyond T reads nothing beyond T
            backward = tirx.max(tirx.min(lengths[row], layer.steps) - 1 - step, 0)
            backward = tirx.Select(step < lengths[row], backward, step)
        return T.bind(backward if layer.directions == 1 else tirx.Select(d == 0, step, backward))

    def _store(self, step: Expr, at: Expr, d: Expr, block: Expr, row: Expr) -> None:
        """Store the new h to Y, without the padding of the last block."""
        layer, buffers = self.layer, self.buffers
        ragged = layer.hidden % layer.units
        extent = tirx.min(layer.hidden - block * layer.units, layer.units) if ragged else layer.units
        with T.serial(0, extent) as u:
            unit = block * layer.units + u
            value = buffers["h"][(step + 1) % 2, d, row, unit]
            if (alive := self.alive(step, row)) is not None:
                value = tirx.Select(alive, value, const(0, layer.dtype))
            T.buffer_store(buffers["y"], value, [at, d, row, unit])


@dataclass(frozen=True, slots=True)
class _Cell:
    """The update of one vector of hidden units, from the sums of its gates."""

    template: _Template
    step: Expr
    at: Expr
    d: Expr
    block: Expr
    row: Expr
    unit: int
    sums: tirx.Buffer
    base: int

    @contextmanager
    def _lanes(self) -> Iterator[Expr]:
        with T.vectorized(0, self.template.layer.lanes) as lane:
            yield lane

    def _set(self, buffer: tirx.Buffer, value: Callable[[Expr], Expr], index: Callable[[Expr], Sequence[Expr]]) -> None:
        with self._lanes() as lane:
            T.buffer_store(buffer, value(lane), index(lane))

    def _gate(self, gate: int) -> Callable[[Expr], Expr]:
        place = self.base + gate * self.template.layer.units + self.unit
        return lambda lane: self.sums[place + lane]

    def _apply(self, gate: int, value: Callable[[Expr], Expr]) -> None:
        place = self.base + gate * self.template.layer.units + self.unit
        self._set(self.sums, value, lambda lane: [place + lane])

    def _hidden(self, lane: Expr) -> tuple[Expr, ...]:
        return self.d, self.row, self.block * self.template.layer.units + self.unit + lane

    def _old(self, lane: Expr) -> Expr:
        return self.template.buffers["h"][(self.step % 2, *self._hidden(lane))]

    def _kept(self, new: Expr, old: Expr) -> Expr:
        """A state after the step: the old one where the row has ended."""
        alive = self.template.alive(self.step, self.row)
        return new if alive is None else tirx.Select(alive, new, old)

    def _new(self, value: Callable[[Expr], Expr]) -> None:
        self._set(
            self.template.buffers["h"],
            lambda lane: self._kept(value(lane), self._old(lane)),
            lambda lane: ((self.step + 1) % 2, *self._hidden(lane)),
        )

    def _keep(self, values: dict[int, Callable[[Expr], Expr]]) -> None:
        """Keep gates for the gradient, if there is one."""
        kept = self.template.buffers["kept"]
        for slot, value in values.items() if kept is not None else ():
            with self._lanes() as lane:
                place = self.at, self.row, self.d, self.block, slot, self.unit + lane
                T.buffer_store(kept, value(lane), place)

    def lstm0(self) -> None:
        """c = f c + i tanh(g), h = o tanh(c); a peephole adds p c to a gate, the new c for the output gate."""
        f, (g, h) = self.template.f, self.template.gh
        c, peepholes = self.template.buffers["c"], self.template.buffers["extra"]

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
        self._keep({gate: self._gate(gate) for gate in range(4)} | {4: lambda lane: c[self._hidden(lane)]})

    def gru0(self) -> None:
        """The update gate z, and r h for the second product, or, where the reset comes after it, all of the step."""
        f, (g,) = self.template.f, self.template.gh
        update, reset = self._gate(0), self._gate(1)
        if not self.template.layer.reset_after:
            self._set(self.template.buffers["update"], lambda lane: f(update(lane)), self._hidden)
            self._set(self.template.buffers["reset"], lambda lane: f(reset(lane)) * self._old(lane), self._hidden)
            return
        product = self._gate(2)
        projected = self.template.buffers["projected"]
        self._apply(0, lambda lane: f(update(lane)))
        self._apply(1, lambda lane: f(reset(lane)))
        self._keep({1: reset, 3: product})
        self._apply(1, lambda lane: reset(lane) * product(lane))
        self._apply(
            2,
            lambda lane: g(projected[self.at, self.row, self.d, self.block, 2, self.unit + lane] + reset(lane)),
        )
        self._keep({0: update, 2: product})
        self._new(lambda lane: (const(1, self.template.layer.dtype) - update(lane)) * product(lane)
                  + update(lane) * self._old(lane))  # fmt: skip

    def gru1(self) -> None:
        """h = (1 - z) n + z h."""
        (g,) = self.template.gh
        new = self._gate(0)
        self._apply(0, lambda lane: g(new(lane)))

        def mixed(lane: Expr) -> Expr:
            z = self.template.buffers["update"][self._hidden(lane)]
            return (const(1, self.template.layer.dtype) - z) * new(lane) + z * self._old(lane)

        self._new(mixed)

    def rnn0(self) -> None:
        """h = f(sum)."""
        self._new(lambda lane: self.template.f(self._gate(0)(lane)))


def _pragma(key: str) -> AttrFrame:
    """A pragma for TVM's code generator: where its thread pool starts, or where the threads meet at a barrier."""
    return T.attr(tirx.const(0), f"pragma_{key}", 1)
