"""`graphopt.Attention` and `AttentionMasked` on a GPU: one kernel that keeps no scores."""

from __future__ import annotations

import math
from typing import Any

from graphopt.targets.converters.base import FLOATS, HALVES, OPAQUE, Context, dtype_of, shape_of
from graphopt.targets.converters.refusals import NotSupported
from graphopt.targets.gpu.devices import Device
from graphopt.targets.gpu.kernels import attention as kernel
from graphopt.targets.gpu.kernels import attention_mma, attention_tiles
from graphopt.targets.gpu.kernels.attention_tiles import seconds
from graphopt.targets.gpu.kernels.tensor_cores import TensorCores


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
    on_cores = attention_mma.tiles(shape, device, dtype) if device.cuda and dtype in HALVES else []
    marks: dict[str, int]
    if on_cores and attention_mma.seconds(shape, on_cores[0], device, dtype) < seconds(shape, tile, device):
        best, units = on_cores[0], TensorCores(dtype)
        marks = attention_mma.attributes(shape, best, device)

        def define(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            return attention_mma.compute(q, k, v, mask, scale, shape, best, units)
    else:
        marks = kernel.attributes(shape, tile, device)

        def define(q: Any, k: Any, v: Any, mask: Any = None) -> Any:
            return kernel.compute(q, k, v, mask, scale, shape, tile)

    return c.builder.emit_te(
        define, *inputs, primfunc_name_hint="attention", primfunc_attrs={"op_pattern": OPAQUE, **marks}
    )
