"""LSTM, GRU and RNN: one GEMM of all inputs with W, then the recurrence as one kernel."""

from __future__ import annotations

import numpy as np
from tvm import relax

from graphopt.targets.common.converters import recurrent_node
from graphopt.targets.common.converters.base import OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.recurrent_node import B, C, H, P, R, W, X, operands, zeros
from graphopt.targets.common.converters.refusals import NotSupported
from graphopt.targets.common.kernels.blocks import SCHEDULED
from graphopt.targets.cpu.converters.products import product
from graphopt.targets.cpu.kernels.recurrent import forward, rnn


def recurrent(c: Context, inputs: Inputs) -> Outputs:
    """An LSTM, GRU or RNN node.

    Raises:
        NotSupported: the kernel does not compute such a node; the message is the reason.
    """
    cell = c.node.op_type
    given = operands(inputs)
    x, w, r = given[X], given[W], given[R]
    dtype, batch_first = dtype_of(x), c.integer("layout") == 1
    if dtype not in ("float32", "float64") or 0 in (*shape_of(x), *shape_of(w), *shape_of(r)):
        return NotImplemented
    if batch_first:
        x = c.builder.emit(relax.op.permute_dims(x, [1, 0, 2]))
    steps, batch, _ = shape_of(x)
    directions, _, hidden = shape_of(r)
    _refuse(c, hidden)
    layer = rnn.plan(
        cell,
        (steps, batch, hidden),
        directions,
        c.machine,
        dtype,
        activations=_activations(c, directions),
        reverse=recurrent_node.reverse(c),
        reset_after=recurrent_node.reset_after(c),
    )
    projected = input_products(c, layer, x, w, given[B])
    extra: dict[str, relax.Expr] = {}
    if layer.reset_after:
        bias = zeros((directions, 6 * hidden), dtype) if given[B] is None else given[B]
        extra["reset_bias"] = c.te("pack", lambda v: rnn.pack_vectors(v, layer, 5, 1), bias, pattern=OPAQUE)
    if given[P] is not None:
        extra["peepholes"] = c.te("pack", lambda v: rnn.pack_vectors(v, layer, 0, 3), given[P], pattern=OPAQUE)
    if (lengths := recurrent_node.lengths(c, given, steps)) is not None:
        extra["lengths"] = lengths
    weights = [
        c.te("pack", lambda v, p=phase: rnn.pack_recurrent(v, layer, *p), r, pattern=OPAQUE) for phase in layer.phases
    ]
    states = [given[H], given[C]] if cell == "LSTM" else [given[H]]
    shape = (directions, batch, hidden)
    initial = [_initial(c, state, shape, dtype, batch_first, extra.get("lengths")) for state in states]
    layer_results = c.builder.emit_te(
        lambda p, ws, hs, more: forward.compute(layer, p, ws, hs, **more),
        projected,
        weights,
        initial,
        extra,
        primfunc_name_hint=cell.lower(),
        primfunc_attrs={"op_pattern": OPAQUE, SCHEDULED: 1},
    )
    results = [relax.TupleGetItem(layer_results, i) for i in range(1 + len(states))]
    return [_output(c, i, result, batch_first) for i, result in zip(range(len(c.node.outputs)), results, strict=False)]


def _refuse(c: Context, hidden: int) -> None:
    """Raise NotSupported for attributes that the kernel does not support."""
    if "clip" in c.node.attributes:
        raise NotSupported(f"the kernel of {c.node.op_type} does not clip")
    recurrent_node.refuse(c, hidden)


def _activations(c: Context, directions: int) -> tuple[str, ...]:
    """The activations of a direction; the kernel requires the same ones in both."""
    names = recurrent_node.activations(c, directions, rnn.ACTIVATIONS)
    first = names[: len(names) // directions]
    if names != first * directions:
        raise NotSupported(f"the kernel of {c.node.op_type} has the same activations in both directions")
    return first


def input_products(c: Context, layer: rnn.Layer, x: relax.Expr, w: relax.Expr, bias: relax.Expr | None) -> relax.Expr:
    """The products of all inputs with W, biases added: [T, B, D, UB, G, U]."""
    parts = (layer.directions, layer.blocks, layer.gates, layer.units)
    columns = int(np.prod(parts))
    packed = c.te("pack", lambda v: rnn.pack_input(v, layer), w, pattern=OPAQUE)
    flat = c.reshape(packed, (columns, shape_of(w)[-1]))
    y = product(c, x, flat, (layer.steps, layer.batch, columns), transposed=True)
    if bias is not None:
        added = c.te("pack", lambda v: rnn.pack_bias(v, layer), bias, pattern=OPAQUE)
        y = c.builder.emit(relax.op.add(y, c.reshape(added, (columns,))))
    return c.reshape(y, (layer.steps, layer.batch, *parts))


def _initial(
    c: Context,
    state: relax.Expr | None,
    shape: tuple[int, ...],
    dtype: str,
    batch_first: bool,
    lengths: relax.Expr | None = None,
) -> relax.Expr:
    """h or c before the first step as [D, B, H]."""
    if state is None:
        return zeros(shape, dtype)
    turned = c.builder.emit(relax.op.permute_dims(state, [1, 0, 2])) if batch_first else state
    return recurrent_node.begun(c, turned, lengths, 1)


def _output(c: Context, index: int, result: relax.Expr, batch_first: bool) -> relax.Expr | None:
    """Output `index` in the layout of the node; None if it has no consumers."""
    value = c.node.outputs[index]
    if not value.uses() and not value.is_graph_output():
        return None
    result = c.builder.emit(result)
    if not batch_first:
        return result
    order = [2, 0, 1, 3] if index == 0 else [1, 0, 2]
    return c.builder.emit(relax.op.permute_dims(result, order))
