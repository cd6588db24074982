"""The recurrence of a layer over all time steps as one kernel, with hand-written loops.

A step at small batch is bound by reading R. Each thread reads the same blocks of R in every step, and in every second
step backwards: the blocks that the last step read last are read first, while they are still in the second-level cache.
Steps are separated by a barrier inside one parallel launch, not by launches.

Stacked layers follow one another. Overlapped as a wavefront, a core would have a layer of its own and read all of its R
in every step, where here it reads half of one layer's in half of the time: the same bytes, from the same caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.cpu.kernels.recurrent import sums, threads
from graphopt.targets.cpu.kernels.recurrent.cell import Cell
from graphopt.targets.cpu.kernels.recurrent.rnn import Layer


def compute(
    layer: Layer,
    projected: te.Tensor,
    recurrent: Sequence[te.Tensor],
    initial: Sequence[te.Tensor],
    reset_bias: te.Tensor | None = None,
    peepholes: te.Tensor | None = None,
    lengths: te.Tensor | None = None,
    keep: bool = False,
) -> list[te.Tensor]:
    """The recurrence over all steps.

    Args:
        projected: [T, B, D, UB, G, U], the inputs' products and the biases.
        recurrent: `pack_recurrent` of each of `layer.phases`.
        initial: h (and c) before the first step, each [D, B, H].
        reset_bias: [D, UB, 1, U] for a GRU with `reset_after`.
        peepholes: [D, UB, 3, U] for the input, output and forget gate of an LSTM.
        lengths: [B], int32, the steps of each row, at most T; None where all have T. After them Y is zero.
        keep: Return what the backward pass reads too, of one direction.

    Returns:
        Y[T, D, B, H], the last h[D, B, H], for an LSTM the last c[D, B, H]; with `keep` the gates[T, B, G, H] and
        each step's c[T, B, H], for a GRU what its reset gate multiplies; then workspace of the kernel.
    """
    d, b, h, padded = layer.directions, layer.batch, layer.hidden, layer.blocks * layer.units
    shapes = [(layer.steps, d, b, h), *[(d, b, h)] * len(initial)]
    if keep:
        shapes += [(layer.steps, b, layer.gates, h), (layer.steps, b, h)]
    shapes.append((2, d, b, padded))
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
        if keep:
            buffers["gates"], buffers["inner"] = next(results), next(results)
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
        tiles = -(-layer.batch // layer.rows)

        def stream(task: Expr) -> None:
            d, tile = task // tiles, task % tiles
            with T.serial(0, layer.steps) as step:
                for phase in range(len(layer.phases)):
                    with T.serial(0, layer.blocks) as j:
                        block = T.bind(tirx.Select(step % 2 == 0, j, layer.blocks - 1 - j))
                        threads.of_tile(layer.batch, layer.rows, tile, partial(self._tile, phase, step, d, block))

        return threads.apart(layer.directions * tiles, stream)

    def _shared_steps(self) -> tirx.Stmt:
        """The blocks of each step are divided among the threads, with a barrier after it."""
        layer = self.layer

        def block_of(phase: int, step: Expr, task: Expr) -> None:
            # Loads, because TVM takes many seconds to simplify a division by a variable in every index.
            place = T.alloc_buffer((2,), "int32", scope="local")
            T.buffer_store(place, task // layer.blocks, [0])
            T.buffer_store(place, task % layer.blocks, [1])
            d, block = T.bind(place[0]), T.bind(place[1])
            threads.over_tiles(layer.batch, layer.rows, partial(self._tile, phase, step, d, block))

        return threads.together(layer.steps, layer.directions * layer.blocks, len(layer.phases), block_of)

    def _tile(self, phase: int, step: Expr, d: Expr, block: Expr, row: Expr, rows: int) -> None:
        """The gates of one block of units for `rows` rows from `row` on, and the update of the cell."""
        layer, buffers = self.layer, self.buffers
        first, count = layer.phases[phase]
        weights = buffers["recurrent"][phase]
        source = buffers["reset"] if phase else buffers["h"]
        vectors, width = count * layer.vectors, count * layer.units
        places = [self._place(step, d, row + i) for i in range(rows)]

        def start(i: int, vector: int, lane: Expr) -> Expr:
            gate, unit = vector // layer.vectors, vector % layer.vectors * layer.lanes
            if layer.reset_after and gate == 2:
                return buffers["extra"][d, block, 0, unit + lane]
            return buffers["projected"][places[i], row + i, d, block, first + gate, unit + lane]

        def state(i: Expr, k: Expr) -> Expr:
            return source[self._state(source, step % 2, d, row + i, k)]

        def weight(k: Expr, vector: Expr, lane: Expr) -> Expr:
            return weights[d, block, k, vector // layer.vectors, vector % layer.vectors * layer.lanes + lane]

        run = sums.Run(layer.hidden, state, weight)
        totals = sums.of_products(rows, vectors, layer.lanes, layer.dtype, start, [run])
        for i in range(rows):
            for unit in range(0, layer.units, layer.lanes):
                alive = self.alive(step, row + i)
                cell = Cell(layer, buffers, alive, step, places[i], d, block, row + i, unit, totals, i * width)
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
