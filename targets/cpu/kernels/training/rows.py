"""Gradients row by row: Softmax, LogSoftmax and LayerNormalization, and sums over rows.

A row is read from memory once; all blocks of it run inside one loop (`rowwise`).
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.cpu.kernels import rowwise
from graphopt.targets.cpu.kernels.rowwise import added, reduced
from graphopt.targets.cpu.kernels.tiling import largest_divisor

PART = 64
"""Rows that are summed in their own dtype; the sums of parts are added in double precision."""


def softmax(dy: te.Tensor, y: te.Tensor, lanes: int) -> te.Tensor:
    """y (dy - sum(dy y)) of rows [R, n]."""
    r, n = dims(y)
    mean = reduced(r, n, lanes, te.sum, added, lambda i, j: dy[i, j] * y[i, j], "weighted")
    return te.compute((r, n), lambda i, j: y[i, j] * (dy[i, j] - mean[i]), name="dx")


def log_softmax(dy: te.Tensor, y: te.Tensor, lanes: int) -> te.Tensor:
    """dy - exp(y) sum(dy) of rows [R, n]."""
    r, n = dims(y)
    total = reduced(r, n, lanes, te.sum, added, lambda i, j: dy[i, j], "total")
    return te.compute((r, n), lambda i, j: dy[i, j] - tirx.exp(y[i, j]) * total[i], name="dx")


def statistics(x: te.Tensor, epsilon: float, lanes: int) -> te.Tensor:
    """[R, 2]: the mean and 1 / sqrt(variance + epsilon) of each row of x[R, n], in two passes over the row."""
    r, n = dims(x)
    kept = "float64" if x.dtype == "float32" else str(x.dtype)
    total = reduced(r, n, lanes, te.sum, added, lambda i, j: x[i, j].astype(kept), "sum")
    mean = te.compute((r,), lambda i: (total[i] / const(n, kept)).astype(x.dtype), name="mean")

    def square(i: Expr, j: Expr | tirx.IterVar) -> Expr:
        return (x[i, j] - mean[i]) * (x[i, j] - mean[i])

    squares = reduced(r, n, lanes, te.sum, added, square, "squares")
    share, tiny = const(1.0 / n, x.dtype), const(epsilon, x.dtype)

    def element(i: Expr, k: Expr) -> Expr:
        deviation = const(1, x.dtype) / tirx.sqrt(squares[i] * share + tiny)
        return tirx.Select(k == 0, mean[i], deviation)

    return te.compute((r, 2), element, name="statistics")


def layer_norm(
    dy: te.Tensor, x: te.Tensor, scale: te.Tensor, mean: te.Tensor, inverse: te.Tensor, lanes: int
) -> te.Tensor:
    """inv (g - mean(g) - xhat mean(g xhat)) with g = dy scale and xhat = (x - mean) inv, of rows [R, n]."""
    r, n = dims(x)
    share = const(1.0 / n, x.dtype)

    def of_scaled(i: Expr, j: Expr | tirx.IterVar) -> Expr:
        return dy[i, j] * scale[j]

    def centered(i: Expr, j: Expr | tirx.IterVar) -> Expr:
        return (x[i, j] - mean[i]) * inverse[i]

    plain = reduced(r, n, lanes, te.sum, added, of_scaled, "plain")
    along = reduced(r, n, lanes, te.sum, added, lambda i, j: of_scaled(i, j) * centered(i, j), "along")

    def element(i: Expr, j: Expr) -> Expr:
        return inverse[i] * (of_scaled(i, j) - plain[i] * share - centered(i, j) * (along[i] * share))

    return te.compute((r, n), element, name="dx")


def column_parts(value: rowwise.Place, r: int, n: int) -> te.Tensor:
    """[Q, n]: sums of value(row, column) over parts of the R rows."""
    length = largest_divisor(r, PART)
    row = te.reduce_axis((0, length), "row")
    return te.compute(
        (r // length, n), lambda q, j: te.sum(value(q * length + row, j), axis=[row]), name="column_parts"
    )


def columns(parts: te.Tensor) -> te.Tensor:
    """[n]: the sum of parts[Q, n], in double precision and in order."""
    q, n = dims(parts)
    r = te.reduce_axis((0, q), "part")
    total = te.compute((n,), lambda j: te.sum(parts[r, j].astype("float64"), axis=[r]), name="total")
    return te.compute((n,), lambda j: total[j].astype(parts.dtype), name="columns")
