"""MatMul and Gemm on GPUs."""

from __future__ import annotations

import math

from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.graph.constness import is_constant
from graphopt.targets.common.converters.base import FLOATS, HALF_DTYPES, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.gpu.converters.blocked import accumulator, on_cores
from graphopt.targets.gpu.fusion import epilogue
from graphopt.targets.gpu.kernels.gemm import product
from graphopt.targets.gpu.kernels.gemm.axes import Axes


def matmul(c: Context, inputs: Inputs) -> Outputs:
    """MatMul with any batch axes."""
    return _matmul(c, inputs[0], inputs[1], c.out_shape)


def _matmul(
    c: Context,
    a: relax.Expr,
    b: relax.Expr,
    out: tuple[int, ...],
    left_transposed: bool = False,
    right_transposed: bool = False,
    scale: float = 1.0,
) -> Outputs:
    sa, sb, dtype = shape_of(a), shape_of(b), dtype_of(a)
    if dtype not in (*FLOATS, *HALF_DTYPES) or len(sa) < 2 or len(sb) < 2 or 0 in (*sa, *sb):
        return NotImplemented
    k, m = (sa[-2], sa[-1]) if left_transposed else (sa[-1], sa[-2])
    n = sb[-2] if right_transposed else sb[-1]
    if not right_transposed and on_cores(c, dtype) and is_constant(c.node.inputs[1]):
        order = [*range(len(sb) - 2), len(sb) - 1, len(sb) - 2]  # done while compiling
        b, sb, right_transposed = c.builder.emit(relax.op.permute_dims(b, order)), (*sb[:-2], n, k), True
    lead = out[:-2]
    parts = (len(lead), 1, 1)
    if math.prod(sb[:-2]) == 1 and not left_transposed:  # every leading axis of the left side is one more row
        a, sa = c.reshape(a, (math.prod(sa[:-1]), k)), (math.prod(sa[:-1]), k)
        m, lead, parts = sa[0], (), (0, len(out) - 1, 1)

    def at(tensor: te.Tensor, flat: Expr, shape: tuple[int, ...]) -> list[Expr]:
        """The batch index of one side, which broadcasts against the result's."""
        index: list[Expr] = []
        for extent in reversed(lead):
            index.insert(0, tirx.floormod(flat, extent))
            flat = tirx.floordiv(flat, extent)
        own = shape[:-2]
        kept = index[len(index) - len(own) :] if own else []
        zero = tirx.IntImm("int32", 0)
        return [zero if extent == 1 else i for i, extent in zip(kept, own, strict=True)] if lead else [zero] * len(own)

    def define(v: te.Tensor, u: te.Tensor) -> te.Tensor:
        factor = const(scale, accumulator(dtype))

        def left(i: Expr, y: Expr, r: tirx.IterVar) -> te.TensorSlice:
            return v[(*at(v, i, sa), *((r, y) if left_transposed else (y, r)))]

        def right(i: Expr, r: tirx.IterVar, x: Expr) -> te.TensorSlice:
            return u[(*at(u, i, sb), *((x, r) if right_transposed else (r, x)))]

        sizes = math.prod(lead), m, n, k
        axes = Axes.plain(out, parts, m)
        gemm = product.compute(left, right, sizes, axes, dtype, accumulate=accumulator(dtype), tf32=c.tf32, tile=c.tile)
        if scale == 1.0:
            return gemm
        return te.compute(out, lambda *i: (gemm(*i).astype(accumulator(dtype)) * factor).astype(dtype), name="scaled")

    return c.te("matmul", define, a, b, pattern=epilogue(c))


def fully_connected(c: Context, inputs: Inputs) -> Outputs:
    """Gemm."""
    a, b = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    dtype = dtype_of(a)
    y = _matmul(c, a, b, c.out_shape, bool(c.integer("transA")), bool(c.integer("transB")), c.real("alpha", 1.0))
    beta = c.real("beta", 1.0)
    if y is NotImplemented or bias is None or beta == 0.0:
        return y
    if beta != 1.0:
        bias = c.builder.emit(relax.op.multiply(bias, relax.const(beta, dtype)))
    return c.builder.emit(relax.op.add(y, bias))
