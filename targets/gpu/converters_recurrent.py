"""LSTM, GRU and RNN on a GPU: one product of all inputs with W, then a kernel for each step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from tvm import relax, te, tirx

from graphopt.targets.converters.base import EPILOGUE, OPAQUE, Context, dtype_of, shape_of
from graphopt.targets.converters.index import constant
from graphopt.targets.converters.refusals import NotSupported
from graphopt.targets.gpu.devices import Device
from graphopt.targets.gpu.kernels import product, recurrence, recurrence_cuts
from graphopt.targets.gpu.kernels.axes import Axes

_DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
_X, _W, _R, _B, _LENGTHS, _H, _C, _P = range(8)


def recurrent(c: Context, inputs: list[Any]) -> Any:
    """An LSTM, GRU or RNN node.

    Raises:
        NotSupported: with the reason, for what the kernels do not compute.
    """
    cell = c.node.op_type
    given = [*inputs, *[None] * (8 - len(inputs))]
    x, r = given[_X], given[_R]
    dtype, batch_first = dtype_of(x), c.integer("layout") == 1
    directions, _, hidden = shape_of(r)
    steps, batch = shape_of(x)[1::-1] if batch_first else shape_of(x)[:2]
    _refuse(c, dtype, hidden, steps, 0 in (*shape_of(x), *shape_of(given[_W]), *shape_of(r)))
    layer = recurrence_cuts.Layer(
        cell,
        steps,
        batch,
        hidden,
        directions,
        dtype,
        _activations(c, directions),
        reverse=c.text("direction", "forward") == "reverse",
        reset_after=cell == "GRU" and c.integer("linear_before_reset") != 0,
        clip=c.real("clip") if "clip" in c.node.attributes else None,
        batch_first=batch_first,
    )
    device: Any = c.machine
    assert isinstance(device, Device)
    made = recurrence_cuts.cut(layer, device)
    projected = _projected(c, layer, x, given[_W], given[_B])
    extra: dict[str, Any] = {}
    if layer.reset_after:
        extra["reset_bias"] = _zeros((directions, 6 * hidden), dtype) if given[_B] is None else given[_B]
    if given[_P] is not None:
        extra["peepholes"] = given[_P]
    if given[_LENGTHS] is not None:
        known = constant(c, _LENGTHS)
        if known is None or bool((known != steps).any()):
            extra["lengths"] = given[_LENGTHS]
    states = [given[_H], given[_C]] if cell == "LSTM" else [given[_H]]
    initial = [_zeros(layer.state, dtype) if state is None else state for state in states]
    whole = c.builder.emit_te(
        lambda p, w, hs, more: recurrence.compute(layer, made, p, w, hs, **more),
        projected,
        r,
        initial,
        extra,
        primfunc_name_hint=cell.lower(),
        primfunc_attrs={"op_pattern": OPAQUE, **recurrence.attributes(layer, made, device)},
    )
    results = [relax.TupleGetItem(whole, i) for i in range(1 + len(states))]
    wanted = [value.uses() or value.is_graph_output() for value in c.node.outputs]
    return [c.builder.emit(result) if want else None for result, want in zip(results, wanted, strict=False)]


def _refuse(c: Context, dtype: str, hidden: int, steps: int, empty: bool) -> None:
    """Raise for types, sizes, attributes and inputs that the kernels do not know."""
    cell = c.node.op_type
    if dtype not in ("float32", "float64"):
        raise NotSupported(f"the kernels of {cell} do not compute in {dtype}")
    if empty:
        raise NotSupported(f"{cell} has empty operands")
    if steps > recurrence.MOST_STEPS:
        raise NotSupported(
            f"{cell} launches a kernel for each step, and {steps} are more than the {recurrence.MOST_STEPS} allowed"
        )
    if c.integer("input_forget"):
        raise NotSupported(f"the kernels of {cell} do not couple the input and the forget gate")
    if c.integer("hidden_size", hidden) != hidden:
        raise NotSupported(f"hidden_size of {cell} is not the width of its recurrent weights, which is {hidden}")


def _activations(c: Context, directions: int) -> tuple[str, ...]:
    defaults = _DEFAULTS[c.node.op_type]
    attribute = c.node.attributes.get("activations")
    if not isinstance(attribute, ir.Attr):
        return defaults
    spelled = {name.lower(): name for name in recurrence.ACTIVATIONS}
    found = tuple(spelled.get(name.lower(), "") for name in attribute.as_strings())
    if found != found[: len(defaults)] * directions or "" in found:
        raise NotSupported(
            f"the kernels of {c.node.op_type} know the activations {', '.join(recurrence.ACTIVATIONS)}, "
            "equal in both directions"
        )
    return found[: len(defaults)]


def _projected(c: Context, layer: recurrence_cuts.Layer, x: Any, w: Any, bias: Any) -> Any:
    """The products of all inputs with W, biases added: [T * B, D * G * H]."""
    width = shape_of(w)[-1]
    rows, columns = layer.steps * layer.batch, layer.directions * layer.gates * layer.hidden
    added = [] if bias is None else [c.te("pack", lambda v: _bias(v, layer), bias, pattern=OPAQUE)]
    flat = x if layer.batch_first else c.reshape(x, (rows, width))

    def define(v: Any, u: Any, s: Any = None) -> Any:
        def row(_: Any, m: Any, k: Any) -> Any:
            return v[tirx.floormod(m, layer.batch), tirx.floordiv(m, layer.batch), k] if layer.batch_first else v[m, k]

        sizes, out = (1, rows, columns, width), (rows, columns)
        y = product.compute(row, lambda _, k, n: u[n, k], sizes, Axes.plain(out, (0, 1, 1), sizes[1]), layer.dtype)
        return y if s is None else te.compute(out, lambda m, n: y[m, n] + s[n], name="biased")

    return c.te("matmul", define, flat, c.reshape(w, (columns, width)), *added, pattern=EPILOGUE)


def _bias(v: Any, layer: recurrence_cuts.Layer) -> Any:
    """Wb + Rb of v[D, 2 * G * H]; without the Rb that a GRU multiplies with its reset gate."""
    block = layer.gates * layer.hidden

    def element(n: Any) -> Any:
        d, at = tirx.floordiv(n, block), tirx.floormod(n, block)
        recurrent = v[d, block + at]
        if layer.reset_after:
            recurrent = tirx.Select(at < 2 * layer.hidden, recurrent, tirx.const(0, layer.dtype))
        return v[d, at] + recurrent

    return te.compute((layer.directions * block,), element, name="pack")


def _zeros(shape: tuple[int, ...], dtype: str) -> Any:
    return relax.const(np.zeros(shape, dtype), dtype)
