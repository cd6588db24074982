"""GEMMs: MatMul and Gemm."""

from __future__ import annotations

import math

from tvm import relax

from graphopt.targets.common.converters.base import EPILOGUE, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.cpu.kernels import gemm, transpose
from graphopt.targets.cpu.kernels.sparse import inputs as inputs_of_zero


def product(
    c: Context, a: relax.Expr, b: relax.Expr, out: tuple[int, ...], transposed: bool = False, trailing: int = 1
) -> relax.Expr:
    """a[..., M, K] times b[..., K, N] ([..., N, K] if transposed) whose batch axes are equal, or of one on one side.

    The last `trailing` axes of `out` hold N.
    """
    sa, sb = shape_of(a), shape_of(b)
    k = sa[-1]
    n = sb[-2] if transposed else sb[-1]
    right_batch = math.prod(sb[:-2])
    if right_batch == 1:  # every leading axis of the left side is one more row
        batch, m, parts = 1, math.prod(sa[:-1]), (0, len(out) - trailing, trailing)
    else:
        batch, m, parts = math.prod(sa[:-2]), sa[-2], (len(out) - 2, 1, 1)
    tile = gemm.choose_tile(m, n, k, c.machine, dtype_of(a), c.tile)
    right = c.reshape(b, (right_batch, sb[-2], sb[-1]))
    panels = _panels(c, right, tile.width, transposed)
    left = c.reshape(a, (batch, m, k))
    skips = c.skips and m == batch == trailing == 1 and dtype_of(a) == "float32"
    rule = inputs_of_zero.NAME if skips else gemm.NAME
    return c.te(
        "gemm", lambda p, q: gemm.compute(p, q, out, parts, tile.rows, rule=rule), left, panels, pattern=EPILOGUE
    )


def _panels(c: Context, right: relax.Expr, width: int, transposed: bool) -> relax.Expr:
    """The right matrix as the kernel reads it; one that is transposed turns by squares of vectors where it can."""
    (batch, *shape), dtype = shape_of(right), dtype_of(right)
    lanes = c.machine.lanes(dtype)
    if not transposed or batch != 1 or not transpose.fits_panels((shape[0], shape[1]), width, lanes, dtype):
        return c.te("pack", lambda v: gemm.pack(v, width, transposed), right, pattern=OPAQUE)
    n, k = shape
    packed = transpose.panels((n, k), width, lanes, dtype)
    return c.function("pack", packed, (1, math.ceil(n / width), k, width), c.reshape(right, (n, k)))


def turned(c: Context, a: relax.Expr) -> relax.Expr:
    """The transposed matrix, by squares of vectors where it has some."""
    shape, lanes = shape_of(a), c.machine.lanes(dtype_of(a))
    if not transpose.possible(shape, lanes, dtype_of(a)):
        return c.builder.emit(relax.op.permute_dims(a, [1, 0]))
    return c.function("transpose", transpose.matrix((shape[0], shape[1]), lanes, dtype_of(a)), shape[::-1], a)


def matmul(c: Context, inputs: Inputs) -> Outputs:
    """MatMul of float32 or float64 matrices with any batch axes."""
    a, b = inputs
    sa, sb = shape_of(a), shape_of(b)
    if dtype_of(a) not in ("float32", "float64") or len(sa) < 2 or len(sb) < 2 or 0 in (*sa, *sb):
        return NotImplemented
    if math.prod(sb[:-2]) != 1 and math.prod(sa[:-2]) != 1 and sa[:-2] != sb[:-2]:
        a, b = (c.broadcast(x, (*c.out_shape[:-2], *shape[-2:])) for x, shape in ((a, sa), (b, sb)))
    return product(c, a, b, c.out_shape)


def fully_connected(c: Context, inputs: Inputs) -> Outputs:
    """Gemm of float32 or float64: alpha A B + beta C, with either matrix transposed."""
    a, b = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    dtype = dtype_of(a)
    if dtype not in ("float32", "float64") or 0 in (*shape_of(a), *shape_of(b)):
        return NotImplemented
    if c.integer("transA"):
        a = turned(c, a)
    y = product(c, a, b, c.out_shape, bool(c.integer("transB")))
    alpha, beta = c.real("alpha", 1.0), c.real("beta", 1.0)
    if alpha != 1.0:
        y = c.builder.emit(relax.op.multiply(y, relax.const(alpha, dtype)))
    if bias is None or beta == 0.0:
        return y
    if beta != 1.0:
        bias = c.builder.emit(relax.op.multiply(bias, relax.const(beta, dtype)))
    return c.builder.emit(relax.op.add(y, bias))
