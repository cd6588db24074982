"""LSTM, GRU and RNN on a GPU: one GEMM of all inputs with W, then a kernel for each step."""

from __future__ import annotations

from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.cost.workload import KernelPlan
from graphopt.targets.common.converters import recurrent_node
from graphopt.targets.common.converters.base import (
    EPILOGUE,
    FLOATS,
    HALF_DTYPES,
    OPAQUE,
    Context,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.converters.recurrent_node import LENGTHS, B, C, H, P, R, W, X, operands, zeros
from graphopt.targets.common.converters.refusals import NotSupported
from graphopt.targets.gpu import plans
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels import recurrence, recurrence_launch
from graphopt.targets.gpu.kernels.gemm import product
from graphopt.targets.gpu.kernels.gemm.axes import Axes


def recurrent(c: Context, inputs: Inputs) -> Outputs:
    """An LSTM, GRU or RNN node. fp16 and bf16 become fp32: a state that is added to at every step needs it.

    Raises:
        NotSupported: with the reason, for what the kernels do not compute.
    """
    cell = c.node.op_type
    given = operands(inputs)
    x, r = given[X], given[R]
    given_as, batch_first = dtype_of(x), c.integer("layout") == 1
    directions, _, hidden = shape_of(r)
    steps, batch = shape_of(x)[1::-1] if batch_first else shape_of(x)[:2]
    _refuse(c, given_as, hidden, steps, 0 in (*shape_of(x), *shape_of(given[W]), *shape_of(r)))
    dtype = given_as
    if given_as in HALF_DTYPES:
        dtype = "float32"
        given = [each if i == LENGTHS or each is None else _cast(c, each, dtype) for i, each in enumerate(given)]
        x, r = given[X], given[R]
    layer = recurrence_launch.Layer(
        cell,
        steps,
        batch,
        hidden,
        directions,
        dtype,
        recurrent_node.activations(c, directions, recurrence.ACTIVATIONS),
        reverse=recurrent_node.reverse(c),
        reset_after=recurrent_node.reset_after(c),
        clip=c.real("clip") if "clip" in c.node.attributes else None,
        batch_first=batch_first,
    )
    device: GpuSpec = c.machine
    assert isinstance(device, GpuSpec)
    config = recurrence_launch.launch_config(layer, device)
    plan = KernelPlan(
        "recurrence", f"{config.units}x{config.rows}x{config.lanes}", recurrence_launch.seconds(layer, config, device)
    )
    projected = _projected(c, layer, x, given[W], given[B])
    extra: dict[str, relax.Expr] = {}
    if layer.reset_after:
        extra["reset_bias"] = zeros((directions, 6 * hidden), dtype) if given[B] is None else given[B]
    if given[P] is not None:
        extra["peepholes"] = given[P]
    if (lengths := recurrent_node.lengths(c, given, steps)) is not None:
        extra["lengths"] = lengths
    states = [given[H], given[C]] if cell == "LSTM" else [given[H]]
    initial = [
        zeros(layer.state, dtype)
        if state is None
        else recurrent_node.begun(c, state, extra.get("lengths"), 0 if batch_first else 1)
        for state in states
    ]
    outputs = c.builder.emit_te(
        lambda p, w, hs, more: recurrence.compute(layer, config, p, w, hs, **more),
        projected,
        r,
        initial,
        extra,
        primfunc_name_hint=cell.lower(),
        primfunc_attrs={"op_pattern": OPAQUE, **recurrence.attributes(layer, config, device), **plans.attribute(plan)},
    )
    results = [relax.TupleGetItem(outputs, i) for i in range(1 + len(states))]
    wanted = [value.uses() or value.is_graph_output() for value in c.node.outputs]
    return [
        _cast(c, c.builder.emit(result), given_as) if want else None
        for result, want in zip(results, wanted, strict=False)
    ]


def _cast(c: Context, value: relax.Expr, dtype: str) -> relax.Expr:
    return value if dtype_of(value) == dtype else c.builder.emit(relax.op.astype(value, dtype))


def _refuse(c: Context, dtype: str, hidden: int, steps: int, empty: bool) -> None:
    """Raise for types, sizes, attributes and inputs that the kernels do not know."""
    cell = c.node.op_type
    if dtype not in (*FLOATS, *HALF_DTYPES):
        raise NotSupported(f"the kernels of {cell} do not compute in {dtype}")
    if empty:
        raise NotSupported(f"{cell} has empty operands")
    if steps > recurrence.MOST_STEPS:
        raise NotSupported(
            f"{cell} launches a kernel for each step, and {steps} are more than the {recurrence.MOST_STEPS} allowed"
        )
    recurrent_node.refuse(c, hidden)


def _projected(
    c: Context, layer: recurrence_launch.Layer, x: relax.Expr, w: relax.Expr, bias: relax.Expr | None
) -> relax.Expr:
    """The GEMM of all inputs with W, biases added: [T * B, D * G * H]."""
    width = shape_of(w)[-1]
    rows, columns = layer.steps * layer.batch, layer.directions * layer.gates * layer.hidden
    added = [] if bias is None else [c.te("pack", lambda v: _bias(v, layer), bias, pattern=OPAQUE)]
    flat = x if layer.batch_first else c.reshape(x, (rows, width))

    def define(v: te.Tensor, u: te.Tensor, s: te.Tensor | None = None) -> te.Tensor:
        def row(_: Expr, m: Expr, k: tirx.IterVar) -> te.TensorSlice:
            return v[tirx.floormod(m, layer.batch), tirx.floordiv(m, layer.batch), k] if layer.batch_first else v[m, k]

        sizes, out = (1, rows, columns, width), (rows, columns)
        y = product.compute(row, lambda _, k, n: u[n, k], sizes, Axes.plain(out, (0, 1, 1), sizes[1]), layer.dtype)
        return y if s is None else te.compute(out, lambda m, n: y[m, n] + s[n], name="biased")

    return c.te("matmul", define, flat, c.reshape(w, (columns, width)), *added, pattern=EPILOGUE)


def _bias(v: te.Tensor, layer: recurrence_launch.Layer) -> te.Tensor:
    """Wb + Rb of v[D, 2 * G * H]; without the Rb that a GRU multiplies with its reset gate."""
    block = layer.gates * layer.hidden

    def element(n: Expr) -> Expr:
        d, at = tirx.floordiv(n, block), tirx.floormod(n, block)
        recurrent = v[d, block + at]
        if layer.reset_after:
            recurrent = tirx.Select(at < 2 * layer.hidden, recurrent, tirx.const(0, layer.dtype))
        return v[d, at] + recurrent

    return te.compute((layer.directions * block,), element, name="pack")
