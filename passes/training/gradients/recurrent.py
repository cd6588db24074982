"""LSTM and GRU: the forward pass keeps the gates, the backward pass goes through time once for each direction.

Only the recurrence is sequential. The gradients of weights, biases and inputs are products and sums over all steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import array_of
from graphopt.passes.training.gradients.context import Context, Gradients, Kept, Thunk, shape_of

_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_GATES = {"LSTM": 4, "GRU": 3}


def activations_of(node: ir.Node) -> list[str]:
    """The activations of all directions, one after another."""
    directions = 2 if node.attributes.get_string("direction", "forward") == "bidirectional" else 1
    usual = list(_ACTIVATIONS[node.op_type]) * directions
    return [name.capitalize() for name in node.attributes.get_strings("activations", usual) or usual]


def check(node: ir.Node) -> str | None:
    """The forms that PyTorch and Keras export."""
    inputs = [*node.inputs, *[None] * (8 - len(node.inputs))]
    usual = _ACTIVATIONS[node.op_type]
    given = activations_of(node)
    lengths = array_of(inputs[4])
    whole = lengths is not None and bool((lengths == shape_of(node.inputs[0])[0]).all())
    relu = node.op_type == "RNN" and set(given) <= {"Tanh", "Relu"}
    if not relu and given != list(usual) * (len(given) // len(usual)):
        return f"activations other than {', '.join(usual)} have no gradient here"
    coupled = node.attributes.get_int("input_forget", 0)
    if "clip" in node.attributes or coupled:
        return "clip and input_forget have no gradient here"
    if inputs[4] is not None and not whole:
        return "sequence_lens has no gradient here; pad the sequences and mask the loss"
    if inputs[7] is not None:
        return "peepholes have no gradient here"
    if node.attributes.get_int("layout", 0):
        return "layout 1 has no gradient here; transpose the input"
    return None


@dataclass(frozen=True)
class Direction:
    """Operands of one direction, with time running forward in each, and what its forward pass kept."""

    x: ir.Value  # [T, N, I]
    w: ir.Value  # [G H, I]
    r: ir.Value  # [G H, H]
    b: ir.Value  # [2 G H]
    starts: tuple[ir.Value, ...]  # h0, for LSTM c0: [N, H]


def backwards_in_time(ctx: Context, value: ir.Value) -> ir.Value:
    """The last step first."""
    bounds = ([-1], [-(2**62)], [0], [-1])
    return ctx.result("Slice", [value, *map(ctx.ints, bounds)], shape=shape_of(value))


def runs_backwards(node: ir.Node, place: int) -> bool:
    """Whether the direction `place` begins with the last step."""
    return place == 1 or node.attributes.get_string("direction", "forward") == "reverse"


def directions_of(ctx: Context, node: ir.Node) -> list[Direction]:
    """The operands of each direction of an LSTM, GRU or RNN."""
    x, w, r = node.inputs[:3]
    assert x is not None
    assert w is not None
    assert r is not None
    b, _, h0, c0 = ([*node.inputs[3:], *[None] * 4])[:4]
    count, rows, _ = shape_of(w)
    hidden = shape_of(r)[2]
    batch = shape_of(x)[1]
    turned = backwards_in_time(ctx, x) if any(runs_backwards(node, place) for place in range(count)) else x

    def of(value: ir.Value | None, place: int, shape: Sequence[int]) -> ir.Value:
        if value is None:
            return ctx.zeros(shape, x)
        if count == 1:
            return ctx.reshape(value, shape)
        index = ctx.constant(np.array(place, np.int64))
        return ctx.result("Gather", [value, index], {"axis": 0}, shape=shape)

    return [
        Direction(
            turned if runs_backwards(node, place) else x,
            of(w, place, (rows, shape_of(w)[2])),
            of(r, place, (rows, hidden)),
            of(b, place, (2 * rows,)),
            tuple(of(start, place, (batch, hidden)) for start in ((h0, c0) if node.op_type == "LSTM" else (h0,))),
        )
        for place in range(count)
    ]


def joined_directions(ctx: Context, parts: Sequence[ir.Value], axis: int) -> ir.Value:
    """The parts, one for each direction, along a new axis."""
    wide = []
    for part in parts:
        shape = list(shape_of(part))
        wide.append(ctx.reshape(part, [*shape[:axis], 1, *shape[axis:]]))
    if len(wide) == 1:
        return wide[0]
    shape = list(shape_of(wide[0]))
    shape[axis] = len(wide)
    return ctx.result("Concat", wide, {"axis": axis}, shape=shape)


def keep_gates(ctx: Context, node: ir.Node) -> None:
    """Y, Y_h, Y_c = LSTM(X, W, R, B, , h0, c0)  ->  Y, gates, C = LSTMTraining(X, W, R, B, h0, c0) in each direction.

    Kept for each direction: Y, gates, and the cells C (GRU: what the reset gate multiplies, U).
    """
    kept: list[ir.Value] = []
    ys: list[ir.Value] = []
    lasts: list[list[ir.Value]] = [[], []]
    for place, each in enumerate(directions_of(ctx, node)):
        steps, batch, _ = shape_of(each.x)
        hidden = shape_of(each.r)[1]
        line = (steps, batch, hidden)
        gates = (steps, batch, _GATES[node.op_type] * hidden)
        operands = [each.x, each.w, each.r, each.b, *each.starts]
        results = ctx.results(
            f"{node.op_type}Training", operands, outputs=[(shape, each.x.dtype) for shape in (line, gates, line)]
        )
        kept += [*results, each.x, each.w, each.r, each.b, *each.starts]
        ys.append(backwards_in_time(ctx, results[0]) if runs_backwards(node, place) else results[0])
        for which, value in enumerate((results[0], results[2])):
            if which + 1 < len(node.outputs):
                bounds = ([steps - 1], [steps], [0])
                last = ctx.result("Slice", [value, *map(ctx.ints, bounds)], shape=(1, batch, hidden))
                lasts[which].append(ctx.reshape(last, (batch, hidden)))
    outputs = {0: joined_directions(ctx, ys, 1)}
    outputs |= {1 + which: joined_directions(ctx, parts, 0) for which, parts in enumerate(lasts) if parts}
    ctx.kept[node] = Kept(tuple(kept), outputs)


def recurrent(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """LSTMGradient or GRUGradient in each direction."""
    lstm = node.op_type == "LSTM"
    count = shape_of(node.inputs[1])[0]
    kept = ctx.kept[node].values
    size = len(kept) // count
    done: dict[int, _Backward] = {}

    def backward(place: int) -> _Backward:
        if place not in done:
            done[place] = _Backward(ctx, node, dys, place, kept[place * size : (place + 1) * size])
        return done[place]

    def joined(name: str) -> Thunk:
        return lambda: joined_directions(ctx, [getattr(backward(place), name)() for place in range(count)], 0)

    def of_x() -> ir.Value:
        parts = [backward(place).x() for place in range(count)]
        return parts[0] if count == 1 else ctx.op("Add", *parts)

    gradients: dict[int, Thunk] = {0: of_x, 1: joined("w"), 2: joined("r"), 3: joined("b"), 5: joined("h0")}
    if lstm:
        gradients[6] = joined("c0")
    return gradients


class _Backward:
    """The gradients of one direction; the pass through time is emitted once."""

    def __init__(
        self, ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None], place: int, kept: Sequence[ir.Value]
    ) -> None:
        self.ctx, self.turned = ctx, runs_backwards(node, place)
        y, gates, inner, self.input, self.weight, recurrence, _, *starts = kept
        steps, batch, hidden = shape_of(y)
        self.steps, self.rows = steps, steps * batch
        line = (steps, batch, hidden)
        directions = shape_of(node.inputs[1])[0]

        def of(value: ir.Value | None, axis: int, shape: tuple[int, ...]) -> ir.Value:
            if value is None:
                return ctx.zeros(shape, y)
            if directions == 1:
                return ctx.reshape(value, shape)
            index = ctx.constant(np.array(place, np.int64))
            return ctx.result("Gather", [value, index], {"axis": axis}, shape=shape)

        dy, dh, dc = ([*dys, None, None])[:3]
        arriving = of(dy, 1, line)
        if self.turned and dy is not None:
            arriving = backwards_in_time(ctx, arriving)
        last = of(dh, 0, (batch, hidden))
        self.y, self.h_start = y, starts[0]
        wide = shape_of(gates)
        if node.op_type == "LSTM":
            operands = [arriving, gates, inner, starts[1], recurrence, last, of(dc, 0, (batch, hidden))]
            self.d_input, *self.d_starts = ctx.results(
                "LSTMGradient",
                operands,
                outputs=[(wide, y.dtype), ((batch, hidden), y.dtype), ((batch, hidden), y.dtype)],
            )
            self.d_hidden = self.d_input
            return
        operands = [arriving, gates, inner, y, starts[0], recurrence, last]
        self.d_input, d_linear, *self.d_starts = ctx.results(
            "GRUGradient", operands, outputs=[(wide, y.dtype), (line, y.dtype), ((batch, hidden), y.dtype)]
        )
        bounds = ([0], [2 * hidden], [2])
        gates_zr = ctx.result("Slice", [self.d_input, *map(ctx.ints, bounds)], shape=(steps, batch, 2 * hidden))
        self.d_hidden = ctx.result("Concat", [gates_zr, d_linear], {"axis": 2}, shape=wide)

    def _flat(self, value: ir.Value) -> ir.Value:
        return self.ctx.reshape(value, (self.rows, shape_of(value)[-1]))

    def _product(self, left: ir.Value, right: ir.Value) -> ir.Value:
        """left^T right over all steps and samples."""
        a, b = self._flat(left), self._flat(right)
        return self.ctx.result("Gemm", [a, b], {"transA": 1}, shape=(shape_of(a)[1], shape_of(b)[1]))

    def x(self) -> ir.Value:
        shape = shape_of(self.input)
        flat = self.ctx.result("Gemm", [self._flat(self.d_input), self.weight], shape=(self.rows, shape[2]))
        gradient = self.ctx.reshape(flat, shape)
        return backwards_in_time(self.ctx, gradient) if self.turned else gradient

    def w(self) -> ir.Value:
        return self._product(self.d_input, self.input)

    def r(self) -> ir.Value:
        """With the state before each step."""
        ctx, (steps, batch, hidden) = self.ctx, shape_of(self.y)
        first = ctx.reshape(self.h_start, (1, batch, hidden))
        if steps > 1:
            bounds = ([0], [steps - 1], [0])
            earlier = ctx.result("Slice", [self.y, *map(ctx.ints, bounds)], shape=(steps - 1, batch, hidden))
            first = ctx.result("Concat", [first, earlier], {"axis": 0}, shape=shape_of(self.y))
        return self._product(self.d_hidden, first)

    def b(self) -> ir.Value:
        ctx = self.ctx
        of_input = ctx.sum(self.d_input, (0, 1))
        of_hidden = of_input if self.d_hidden is self.d_input else ctx.sum(self.d_hidden, (0, 1))
        shape = [2 * shape_of(of_input)[0]]
        return ctx.result("Concat", [of_input, of_hidden], {"axis": 0}, shape=shape)

    def h0(self) -> ir.Value:
        return self.d_starts[0]

    def c0(self) -> ir.Value:
        return self.d_starts[1]
