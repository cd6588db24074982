"""Layouts through a training step: what is blocked, and what stays planar with which reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from graphopt.passes import Layout, SelectConv
from graphopt.passes.conv.algorithms import Algorithm
from graphopt.pipeline.pass_base import PassResult
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.lab import make_model

POOL = "kernel_shape = [2, 2], strides = [2, 2], dilations = [1, 1], pads = [0, 0, 0, 0], ceil_mode = 0"


def numbers(*shape: int) -> Any:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


ZERO = {"zero": np.zeros((), np.float32)}


def laid_out(body: str, feeds: dict[str, Any], constants: dict[str, Any], outputs: tuple[str, ...]) -> PassResult:
    """The result of `layout` after direct convolutions were chosen; ONNX Runtime agrees before and after."""
    model = make_model(body, feeds, constants, outputs, 20)
    expected = run_onnxruntime(model, feeds)
    SelectConv(algorithms=(Algorithm.BLOCKED,))(model)
    result = Layout()(model)
    require_equal(expected, run_onnxruntime(model, feeds), "after layout")
    assert not Layout()(model).modified
    return result


def test_a_step_is_blocked_from_end_to_end() -> None:
    """Convolution, batch normalization, Relu and pool, forth and back."""
    body = f"""
        a = Conv<pads = [1, 1, 1, 1]>(x, w)
        m, v = graphopt.BatchStatistics(a)
        root = Sqrt(v)
        i = Reciprocal(root)
        mc = Reshape(m, column)
        ic = Reshape(i, column)
        centered = Sub(a, mc)
        n = Mul(centered, ic)
        r = Relu(n)
        p, k = graphopt.MaxPoolArgmax<{POOL}>(r)
        l = Mul(p, dp)
        dr = graphopt.MaxPoolGradient<{POOL}>(l, k, plane)
        mask = Greater(r, zero)
        dn = Where(mask, dr, zero)
        da, ds, db = graphopt.BatchNormalizationGradient(dn, a, s, m, i)
        dx = ConvTranspose<pads = [1, 1, 1, 1]>(da, w)
        sums = ReduceSum<keepdims = 0>(da, axes)
    """
    feeds = {"x": numbers(2, 20, 8, 8), "w": numbers(24, 20, 3, 3), "s": numbers(24), "dp": numbers(2, 24, 4, 4)}
    constants = {
        "column": np.array([1, 24, 1, 1]), "plane": np.array([2, 24, 8, 8]), "axes": np.array([0, 2, 3]), **ZERO
    }  # fmt: skip
    result = laid_out(body, feeds, constants, ("dx", "ds", "db", "sums"))
    names = Counter(node.op_type for node in result.model.graph)
    assert names["ToBlocked"] == 4  # x, dp, and the mean and deviation of each channel
    assert names["FromBlocked"] == 1  # dx
    assert names["BatchStatisticsBlocked"] == names["BatchNormalizationGradientBlocked"] == 1
    assert names["MaxPoolArgmaxBlocked"] == names["MaxPoolGradientBlocked"] == names["ChannelSumsBlocked"] == 1


def test_means_of_planes_and_phases() -> None:
    pool = POOL.replace("[2, 2], dil", "[1, 1], dil")
    body = f"""
        a = Conv(x, w)
        g = GlobalAveragePool(a)
        wide = Expand(g, shape)
        b = Add(a, wide)
        c = graphopt.AveragePoolGradient<{pool}, count_include_pad = 0>(b, larger)
        d = graphopt.InterleavePhases<strides = [2, 1], phases = [0, -1], shape = [18, 9]>(c)
        e = Conv(d, v)
    """
    feeds = {"x": numbers(2, 16, 8, 8), "w": numbers(32, 16, 1, 1), "v": numbers(16, 32, 1, 1)}
    constants = {"shape": np.array([2, 32, 8, 8]), "larger": np.array([2, 32, 9, 9])}
    names = Counter(node.op_type for node in laid_out(body, feeds, constants, ("e",)).model.graph)
    assert names["AveragePoolGradientBlocked"] == names["InterleavePhasesBlocked"] == 1
    assert names["ToBlocked"] == names["FromBlocked"] == 1


@pytest.mark.parametrize(
    ("line", "constants", "reason"),
    [
        ("y = ReduceSum<keepdims = 0>(a, axes)", {"axes": np.array([2, 3])}, "all axes but the channels"),
        ("y = ReduceSum<keepdims = 1>(a, axes)", {"axes": np.array([0, 2, 3])}, "keeps the axes"),
        ("y = Expand(a, axes)", {"axes": np.array([3, 2, 32, 8, 8])}, "four static extents"),
    ],
)
def test_reasons(line: str, constants: dict[str, Any], reason: str) -> None:
    result = laid_out(
        f"a = Conv(x, w) {line}", {"x": numbers(2, 16, 8, 8), "w": numbers(32, 16, 1, 1)}, constants, ("y",)
    )
    assert any(reason in refusal.reason for refusal in result.refusals)
