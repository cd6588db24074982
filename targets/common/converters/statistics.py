"""BatchNormalization by given statistics, of which some are known at run time only."""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import BROADCAST, HALF_DTYPES, Context, Inputs, Outputs, dtype_of
from graphopt.targets.common.kernels.blocks import const


def batch_norm(c: Context, inputs: Inputs) -> Outputs:
    """x[N, C, ...] * f + (bias - mean * f), f = scale / sqrt(variance + epsilon): ONNX Runtime's order of operations.

    fp16 and bf16 are computed in single precision, and statistics may have another type than x.
    """
    if len([output for output in c.node.outputs if output.name]) > 1:
        return NotImplemented
    dtype = dtype_of(inputs[0])
    wide = "float32" if dtype in HALF_DTYPES else dtype

    def define(x: te.Tensor, scale: te.Tensor, bias: te.Tensor, mean: te.Tensor, variance: te.Tensor) -> te.Tensor:
        epsilon = const(c.real("epsilon", 1e-5), wide)

        def element(*index: Expr) -> Expr:
            place = index[1] if len(index) > 1 else 0
            s, b, m, v = (each(place).astype(wide) for each in (scale, bias, mean, variance))
            factor = s / tirx.sqrt(v + epsilon)
            return (x(*index).astype(wide) * factor + (b - m * factor)).astype(dtype)

        return te.compute(x.shape, element, name="batch_norm")

    return c.te("batch_norm", define, *inputs, pattern=BROADCAST)
