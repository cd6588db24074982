"""LSTMTraining and GRUTraining, which keep their gates, and their gradients."""

from __future__ import annotations

from tvm import relax

from graphopt.targets.common.converters.base import OPAQUE, Context, Converter, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import SCHEDULED
from graphopt.targets.cpu.converters.recurrent import projected_inputs
from graphopt.targets.cpu.kernels import recurrence, rnn
from graphopt.targets.cpu.kernels.training import recurrent as gradients

ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh")}


def training(cell: str) -> Converter:
    """LSTMTraining (X, W, R, B, h0, c0) -> (Y, gates, C), or GRUTraining (X, W, R, B, h0) -> (Y, gates, U)."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        x, w, r, b, *states = inputs
        if dtype_of(x) not in ("float32", "float64") or 0 in (*shape_of(x), *shape_of(w), *shape_of(r)):
            return NotImplemented
        (steps, batch, _), hidden = shape_of(x), shape_of(r)[1]
        layer = rnn.plan(
            cell,
            (steps, batch, hidden),
            1,
            c.machine,
            dtype_of(x),
            activations=ACTIVATIONS[cell],
            reset_after=cell == "GRU",
            keeps=True,
        )
        w, r, b = (c.reshape(each, (1, *shape_of(each))) for each in (w, r, b))
        projected = projected_inputs(c, layer, x, w, b)
        extra: dict[str, relax.Expr] = {}
        if layer.reset_after:
            extra["reset_bias"] = c.te("pack", lambda v: rnn.pack_vectors(v, layer, 5, 1), b, pattern=OPAQUE)
        packed = c.te("pack", lambda v: rnn.pack_recurrent(v, layer, *layer.phases[0]), r, pattern=OPAQUE)
        initial = [c.reshape(state, (1, batch, hidden)) for state in states]
        results = c.builder.emit_te(
            lambda p, ws, hs, more: recurrence.compute(layer, p, ws, hs, **more),
            projected,
            [packed],
            initial,
            extra,
            primfunc_name_hint=f"{cell.lower()}_training",
            primfunc_attrs={"op_pattern": OPAQUE, SCHEDULED: 1},
        )
        y = c.reshape(c.builder.emit(relax.TupleGetItem(results, 0)), (steps, batch, hidden))
        kept = c.builder.emit(relax.TupleGetItem(results, 1 + len(states)))
        gates, last = (
            c.te("unpack", lambda v, f=first, n=count: gradients.unpacked(v, hidden, f, n), kept, pattern=OPAQUE)
            for first, count in ((0, layer.gates), (layer.gates, 1))
        )
        return [y, gates, last]

    return convert


def gradient(cell: str) -> Converter:
    """LSTMGradient and GRUGradient."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        dtype = dtype_of(inputs[0])
        if dtype not in ("float32", "float64") or any(0 in shape_of(each) for each in inputs):
            return NotImplemented
        plan = gradients.Plan.of(shape_of(inputs[0]), dtype, c.machine)
        kernel = gradients.lstm if cell == "LSTM" else gradients.gru
        results = c.builder.emit_te(
            lambda *tensors: kernel(tensors, plan),
            *inputs,
            primfunc_name_hint=f"{cell.lower()}_gradient",
            primfunc_attrs={"op_pattern": OPAQUE, SCHEDULED: 1},
        )
        return [c.builder.emit(relax.TupleGetItem(results, place)) for place in range(3)]

    return convert
