"""Indices that fall are divided right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from graphopt.targets.common.tir.rising import rising
from graphopt.targets.cpu import build
from graphopt.targets.gpu import devices, rules
from tests.targets.gpu.conftest import execute as execute


def reversed_split(n: int, width: int, step: int, shift: int) -> Any:
    """y[c, z] = x[i // width, z, i % width] of i = n - 1 - step * c, as a reversed slice of a blocked tensor has it."""
    kept = (n - 1 - shift) // step + 1
    x = te.placeholder((-(-n // width), 3, width), name="x")

    def element(c: Any, z: Any) -> Any:
        index = n - 1 - shift - c * step
        return x[tirx.floordiv(index, width), z, tirx.floormod(index, width)]

    return te.create_prim_func([x, te.compute((kept, 3), element, name="y")])


def check(run: Any, n: int, width: int, step: int, shift: int) -> None:
    x = np.random.default_rng(0).standard_normal((-(-n // width), 3, width)).astype(np.float32)
    channels = x.transpose(0, 2, 1).reshape(-1, 3)[:n]
    expected = channels[::-1][shift::step]
    np.testing.assert_array_equal(run(reversed_split(n, width, step, shift), x, expected.shape), expected)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(2, 80), st.sampled_from([2, 3, 8, 16]), st.integers(1, 5), st.data())
def test_on_a_cpu(lab: Any, n: int, width: int, step: int, data: Any) -> None:
    def run(function: Any, x: Any, shape: tuple[int, ...]) -> Any:
        made = build.compile_functions({"k": function.with_attr("global_symbol", "k")}, lab.target.cpu)
        y = tvm.runtime.tensor(np.full(shape, np.nan, np.float32))
        made["k"](tvm.runtime.tensor(x), y)
        return y.numpy()

    check(run, n, width, step, data.draw(st.integers(0, n - 1)))


@pytest.mark.parametrize(("n", "width", "step"), [(64, 16, 1), (50, 16, 3), (9, 2, 2)])
def test_on_a_gpu(execute: Any, n: int, width: int, step: int) -> None:
    def run(function: Any, x: Any, shape: tuple[int, ...]) -> Any:
        scheduled = rules.apply(function, devices.OPENCL).function
        return execute(scheduled, [x], [np.empty(shape, np.float32)])[0]

    check(run, n, width, step, 0)


def test_what_rises_is_left_alone() -> None:
    x = te.placeholder((8, 8), name="x")
    function = te.create_prim_func([x, te.compute((64,), lambda c: x[c // 8, c % 8], name="y")])
    module = tvm.IRModule({"main": function})
    assert rising()(module)["main"].same_as(module["main"])


def test_a_reversed_slice_of_split_channels(lab: Any) -> None:
    """The graph that showed it: what lies in blocks is put in order and reversed in one kernel."""
    body = "t = Transpose<perm = [0, 1, 4, 2, 3]>(x) p = Reshape(t, split) y = Slice(p, start, end, axis, step)"
    numbers = {"split": [1, 64, 3, 3], "start": [-1], "end": [-1000], "axis": [1], "step": [-1]}
    x = np.random.default_rng(0).standard_normal((1, 4, 3, 3, 16)).astype(np.float32)
    lab.same(body, {"x": x}, {name: np.array(value, np.int64) for name, value in numbers.items()})
