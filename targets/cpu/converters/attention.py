"""`graphopt.Attention` and `AttentionMasked`: one kernel that keeps its scores in the caches."""

from __future__ import annotations

import math

from graphopt.targets.common.converters.base import HALF_DTYPES, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.half_precision import in_single
from graphopt.targets.common.converters.refusals import NotSupported
from graphopt.targets.common.kernels.blocks import SCHEDULED, round_up
from graphopt.targets.cpu.kernels import attention as kernel
from graphopt.targets.cpu.kernels import gemm


def attention(c: Context, inputs: Inputs) -> Outputs:
    """An Attention or AttentionMasked node.

    Raises:
        NotSupported: no floats, nothing to compute, or operands that differ in batch or heads.
    """
    q, k, v = inputs[:3]
    mask = inputs[3] if len(inputs) > 3 else None
    sq, sk, sv, dtype = shape_of(q), shape_of(k), shape_of(v), dtype_of(q)
    if dtype in HALF_DTYPES:
        return in_single(attention)(c, inputs)
    if dtype not in ("float32", "float64"):
        raise NotSupported(f"the kernel of {c.node.op_type} does not compute in {dtype}")
    if 0 in (*sq, *sk, *sv) or not sq[:2] == sk[:2] == sv[:2]:
        raise NotSupported(f"the operands of {c.node.op_type} are empty or differ in batch or heads")
    heads, count, width = math.prod(sq[:2]), sk[2], sv[3]
    plan = kernel.plan(heads, sq[2], count, c.machine, dtype)
    keys = c.te("pack", lambda t: gemm.pack(t, plan.lanes, True), c.reshape(k, (heads, count, sk[3])), pattern=OPAQUE)
    values = c.reshape(v, (heads, count, width))
    padded = round_up(width, plan.lanes)
    if padded != width:
        values = c.te("pack", lambda t: gemm.pack(t, padded, False), values, pattern=OPAQUE)
        values = c.reshape(values, (heads, count, padded))
    scale, out = c.real("scale", 1.0), c.out_shape
    given = [q, keys, values] if mask is None else [q, keys, values, mask]
    return c.builder.emit_te(
        lambda *t: kernel.compute(t[0], t[1], t[2], t[3] if len(t) > 3 else None, out, count, scale, plan),
        *given,
        primfunc_name_hint="attention",
        primfunc_attrs={"op_pattern": OPAQUE, SCHEDULED: 1},
    )
