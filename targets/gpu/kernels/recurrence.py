"""LSTM, GRU and RNN over time: a kernel for each step, in which the blocks share the hidden units.

A step is bound by reading R, which stays in the second-level cache from one step to the next. A block takes a few
units with all their gates: its threads divide each row of R among themselves, add up what they have in shared memory,
and then the cell of these units is updated, in the same kernel. The end of a kernel is the barrier between steps.

All steps run the same few kernels: the number of the step lies in memory. A kernel reads it from one of two places, and
its first thread leaves the next number in the other one, which no other thread reads meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.code import RESIDENT, SYNCHRONIZED
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels.attention.launch import stride
from graphopt.targets.gpu.kernels.recurrence_launch import VECTOR, LaunchConfig, Layer

MOST_STEPS = 4096
"""Kernels that are launched one after the other for a layer, or twice as many for a GRU that resets first."""


def _sigmoid(x: Expr) -> Expr:
    one = const(1, str(x.ty.dtype))
    return one / (one + tirx.exp(-x))


def _relu(x: Expr) -> Expr:
    zero = const(0, str(x.ty.dtype))
    return tirx.Select(x < zero, zero, x)


ACTIVATIONS: Mapping[str, Callable[[Expr], Expr]] = {"Sigmoid": _sigmoid, "Tanh": tirx.tanh, "Relu": _relu}


def attributes(layer: Layer, config: LaunchConfig, device: GpuSpec) -> dict[str, int]:
    """Attributes of the function that holds `compute`: its barriers are complete, and its resident blocks."""
    fitting = min(device.registers // (config.threads * 128), device.blocks_per_multiprocessor)
    return {SYNCHRONIZED: 1, RESIDENT: max(1, fitting)}


def compute(
    layer: Layer,
    config: LaunchConfig,
    projected: te.Tensor,
    recurrent: te.Tensor,
    initial: Sequence[te.Tensor],
    reset_bias: te.Tensor | None = None,
    peepholes: te.Tensor | None = None,
    lengths: te.Tensor | None = None,
) -> list[te.Tensor]:
    """The recurrence over all steps. The function needs `attributes`.

    Args:
        projected: [T * B, D * G * H], the inputs times W, plus the biases.
        recurrent: R[D, G * H, H].
        initial: h (and c) before the first step.
        reset_bias: [D, 6 * H], of which a GRU with `reset_after` adds the last H before it resets.
        peepholes: [D, 3 * H] for the input, output and forget gate of an LSTM.
        lengths: [B], int32, the steps of each row, at most T; None where all have T. After them Y is zero.

    Returns:
        Y, the last h, for an LSTM the last c.
    """
    extra = [t for t in (reset_bias, peepholes) if t is not None]
    inputs = [projected, recurrent, *initial, *extra, *([] if lengths is None else [lengths])]
    shapes = [layer.sequence, *[layer.state] * len(initial)]

    def body(ins: Sequence[tirx.Buffer], outs: Sequence[tirx.Buffer]) -> tirx.Stmt:
        given = iter(ins)
        buffers: dict[str, Any] = {"projected": next(given), "recurrent": next(given)}
        buffers["initial"] = [next(given) for _ in initial]
        buffers["extra"] = next(given) if extra else None
        buffers["lengths"] = next(given, None)
        buffers["y"], buffers["last"], *others = outs
        buffers["c"] = others[0] if others else None
        return _Template(layer, config, buffers).statement()

    outputs = te.extern(shapes, inputs, body, dtype=[layer.dtype] * len(shapes), name="recurrence")
    return list(outputs)


class _Template:
    """Emits the kernels of one layer; their differences are plain attributes while one is emitted."""

    def __init__(self, layer: Layer, config: LaunchConfig, buffers: dict[str, Any]) -> None:
        self.layer, self.config, self.buffers = layer, config, buffers
        self.per_direction = len(layer.activations) // layer.directions
        self.f, *self.gh = [self._activation(i) for i in range(self.per_direction)]
        self.vector = VECTOR if layer.hidden % VECTOR == 0 else 1

    def _activation(self, position: int) -> Callable[[Expr], Expr]:
        """f, g or h of the direction that is emitted; what goes into f and g is clipped."""
        layer = self.layer
        forward, *backward = [ACTIVATIONS[name] for name in layer.activations[position :: self.per_direction]]
        if not backward or backward == [forward]:
            either = forward
        else:

            def either(x: Expr) -> Expr:
                return tirx.if_then_else(self.d == 0, forward(x), backward[0](x))

        if layer.clip is None or position > 1:
            return either
        limit, dtype = layer.clip, layer.dtype
        return lambda x: either(tirx.max(tirx.min(x, const(limit, dtype)), const(-limit, dtype)))

    def statement(self) -> tirx.Stmt:
        """All launches: the first step, which begins with the given states, then the others two by two."""
        layer, buffers = self.layer, self.buffers
        with IRBuilder() as builder:
            with T.prim_func(s_tir=True):
                T.func_name("main")
                other = T.alloc_buffer(layer.state, layer.dtype, scope="global") if layer.steps > 1 else None
                # Step s leaves h in the place s % 2; the last one's is the output.
                buffers["h"] = [other, buffers["last"]] if layer.steps % 2 == 0 else [buffers["last"], other]
                self.number: Any = T.alloc_buffer((2,), "int32", scope="global") if layer.steps > 1 else None
                if len(layer.phases) > 1:
                    buffers["update"] = T.alloc_buffer(layer.state, layer.dtype, scope="global")
                    buffers["reset"] = T.alloc_buffer(layer.state, layer.dtype, scope="global")
                self._step(0, first=True)
                pairs, rest = divmod(layer.steps - 1, 2)
                if pairs:
                    with T.serial(0, pairs):
                        self._step(1)
                        self._step(0)
                if rest:
                    self._step(1)
            return builder.get().body

    def _step(self, parity: int, first: bool = False) -> None:
        """The kernels of one step."""
        layer, config = self.layer, self.config
        self.parity, self.first = parity, first
        for phase, (gate, count) in enumerate(layer.phases):
            self.phase, self.gate, self.count = phase, gate, count
            with (
                T.launch_thread("blockIdx.x", math.ceil(layer.hidden / config.units)) as block,
                T.launch_thread("blockIdx.y", math.ceil(layer.batch / config.rows)) as tile,
                T.launch_thread("blockIdx.z", layer.directions) as direction,
                T.launch_thread("threadIdx.x", config.threads) as thread,
            ):
                self.first_unit, self.first_row, self.d = block * config.units, tile * config.rows, direction
                self.thread, self.lane, self.own = thread, thread % config.lanes, thread // config.lanes
                self._kernel(tirx.all(block == 0, tile == 0, direction == 0, thread == 0))

    def _kernel(self, leader: Expr) -> None:
        layer, config = self.layer, self.config
        self.step: Expr | int = 0
        if not self.first:
            step = T.alloc_buffer((1,), "int32", scope="local")
            T.buffer_store(step, self.number[self.parity], [0])
            self.step = step[0]
        if self.number is not None and self.phase == len(layer.phases) - 1:
            with when(leader):
                T.buffer_store(self.number, self.step + 1, [1 - self.parity])
        parts = config.units * config.rows * self.count
        self.totals = parts * stride(config.lanes)
        # One buffer: TVM would overlap two whose lifetimes seem disjoint, without a barrier between.
        self.shared = T.alloc_buffer((self.totals + parts,), layer.dtype, scope="shared")
        starts = self._local(math.ceil(parts / config.threads))
        with self._items(parts) as (turn, item):  # in flight while R is read
            T.buffer_store(starts, self._start(*self._part(item)), [turn])
        cells = config.units * config.rows
        self.c_before = self._local(math.ceil(cells / config.threads))
        self.h_before = self._local(math.ceil(cells / config.threads))
        with self._items(cells) as (turn, item):
            row, unit = item // config.units, item % config.units
            index = self._state(self._row(row), self._unit(unit))
            if layer.cell == "LSTM":
                source = self.buffers["initial"][1] if self.first else self.buffers["c"]
                T.buffer_store(self.c_before, source[index], [turn])
            if layer.cell == "GRU" or self.buffers["lengths"] is not None:
                T.buffer_store(self.h_before, self._source()[index], [turn])
        self._products()
        T.evaluate(T.tvm_storage_sync("shared"))
        with self._items(parts) as (turn, item):
            self._add_up(item, starts[turn])
        T.evaluate(T.tvm_storage_sync("shared"))
        with self._items(cells) as (turn, item):
            row, unit = item // config.units, item % config.units
            places = (
                (self.first_unit + unit, layer.hidden, config.units),
                (self.first_row + row, layer.batch, config.rows),
            )
            with when(inside(*places)):
                cell = _Cell(self, turn, unit, row)
                getattr(cell, f"{layer.cell.lower()}{self.phase}")()

    def _local(self, count: int) -> tirx.Buffer:
        return T.alloc_buffer((count,), self.layer.dtype, scope="local")

    @contextmanager
    def _items(self, count: int) -> Iterator[tuple[Expr, Expr]]:
        """Distribute `count` items over the threads of a block: a thread's turns, and its item in each."""
        threads = self.config.threads
        with T.unroll(0, math.ceil(count / threads)) as turn:
            item = self.thread + turn * threads
            with when(inside((item, count, threads))):
                yield turn, item

    def _part(self, item: Expr) -> tuple[Expr, Expr, Expr]:
        """Gate, row and unit of a sum; neighbours are units."""
        config = self.config
        return item // (config.units * config.rows), item // config.units % config.rows, item % config.units

    def _unit(self, unit: Expr) -> Expr:
        """A hidden unit that exists: the last block computes some that are not stored."""
        layer, at = self.layer, self.first_unit + unit
        return at if layer.hidden % self.config.units == 0 else tirx.min(at, layer.hidden - 1)

    def _row(self, row: Expr) -> Expr:
        """A row of the batch that exists."""
        layer, at = self.layer, self.first_row + row
        return at if layer.batch % self.config.rows == 0 else tirx.min(at, layer.batch - 1)

    def _state(self, row: Expr, unit: Expr) -> tuple[Expr, Expr, Expr]:
        return (row, self.d, unit) if self.layer.batch_first else (self.d, row, unit)

    def _source(self) -> tirx.Buffer:
        """The h before this step."""
        return self.buffers["initial"][0] if self.first else self.buffers["h"][1 - self.parity]

    def _start(self, gate: Expr, row: Expr, unit: Expr) -> Expr:
        """What the products of R are added to."""
        layer, at = self.layer, self._unit(unit)
        value = self.projected(self.gate + gate, row, unit)
        if layer.reset_after:
            value = tirx.if_then_else(gate == 2, self.buffers["extra"][self.d, 5 * layer.hidden + at], value)
        return value

    def projected(self, gate: Expr | int, row: Expr, unit: Expr) -> Expr:
        """The product of this step's input."""
        layer, row, unit = self.layer, self._row(row), self._unit(unit)
        column = (self.d * layer.gates + gate) * layer.hidden + unit
        return self.buffers["projected"][self.place(row) * layer.batch + row, column]

    def place(self, row: Expr) -> Expr | int:
        """Which of the inputs the row takes at this step: in reverse its own last one first."""
        layer, lengths, step = self.layer, self.buffers["lengths"], self.step
        if layer.directions == 1 and not layer.reverse:
            return step
        if lengths is None:
            backward: Expr | int = layer.steps - 1 - step
        else:  # a length beyond T reads nothing beyond T
            backward = tirx.max(tirx.min(lengths[row], layer.steps) - 1 - step, 0)
            backward = tirx.Select(step < lengths[row], backward, step)
        return backward if layer.directions == 1 else tirx.Select(self.d == 0, step, backward)

    def _products(self) -> None:
        """This thread's part of the rows of R of one unit, times that of h of all rows of the batch."""
        layer, config, vector = self.layer, self.config, self.vector
        source = self.buffers["reset"] if self.phase else self._source()
        sums = self._local(self.count * config.rows)
        with T.unroll(0, self.count * config.rows) as i:
            T.buffer_store(sums, const(0, layer.dtype), [i])
        unit = self._unit(self.own)
        chunk = config.lanes * vector
        full_chunks, rest = divmod(layer.hidden, chunk)

        def multiply(turn: Expr) -> None:
            k = turn * chunk + self.lane * vector
            weights, h = self._local(self.count * vector), self._local(config.rows * vector)
            with T.unroll(0, self.count) as gate, T.vectorized(0, vector) as lane:
                row = (self.gate + gate) * layer.hidden + unit
                T.buffer_store(weights, self.buffers["recurrent"][self.d, row, k + lane], [gate * vector + lane])
            with T.unroll(0, config.rows) as row, T.vectorized(0, vector) as lane:
                T.buffer_store(h, source[self._state(self._row(row), k + lane)], [row * vector + lane])
            with T.unroll(0, vector) as lane, T.unroll(0, self.count) as gate, T.unroll(0, config.rows) as row:
                product = weights[gate * vector + lane] * h[row * vector + lane]
                at = gate * config.rows + row
                T.buffer_store(sums, sums[at] + product, [at])

        if full_chunks:
            short = full_chunks * (self.count + config.rows) * vector <= 96
            with (T.unroll if short else T.serial)(0, full_chunks) as turn:
                multiply(turn)
        if rest:
            with when(full_chunks * chunk + self.lane * vector < layer.hidden):
                multiply(tirx.IntImm("int32", full_chunks))
        with T.unroll(0, self.count) as gate, T.unroll(0, config.rows) as row:
            part = (gate * config.rows + row) * config.units + self.own
            T.buffer_store(self.shared, sums[gate * config.rows + row], [part * stride(config.lanes) + self.lane])

    def _add_up(self, item: Expr, start: Expr) -> None:
        """One sum of the partial sums of all lanes."""
        lanes = self.config.lanes
        parts, total = self._local(VECTOR), self._local(1)
        with T.vectorized(0, VECTOR) as lane:
            T.buffer_store(parts, self.shared[item * stride(lanes) + lane], [lane])
        with T.unroll(0, lanes // VECTOR - 1) as quad, T.vectorized(0, VECTOR) as lane:
            part = self.shared[item * stride(lanes) + (quad + 1) * VECTOR + lane]
            T.buffer_store(parts, parts[lane] + part, [lane])
        T.buffer_store(total, (parts[0] + parts[1]) + (parts[2] + parts[3]), [0])
        T.buffer_store(self.shared, start + total[0], [self.totals + item])


@dataclass(frozen=True, slots=True)
class _Cell:
    """The update of one hidden unit in one row of the batch, from the sums of its gates."""

    template: _Template
    turn: Expr
    unit: Expr
    row: Expr

    def _gate(self, gate: int) -> Expr:
        w = self.template
        return w.shared[w.totals + (gate * w.config.rows + self.row) * w.config.units + self.unit]

    @property
    def _index(self) -> tuple[Expr, Expr, Expr]:
        w = self.template
        return w._state(w.first_row + self.row, w.first_unit + self.unit)

    def _keep(self, value: Expr) -> Expr:
        """Store a value that is used twice in a register."""
        kept = self.template._local(1)
        T.buffer_store(kept, value, [0])
        return kept[0]

    def _alive(self) -> Expr | None:
        """Whether the step is one of the row's; None where all are."""
        lengths = self.template.buffers["lengths"]
        return None if lengths is None else self.template.step < lengths[self.template.first_row + self.row]

    def _new(self, value: Expr) -> None:
        """The new h, and Y; a row that has ended keeps its h, and its Y is zero."""
        w, value, alive = self.template, self._keep(value), self._alive()
        at, row, unit = w.place(w.first_row + self.row), w.first_row + self.row, w.first_unit + self.unit
        place = (row, at, w.d, unit) if w.layer.batch_first else (at, w.d, row, unit)
        shown = value
        if alive is not None:
            shown = tirx.Select(alive, value, const(0, w.layer.dtype))
            value = tirx.Select(alive, value, w.h_before[self.turn])
        T.buffer_store(w.buffers["h"][w.parity], value, self._index)
        T.buffer_store(w.buffers["y"], shown, place)

    def lstm0(self) -> None:
        """c = f c + i tanh(g), h = o tanh(c); a peephole adds p c to a gate, the new c for the output gate."""
        w = self.template
        f, (g, h) = w.f, w.gh
        before, peepholes, alive = w.c_before[self.turn], w.buffers["extra"], self._alive()

        def looked(gate: int, peephole: int, c: Expr) -> Expr:
            total = self._gate(gate)
            if peepholes is not None:
                total = total + peepholes[w.d, peephole * w.layer.hidden + w.first_unit + self.unit] * c
            return f(total)

        kept = self._keep(looked(2, 2, before) * before + looked(0, 0, before) * g(self._gate(3)))
        after = kept if alive is None else self._keep(tirx.Select(alive, kept, before))
        T.buffer_store(w.buffers["c"], after, self._index)
        self._new(looked(1, 1, after) * h(after))

    def gru0(self) -> None:
        """The update gate z, and r h for the second kernel; or all of the step, if the reset follows R's product."""
        w = self.template
        f, (g,) = w.f, w.gh
        if not w.layer.reset_after:
            T.buffer_store(w.buffers["update"], f(self._gate(0)), self._index)
            T.buffer_store(w.buffers["reset"], f(self._gate(1)) * w.h_before[self.turn], self._index)
            return
        new = g(w.projected(2, self.row, self.unit) + f(self._gate(1)) * self._gate(2))
        self._mix(f(self._gate(0)), new)

    def gru1(self) -> None:
        """The new state n of the second kernel, and the new h."""
        (g,) = self.template.gh
        self._mix(self.template.buffers["update"][self._index], g(self._gate(0)))

    def _mix(self, update: Expr, new: Expr) -> None:
        """h = (1 - z) n + z h."""
        z = self._keep(update)
        self._new((const(1, self.template.layer.dtype) - z) * new + z * self.template.h_before[self.turn])

    def rnn0(self) -> None:
        """h = f(sum)."""
        self._new(self.template.f(self._gate(0)))
