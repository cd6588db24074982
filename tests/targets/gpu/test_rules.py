"""Kernels without a product: elementwise, sums long and short, and loops that TVM wrote by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tvm import te, tirx
from tvm.script import tirx as T

from graphopt.targets.gpu import code, devices, nvrtc, rules

Shape = tuple[int, ...]


def numbers(*shape: int) -> Any:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 2), (129, 257), ()])
def test_elementwise(run: Any, shape: Shape) -> None:
    a, b = te.placeholder(shape, name="a"), te.placeholder(shape, name="b")
    product = te.compute(shape, lambda *i: a(*i) * b(*i), name="product")
    y = te.compute(shape, lambda *i: product(*i) + tirx.const(1, "float32"), name="y")
    x, w = numbers(*shape), numbers(*shape, 1).reshape(shape)
    (found,) = run(te.create_prim_func([a, b, y]), [x, w], [np.empty(shape, np.float32)])
    np.testing.assert_allclose(found, x * w + 1, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("kept", "summed"), [((3,), (5000,)), ((2, 300), (3, 3)), ((), (1000,)), ((40000,), (70,))])
@pytest.mark.parametrize("largest", [True, False])
def test_sums_and_maxima(run: Any, kept: Shape, summed: Shape, largest: bool) -> None:
    a = te.placeholder((*kept, *summed), name="a")
    axes = [te.reduce_axis((0, extent), f"r{i}") for i, extent in enumerate(summed)]
    reduce = te.max if largest else te.sum
    y = te.compute(kept, lambda *i: reduce(a(*i, *axes), axis=axes), name="y")
    x = numbers(*kept, *summed)
    over = tuple(range(len(kept), len(kept) + len(summed)))
    expected = x.max(over) if largest else x.astype(np.float64).sum(over)
    (found,) = run(te.create_prim_func([a, y]), [x], [np.empty(kept, np.float32)])
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-4)


def test_two_results_of_one_function(run: Any) -> None:
    """The first is an output too, so it is not inlined: two kernels."""
    a = te.placeholder((300,), name="a")
    doubled = te.compute((300,), lambda i: a[i] * 2, name="doubled")
    y = te.compute((300,), lambda i: doubled[i] + 1, name="y")
    x = numbers(300)
    found = run(te.create_prim_func([a, doubled, y]), [x], [np.empty(300, np.float32), np.empty(300, np.float32)])
    np.testing.assert_allclose(found, [x * 2, x * 2 + 1], rtol=1e-6)


def test_a_maximum_from_minus_infinity_on_between_kernels(run: Any) -> None:
    """TVM does not know how threads could share it."""
    a = te.placeholder((3, 5000), name="a")
    r = te.reduce_axis((0, 5000), "r")
    reducer = te.comm_reducer(lambda x, y: tirx.max(x, y), lambda t: tirx.const(-math.inf, t), name="extreme")
    top = te.compute((3,), lambda i: reducer(a[i, r], axis=[r]), name="top")
    y = te.compute((3, 5000), lambda i, j: a[i, j] - top[i], name="y")
    x = numbers(3, 5000)
    (found,) = run(te.create_prim_func([a, y]), [x], [np.empty((3, 5000), np.float32)])
    np.testing.assert_allclose(found, x - x.max(1, keepdims=True), rtol=1e-6, atol=1e-6)


def test_a_sum_between_kernels_is_scratch(run: Any) -> None:
    a = te.placeholder((3, 5000), name="a")
    r = te.reduce_axis((0, 5000), "r")
    total = te.compute((3,), lambda i: te.sum(a[i, r], axis=[r]), name="total")
    y = te.compute((3, 5000), lambda i, j: a[i, j] / total[i], name="y")
    x = np.abs(numbers(3, 5000)) + 1
    (found,) = run(te.create_prim_func([a, y]), [x], [np.empty((3, 5000), np.float32)])
    np.testing.assert_allclose(found, x / x.astype(np.float64).sum(1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_infinities_are_written_in_every_type(dtype: str) -> None:
    x = te.placeholder((64, 9), dtype, name="x")
    y = te.compute((64, 9), lambda i, j: tirx.if_then_else(j < 8, x[i, j + 1], tirx.const(-math.inf, dtype)), name="y")
    device = devices.DEVICES["h100"]
    made = code.generate("kernel", rules.apply(te.create_prim_func([x, y]), device).function, device)
    assert nvrtc.compile_cuda(made.source, device.arch).image


@T.prim_func(s_tir=True)
def running_sums(a: T.Buffer((130, 9), "float32"), y: T.Buffer((130, 9), "float32")):  # type: ignore[no-untyped-def]
    with T.sblock("scan"):
        T.reads()
        T.writes()
        for i in T.parallel(130):
            y[i, 0] = a[i, 0]
            for j in range(8):
                y[i, j + 1] = y[i, j] + a[i, j + 1]


def test_loops_written_by_hand_keep_their_parallel_one(run: Any) -> None:
    x = numbers(130, 9)
    (found,) = run(running_sums, [x], [np.empty((130, 9), np.float32)])
    np.testing.assert_allclose(found, np.cumsum(x, 1), rtol=1e-5, atol=1e-5)
    planned = rules.apply(running_sums, devices.OPENCL).plan
    assert planned.algorithm == "loops"


@T.prim_func(s_tir=True)
def in_order(a: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")):  # type: ignore[no-untyped-def]
    with T.sblock("scan"):
        T.reads()
        T.writes()
        y[0] = a[0]
        for i in range(63):
            y[i + 1] = y[i] * T.float32(0.5) + a[i + 1]


def test_loops_that_depend_on_each_other_run_in_one_thread(run: Any) -> None:
    x = numbers(64)
    expected = [float(x[0])]
    for value in x[1:]:
        expected.append(expected[-1] * 0.5 + float(value))
    (found,) = run(in_order, [x], [np.empty(64, np.float32)])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
