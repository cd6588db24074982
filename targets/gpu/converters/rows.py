"""Softmax and normalization of rows on a GPU; fp16 and bf16 are computed in fp32."""

from __future__ import annotations

import math

from tvm import relax
from tvm.ir import Expr

from graphopt.cost.workload import KernelPlan
from graphopt.targets.common.converters.base import (
    FLOATS,
    HALF_DTYPES,
    OPAQUE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.gpu import plans
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels import rows, rows_launch


def softmax(logarithm: bool) -> Converter:
    """Softmax or LogSoftmax along the last axis."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        x = inputs[0]
        shape, dtype = shape_of(x), dtype_of(x)
        axis = c.integer("axis", -1) % max(len(shape), 1)
        if dtype not in (*FLOATS, *HALF_DTYPES) or not shape or 0 in shape or axis != len(shape) - 1:
            return NotImplemented
        return c.reshape(_of_rows(c, c.reshape(x, (math.prod(shape[:-1]), shape[-1])), logarithm), shape)

    return convert


def log_softmax(c: Context, flat: relax.Expr) -> relax.Expr:
    """LogSoftmax of rows [N, C]."""
    return _of_rows(c, flat, True)


def _of_rows(c: Context, flat: relax.Expr, logarithm: bool) -> relax.Expr:
    count, n = shape_of(flat)
    work, config, attributes = _launch(c, count, n, dtype_of(flat))
    return c.definitions.emit(
        c.builder, "softmax", lambda v: rows.softmax(v, work, config, logarithm), [flat], attributes
    )


def layer_norm(c: Context, inputs: Inputs) -> Outputs:
    """LayerNormalization, if its other outputs are unused."""
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    shape, dtype = shape_of(x), dtype_of(x)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    n = math.prod(shape[axis:])
    used = [o for o in c.node.outputs[1:] if o.uses() or o.is_graph_output()]
    if dtype not in (*FLOATS, *HALF_DTYPES) or 0 in shape or used or math.prod(shape_of(weight)) != n:
        return NotImplemented
    if bias is not None and math.prod(shape_of(bias)) != n:
        return NotImplemented
    epsilon = c.real("epsilon", 1e-5)
    work, config, attributes = _launch(c, math.prod(shape[:axis]), n, dtype)
    flat = c.reshape(x, (work.rows, n))
    args = [flat, c.reshape(weight, (n,)), *([] if bias is None else [c.reshape(bias, (n,))])]
    y = c.definitions.emit(
        c.builder,
        "layer_norm",
        lambda v, w, b=None: rows.layer_norm(v, w, b, epsilon, work, config),
        args,
        attributes,
    )
    return [c.reshape(y, shape), *(None for _ in c.node.outputs[1:])]


def rms_norm(c: Context, inputs: Inputs) -> Outputs:
    """RMSNormalization with a weight for each element of a row."""
    x, weight = inputs[:2]
    shape, dtype = shape_of(x), dtype_of(x)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    n = math.prod(shape[axis:])
    if dtype not in (*FLOATS, *HALF_DTYPES) or dtype_of(weight) not in (*FLOATS, *HALF_DTYPES) or 0 in shape:
        return NotImplemented
    if math.prod(shape_of(weight)) != n:
        return NotImplemented
    epsilon = c.real("epsilon", 1e-5)
    work, config, attributes = _launch(c, math.prod(shape[:axis]), n, dtype, 1)
    y = c.definitions.emit(
        c.builder,
        "rms_norm",
        lambda v, w: rows.rms_norm(v, w, epsilon, work, config),
        [c.reshape(x, (work.rows, n)), c.reshape(weight, (n,))],
        attributes,
    )
    return c.reshape(y, shape)


def channel_norm(c: Context, inputs: Inputs) -> Outputs:
    """InstanceNormalization, and GroupNormalization with a weight for each channel (opset 21), of x[N, C, ...]."""
    x, weight, bias = inputs[:3]
    shape, dtype = shape_of(x), dtype_of(x)
    if dtype not in (*FLOATS, *HALF_DTYPES) or 0 in shape or len(shape) < 3 or shape_of(weight) != (shape[1],):
        return NotImplemented
    if shape_of(bias) != (shape[1],):
        return NotImplemented
    groups = c.integer("num_groups", 1) if c.node.op_type == "GroupNormalization" else shape[1]
    deep, area = shape[1] // groups, math.prod(shape[2:])
    epsilon = c.real("epsilon", 1e-5)
    work, config, attributes = _launch(c, shape[0] * groups, deep * area, dtype)

    def place(row: Expr, column: Expr) -> Expr:
        return row % groups * deep + column // area

    y = c.definitions.emit(
        c.builder,
        "channel_norm",
        lambda v, w, b: rows.layer_norm(v, w, b, epsilon, work, config, place),
        [c.reshape(x, (work.rows, work.n)), weight, bias],
        attributes,
    )
    return c.reshape(y, shape)


def _launch(
    c: Context, count: int, n: int, dtype: str, passes: int = 2
) -> tuple[rows_launch.Rows, rows_launch.LaunchConfig, dict[str, int | str]]:
    """The workload, its launch configuration, and the attributes of its function."""
    device: GpuSpec = c.machine
    assert isinstance(device, GpuSpec)
    work = rows_launch.Rows(count, n, dtype, "float32" if dtype in HALF_DTYPES else dtype, passes)
    config = rows_launch.launch_config(work, device)
    plan = KernelPlan("rows", str(config), rows_launch.seconds(work, config, device))
    return work, config, {"op_pattern": OPAQUE, **rows.ATTRIBUTES, **plans.attribute(plan)}
