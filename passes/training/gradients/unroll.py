"""Recurrences without a backward kernel, written out step by step in operators that have a gradient.

Y, Y_h = RNN(X, W, R, B)  ->  h_1 = Tanh(X[0] W^T + h_0 R^T + b)    h_2 = Tanh(X[1] W^T + h_1 R^T + b)    ...
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.edit import Editor
from graphopt.passes.training.gradients.context import Context, shape_of
from graphopt.passes.training.gradients.recurrent import (
    Direction,
    activations_of,
    backwards_in_time,
    directions_of,
    joined_directions,
    runs_backwards,
)

_GATES = {"RNN": 1, "GRU": 3}


def applies(node: ir.Node) -> bool:
    """Whether `node` is a recurrence that is written out: RNN, and GRU whose reset gate comes before the product."""
    if node.domain or node.op_type not in _GATES:
        return False
    return node.op_type == "RNN" or not node.attributes.get_int("linear_before_reset", 0)


def unroll(editor: Editor, node: ir.Node) -> None:
    """Replace `node` by its steps."""
    ctx = Context(editor)
    ys: list[ir.Value] = []
    lasts: list[ir.Value] = []
    count = shape_of(node.inputs[1])[0]
    activations = activations_of(node)
    with ctx.forward(node):
        for place, each in enumerate(directions_of(ctx, node)):
            states = _steps(ctx, node, each, activations[place * len(activations) // count])
            batch, hidden = shape_of(states[-1])
            lines = [ctx.reshape(state, (1, batch, hidden)) for state in states]
            y = lines[0]
            if len(lines) > 1:
                y = ctx.result("Concat", lines, {"axis": 0}, shape=(len(lines), batch, hidden))
            ys.append(backwards_in_time(ctx, y) if runs_backwards(node, place) else y)
            lasts.append(states[-1])
        results = [joined_directions(ctx, ys, 1), joined_directions(ctx, lasts, 0)]
    for old, new in zip(node.outputs, results, strict=False):
        editor.replace(old, new)
    editor.erase(node)


def _steps(ctx: Context, node: ir.Node, each: Direction, activation: str) -> list[ir.Value]:
    """The state after each step, [N, H]."""
    steps, batch, _ = shape_of(each.x)
    gates = _GATES[node.op_type]
    rows, hidden = shape_of(each.r)
    turned = ctx.transpose(each.w, (1, 0))
    products = ctx.result("MatMul", [each.x, turned], shape=(steps, batch, rows))
    halves = ctx.results("Split", [each.b], {"axis": 0, "num_outputs": 2}, outputs=[((rows,), each.b.dtype)] * 2)
    given = ctx.op("Add", products, ctx.op("Add", *halves))
    inputs = ctx.results(
        "Split", [given], {"axis": 0, "num_outputs": steps}, outputs=[((1, batch, rows), given.dtype)] * steps
    )
    recurrent = ctx.transpose(each.r, (1, 0))
    columns = ctx.results(
        "Split", [recurrent], {"axis": 1, "num_outputs": gates}, outputs=[((hidden, hidden), each.r.dtype)] * gates
    ) if gates > 1 else (recurrent,)  # fmt: skip
    state, states = each.starts[0], []
    for value in inputs:
        x = ctx.reshape(value, (batch, rows))
        state = _gru(ctx, x, state, columns) if gates == 3 else ctx.op(activation, _sum(ctx, x, state, columns[0]))
        states.append(state)
    return states


def _sum(ctx: Context, x: ir.Value, state: ir.Value, matrix: ir.Value) -> ir.Value:
    return ctx.op("Add", x, ctx.result("MatMul", [state, matrix], shape=shape_of(state)))


def _gru(ctx: Context, x: ir.Value, state: ir.Value, columns: tuple[ir.Value, ...]) -> ir.Value:
    """z, r = sigmoid(..), u = tanh(x_u + (r * h) R_u), h = (1 - z) u + z h."""
    shape = shape_of(state)
    x_z, x_r, x_u = ctx.results("Split", [x], {"axis": 1, "num_outputs": 3}, outputs=[(shape, x.dtype)] * 3)
    z = ctx.op("Sigmoid", _sum(ctx, x_z, state, columns[0]))
    r = ctx.op("Sigmoid", _sum(ctx, x_r, state, columns[1]))
    u = ctx.op("Tanh", _sum(ctx, x_u, ctx.op("Mul", r, state), columns[2]))
    return ctx.op("Add", ctx.op("Mul", ctx.op("Sub", 1.0, z), u), ctx.op("Mul", z, state))
