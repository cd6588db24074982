"""LSTM and GRU of a training step: the forward pass that keeps its gates, and the way back through time."""

from __future__ import annotations

from tvm import relax

from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import SCHEDULED
from graphopt.targets.cpu.converters.recurrent import input_products
from graphopt.targets.cpu.kernels.recurrent import backward, forward, rnn

_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


def lstm_training(c: Context, inputs: Inputs) -> Outputs:
    """LSTMTraining."""
    return _forward(c, inputs, "LSTM")


def gru_training(c: Context, inputs: Inputs) -> Outputs:
    """GRUTraining."""
    return _forward(c, inputs, "GRU")


def lstm_gradient(c: Context, inputs: Inputs) -> Outputs:
    """LSTMGradient."""
    dy, gates, inner, start, r, *last = inputs
    names = ("dY", "gates", "C", "c0", "dh_last", "dc_last")
    return _backward(c, r, dict(zip(names, (dy, gates, inner, start, *last), strict=True)), "LSTM")


def gru_gradient(c: Context, inputs: Inputs) -> Outputs:
    """GRUGradient."""
    dy, gates, inner, y, start, r, last = inputs
    names = ("dY", "gates", "U", "Y", "h0", "dh_last")
    return _backward(c, r, dict(zip(names, (dy, gates, inner, y, start, last), strict=True)), "GRU")


def _possible(operands: Inputs) -> bool:
    """Whether the kernels have this dtype, and something to compute."""
    dtype = dtype_of(operands[0])
    return dtype in ("float32", "float64") and all(dtype_of(x) == dtype and 0 not in shape_of(x) for x in operands)


def _forward(c: Context, inputs: Inputs, cell: str) -> Outputs:
    """Y[T, N, H], gates[T, N, G * H], and each step's cells (GRU: what the reset gate multiplies) [T, N, H]."""
    if not _possible(inputs):
        return NotImplemented
    x, *weights, bias = inputs[:4]
    states = inputs[4:]
    steps, batch, _ = shape_of(x)
    hidden, dtype = shape_of(weights[1])[1], dtype_of(x)
    layer = rnn.plan(
        cell,
        (steps, batch, hidden),
        1,
        c.machine,
        dtype,
        activations=_ACTIVATIONS[cell],
        reset_after=cell == "GRU",
    )
    w, r, b = (c.reshape(v, (1, *shape_of(v))) for v in (*weights, bias))
    extra: dict[str, relax.Expr] = {}
    if layer.reset_after:
        extra["reset_bias"] = c.te("pack", lambda v: rnn.pack_vectors(v, layer, 5, 1), b, pattern=OPAQUE)
    packed = c.te("pack", lambda v: rnn.pack_recurrent(v, layer, 0, layer.gates), r, pattern=OPAQUE)
    results = c.builder.emit_te(
        lambda p, q, hs, more: forward.compute(layer, p, [q], hs, **more, keep=True),
        input_products(c, layer, x, w, b),
        packed,
        [c.reshape(state, (1, batch, hidden)) for state in states],
        extra,
        primfunc_name_hint=f"{cell.lower()}_training",
        primfunc_attrs={"op_pattern": OPAQUE, SCHEDULED: 1},
    )
    kept = 1 + len(states)
    y, gates, inner = (c.builder.emit(relax.TupleGetItem(results, i)) for i in (0, kept, kept + 1))
    line = (steps, batch, hidden)
    return [c.reshape(y, line), c.reshape(gates, (steps, batch, layer.gates * hidden)), c.reshape(inner, line)]


def _backward(c: Context, r: relax.Expr, operands: dict[str, relax.Expr], cell: str) -> Outputs:
    """dG[T, N, G * H], then dh0 and dc0[N, H], or for a GRU dU[T, N, H] and dh0."""
    if not _possible([r, *operands.values()]):
        return NotImplemented
    steps, batch, hidden = shape_of(operands["dY"])
    plan = backward.plan(cell, (steps, batch, hidden), c.machine, dtype_of(r))
    packed = c.te("pack", lambda v: backward.pack(v, plan), r, pattern=OPAQUE)
    results = c.builder.emit_te(
        lambda p, *given: backward.compute(plan, p, dict(zip(operands, given, strict=True))),
        packed,
        *operands.values(),
        primfunc_name_hint=f"{cell.lower()}_gradient",
        primfunc_attrs={"op_pattern": OPAQUE, SCHEDULED: 1},
    )
    return [c.builder.emit(relax.TupleGetItem(results, i)) for i in range(3)]
