"""`graphopt.Attention` and `AttentionMasked` on a GPU: one kernel that keeps no scores."""

from __future__ import annotations

import math
from typing import Any

from tvm import relax

from graphopt.targets.converters.base import FLOATS, HALVES, OPAQUE, Context, dtype_of, shape_of
from graphopt.targets.converters.refusals import NotSupported
from graphopt.targets.gpu.converters_views import seen_through, wanted_order
from graphopt.targets.gpu.devices import Device
from graphopt.targets.gpu.kernels import attention as kernel
from graphopt.targets.gpu.kernels import attention_mma, attention_tiles
from graphopt.targets.gpu.kernels.attention_mma import CHUNK
from graphopt.targets.gpu.kernels.attention_tiles import seconds
from graphopt.targets.gpu.kernels.tensor_cores import TensorCores
from graphopt.targets.gpu.kernels.views import View, Views


def attention(c: Context, inputs: list[Any]) -> Any:
    """An Attention or AttentionMasked node; halves are summed in single precision.

    Raises:
        NotSupported: no floats, nothing to compute, operands that do not fit each other, or rows too wide for the
            device.
    """
    q, k, v = inputs[:3]
    sq, sk, sv, dtype = shape_of(q), shape_of(k), shape_of(v), dtype_of(q)
    name = c.node.op_type
    if dtype not in (*FLOATS, *HALVES):
        raise NotSupported(f"the kernel of {name} does not compute in {dtype}")
    if 0 in (*sq, *sk, *sv) or not sq[:2] == sk[:2] == sv[:2]:
        raise NotSupported(f"the operands of {name} are empty or differ in batch or heads")
    device: Any = c.machine
    assert isinstance(device, Device)
    shape = attention_tiles.Shape(
        math.prod(sq[:2]), sq[2], sk[2], sq[3], sv[3], "float32" if dtype in HALVES else dtype
    )
    fitting = attention_tiles.tiles(shape, device)
    if not fitting:
        raise NotSupported(
            f"the kernel of {name} keeps a row of q and of its result on chip, and {sq[3]} and {sv[3]} {dtype} are "
            f"too many for {device.name}"
        )
    tile, scale = fitting[0], c.real("scale", 1.0)
    sources, views = _seen(c, [q, k, v])
    on_cores = attention_mma.tiles(shape, device, dtype) if device.cuda and dtype in HALVES else []
    marks: dict[str, int]
    if on_cores and attention_mma.seconds(shape, on_cores[0], device, dtype) < seconds(shape, tile, device):
        best, units = on_cores[0], TensorCores(dtype)
        marks = attention_mma.attributes(shape, best, device)

        def define(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            return attention_mma.compute(q, k, v, mask, scale, shape, best, units, views)
    else:
        marks = kernel.attributes(shape, tile, device)

        def define(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            return kernel.compute(q, k, v, mask, scale, shape, tile, views)

    y = c.builder.emit_te(
        define, *sources, *inputs[3:], primfunc_name_hint="attention", primfunc_attrs={"op_pattern": OPAQUE, **marks}
    )
    order = wanted_order(c.node, 4)
    return y if order is None else c.builder.emit(relax.op.permute_dims(y, [order.index(axis) for axis in range(4)]))


def _seen(c: Context, operands: list[Any]) -> tuple[list[Any], Views]:
    """What the kernel reads instead of its operands, and writes, where only transposes and reshapes lie between."""
    sources, found = [], []
    for x in operands:
        source, view = seen_through(c, x)
        width = math.gcd(view.shape[3], CHUNK)
        if not view.contiguous(shape_of(source), width):
            source, view = x, View.whole(shape_of(x))
        sources.append(source)
        found.append(view)
    shape = (*shape_of(operands[0])[:3], shape_of(operands[2])[3])
    order = wanted_order(c.node, 4) or list(range(4))
    result = View.whole(tuple(shape[axis] for axis in order)).permuted([order.index(axis) for axis in range(4)])
    return sources, Views(found[0], found[1], found[2], result, tuple(shape[axis] for axis in order))
