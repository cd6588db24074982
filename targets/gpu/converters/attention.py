"""`graphopt.Attention` and `AttentionMasked` on a GPU: one kernel that stores no scores."""

from __future__ import annotations

import math

import numpy as np
from tvm import relax, te

from graphopt.cost.workload import KernelPlan
from graphopt.targets.common.converters.base import (
    FLOATS,
    HALF_DTYPES,
    OPAQUE,
    Context,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.converters.index import constant
from graphopt.targets.common.converters.refusals import NotSupported
from graphopt.targets.gpu import plans
from graphopt.targets.gpu.converters.views import seen_through, wanted_order
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels.attention import launch, mma, mma_launch
from graphopt.targets.gpu.kernels.attention import simt as kernel
from graphopt.targets.gpu.kernels.attention.launch import seconds
from graphopt.targets.gpu.kernels.attention.mma_launch import CHUNK
from graphopt.targets.gpu.kernels.gemm.tensor_cores import LABELS, TensorCores
from graphopt.targets.gpu.kernels.views import View, Views


def attention(c: Context, inputs: Inputs) -> Outputs:
    """An Attention or AttentionMasked node; fp16 and bf16 are summed in fp32.

    Raises:
        NotSupported: no floats, nothing to compute, operands that do not fit each other, or rows too wide for the
            device.
    """
    q, k, v = inputs[:3]
    sq, sk, sv, dtype = shape_of(q), shape_of(k), shape_of(v), dtype_of(q)
    name = c.node.op_type
    if dtype not in (*FLOATS, *HALF_DTYPES):
        raise NotSupported(f"the kernel of {name} does not compute in {dtype}")
    if 0 in (*sq, *sk, *sv) or not sq[:2] == sk[:2] == sv[:2]:
        raise NotSupported(f"the operands of {name} are empty or differ in batch or heads")
    device: GpuSpec = c.machine
    assert isinstance(device, GpuSpec)
    kept = "float32" if dtype in HALF_DTYPES else dtype
    shape = launch.Shape(math.prod(sq[:2]), sq[2], sk[2], sq[3], sv[3], kept, _causal_offset(c, sq[2], sk[2]))
    fitting = launch.tiles(shape, device)
    if not fitting:
        raise NotSupported(
            f"the kernel of {name} keeps a row of q and of its result on chip, and {sq[3]} and {sv[3]} {dtype} are "
            f"too many for {device.name}"
        )
    tile, scale = fitting[0], c.real("scale", 1.0)
    sources, views = _seen(c, [q, k, v])
    on_cores = mma_launch.tiles(shape, device, dtype) if device.cuda and dtype in HALF_DTYPES else []
    marks: dict[str, int]
    plan = KernelPlan("attention", f"{tile.rows}x{tile.keys}", seconds(shape, tile, device))
    assert plan.seconds is not None
    if on_cores and mma_launch.seconds(shape, on_cores[0], device, dtype) < plan.seconds:
        best, units = on_cores[0], TensorCores(dtype)
        taken = mma_launch.seconds(shape, best, device, dtype)
        plan = KernelPlan("attention", f"{best.rows}x{best.keys}", taken, precision=f"{LABELS[dtype]} mma")
        marks = launch.attributes(shape, best, device)

        def define(q: te.Tensor, k: te.Tensor, v: te.Tensor, mask: te.Tensor | None = None) -> te.Tensor:
            return mma.compute(q, k, v, mask, scale, shape, best, units, views)
    else:
        marks = launch.attributes(shape, tile, device)

        def define(q: te.Tensor, k: te.Tensor, v: te.Tensor, mask: te.Tensor | None = None) -> te.Tensor:
            return kernel.compute(q, k, v, mask, scale, shape, tile, views)

    y = c.builder.emit_te(
        define,
        *sources,
        *inputs[3:],
        primfunc_name_hint="attention",
        primfunc_attrs={"op_pattern": OPAQUE, **marks, **plans.attribute(plan)},
    )
    order = wanted_order(c.node, 4)
    return y if order is None else c.builder.emit(relax.op.permute_dims(y, [order.index(axis) for axis in range(4)]))


def _causal_offset(c: Context, queries: int, keys: int) -> int | None:
    """How many keys beyond its own place a query sees, where a constant mask says so for all; None where it does not.

    What is masked has a weight of zero: its mask is -inf, or so low that no score makes up for it. A query that sees
    nothing averages everything, or is NaN; then nothing is skipped.
    """
    mask = constant(c, 3)
    if mask is None or mask.ndim < 2 or mask.shape[-2:] != (queries, keys) or queries == 1:
        return None
    lowest = -3e4 if mask.dtype == np.float16 else -1e9
    seen = (mask.astype(np.float32) > lowest).reshape(-1, queries, keys)
    if not np.all(np.max(seen, axis=2)):
        return None
    last = keys - 1 - np.argmax(np.flip(np.max(seen, axis=0), axis=1), axis=1)
    causal_offset = int((last - np.arange(queries)).max())
    return causal_offset if causal_offset < keys - 1 else None


def _seen(c: Context, operands: list[relax.Expr]) -> tuple[list[relax.Expr], Views]:
    """What the kernel reads instead of its operands, and writes, where only transposes and reshapes lie between."""
    sources, views = [], []
    for x in operands:
        source, view = seen_through(c, x)
        width = math.gcd(view.shape[3], CHUNK)
        if not view.contiguous(shape_of(source), width):
            source, view = x, View.whole(shape_of(x))
        sources.append(source)
        views.append(view)
    shape = (*shape_of(operands[0])[:3], shape_of(operands[2])[3])
    order = wanted_order(c.node, 4) or list(range(4))
    result = View.whole(tuple(shape[axis] for axis in order)).permuted([order.index(axis) for axis in range(4)])
    return sources, Views(views[0], views[1], views[2], result, tuple(shape[axis] for axis in order))
