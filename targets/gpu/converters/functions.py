"""Functions of single elements on a GPU, by what the hardware has instead of the polynomials that CPUs evaluate."""

from __future__ import annotations

import math

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    ELEMENTWISE,
    FLOATS,
    HALF_DTYPES,
    Context,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.kernels.blocks import const


def left_to_tvm(_: Context, __: Inputs) -> Outputs:
    """Leave functions that the hardware has to TVM, which calls them."""
    return NotImplemented


def gelu(c: Context, inputs: Inputs) -> Outputs:
    """x / 2 (1 + erf(x / sqrt 2)), or its approximation by tanh; fp16 and bf16 are computed in fp32."""
    dtype = dtype_of(inputs[0])
    if dtype not in (*FLOATS, *HALF_DTYPES) or not shape_of(inputs[0]):
        return NotImplemented
    kept = "float32" if dtype in HALF_DTYPES else dtype
    approximate = c.text("approximate", "none") == "tanh"

    def function(element: te.TensorSlice) -> Expr:
        x = element.astype(kept)
        if approximate:
            inner = x * const(math.sqrt(2 / math.pi), kept) * (const(1, kept) + const(0.044715, kept) * x * x)
            gate = tirx.tanh(inner)
        else:
            gate = tirx.erf(x * const(math.sqrt(0.5), kept))
        return (x * const(0.5, kept) * (const(1, kept) + gate)).astype(dtype)

    return c.te(
        "gelu",
        lambda x: te.compute(x.shape, lambda *i: function(x[i]), name="gelu"),
        inputs[0],
        pattern=ELEMENTWISE,
    )
