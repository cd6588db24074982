"""Means of fp16 and bf16 on a GPU: a sum leaves their range long before its mean does, so sums are fp32."""

from __future__ import annotations

import math

from tvm import te
from tvm.ir import Expr

from graphopt.targets.common.converters.base import HALF_DTYPES, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.index import constant
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.gpu.fusion import epilogue


def mean(c: Context, inputs: Inputs) -> Outputs:
    """ReduceMean or GlobalAveragePool of fp16 and bf16, summed in fp32; other dtypes are left to TVM."""
    x = inputs[0]
    shape, dtype = shape_of(x), dtype_of(x)
    if dtype not in HALF_DTYPES or 0 in shape or len(shape) < 1:
        return NotImplemented
    if c.node.op_type == "GlobalAveragePool":
        axes, kept = list(range(2, len(shape))), True
    else:
        given = constant(c, 1)
        if given is None and len(c.node.inputs) > 1 and c.node.inputs[1] is not None:
            return NotImplemented
        listed = c.integers("axes") if given is None else given.reshape(-1)
        if not len(listed) and c.integer("noop_with_empty_axes"):
            return NotImplemented
        axes = sorted(int(axis) % len(shape) for axis in listed) or list(range(len(shape)))
        kept = bool(c.integer("keepdims", 1))
    chosen = set(axes)

    def define(v: te.Tensor) -> te.Tensor:
        inner = {axis: te.reduce_axis((0, shape[axis]), f"r{axis}") for axis in axes}

        def element(*i: Expr) -> Expr:
            outer = iter(i)
            index = []
            for axis in range(len(shape)):
                if axis in chosen:
                    index.append(inner[axis])
                    if kept:
                        next(outer)
                else:
                    index.append(next(outer))
            return te.sum(v(*index).astype("float32"), axis=list(inner.values()))

        total = te.compute(c.out_shape, element, name="total")
        count = const(math.prod(shape[axis] for axis in axes), "float32")
        return te.compute(c.out_shape, lambda *i: (total(*i) / count).astype(dtype), name="mean")

    return c.te("mean", define, x, pattern=epilogue(c))
