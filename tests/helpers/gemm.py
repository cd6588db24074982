"""GEMMs for the tests of their kernel templates for GPUs."""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import s_tir, te, tirx

from graphopt.targets.common.kernels.blocks import blocks_of
from graphopt.targets.gpu.kernels.gemm import product
from graphopt.targets.gpu.kernels.gemm.axes import Axes

Sizes = tuple[int, int, int, int]


def matmul(sizes: Sizes, transposed: tuple[bool, bool] = (False, False), dtype: str = "float32", **more: Any) -> Any:
    """y = relu(a @ b + bias), as fusion leaves it."""
    batch, m, n, k = sizes
    a = te.placeholder((batch, k, m) if transposed[0] else (batch, m, k), dtype, name="a")
    b = te.placeholder((batch, n, k) if transposed[1] else (batch, k, n), dtype, name="b")
    bias = te.placeholder((n,), dtype, name="bias")
    y = product.compute(
        lambda i, y, r: a[i, r, y] if transposed[0] else a[i, y, r],
        lambda i, r, x: b[i, x, r] if transposed[1] else b[i, r, x],
        sizes,
        Axes.plain((batch, m, n), (1, 1, 1), m),
        dtype,
        accumulate="float64" if dtype == "float64" else "float32",
        **more,
    )
    added = te.compute((batch, m, n), lambda i, y_, x: y[i, y_, x] + bias[x], name="added")
    zero = tirx.const(0, dtype)
    result = te.compute((batch, m, n), lambda *i: tirx.max(added(*i), zero), name="relu")
    return te.create_prim_func([a, b, bias, result])


def operands(sizes: Sizes, transposed: tuple[bool, bool]) -> Any:
    """(a, b, bias) in single precision, and relu(a @ b + bias)."""
    batch, m, n, k = sizes
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((batch, m, k)), rng.standard_normal((batch, k, n))
    bias = rng.standard_normal(n)
    given = a.swapaxes(1, 2) if transposed[0] else a, b.swapaxes(1, 2) if transposed[1] else b, bias
    rounded = [each.astype(np.float32) for each in given]
    return rounded, np.maximum(a @ b + bias, 0)


def normal_form(function: Any) -> product.Gemm:
    sch = s_tir.Schedule(function)
    return product.read(sch, next(block for block in blocks_of(sch) if block.rule == product.NAME))
