"""A kernel call names every ONNX node it computes, also where TVM merged equal functions or grouped several nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx.parser
import pytest

import graphopt

MODEL = """
    <ir_version: 10, opset_import: ["": 20]>
    g (float[4, 64] x, float[4, 64] residual) => (float[4, 32] y, float[4, 64] z)
    <float[64, 64] first = {FIRST}, float[64, 64] second = {SECOND}, float[64, 32] third = {THIRD}>
    {
        [multiply_a] a = MatMul(x, first)
        [rectify_a] ra = Relu(a)
        [multiply_b] b = MatMul(ra, second)
        [add] s = Add(b, residual)
        [rectify_b] z = Relu(s)
        [multiply_c] y = MatMul(z, third)
    }
"""


def test_fused_calls_name_their_nodes() -> None:
    text = MODEL
    for name, count in (("FIRST", 64 * 64), ("SECOND", 64 * 64), ("THIRD", 64 * 32)):
        text = text.replace(name, ", ".join(f"{(i * 7 % 13) / 64:.4f}" for i in range(count)))
    program = graphopt.compile(onnx.parser.parse_model(text)).program
    origins = [call.origin for call in program.stages[0].segments[0].calls]
    assert origins == [("multiply_a", "rectify_a"), ("multiply_b", "add", "rectify_b"), ("multiply_c",)]


def test_equal_kernels_keep_their_own_nodes() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[3, 50] x) => (float[3, 50] y)
        {
            [softmax_a] a = Softmax(x)
            [softmax_b] b = Softmax(a)
            [softmax_c] y = Softmax(b)
        }
    """
    calls = graphopt.compile(onnx.parser.parse_model(text)).program.stages[0].segments[0].calls
    assert len({call.symbol for call in calls}) == 1
    assert [call.origin for call in calls] == [("softmax_a",), ("softmax_b",), ("softmax_c",)]


def numbers(*shape: int) -> Any:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


def named(
    lab: Any,
    body: str,
    feeds: Mapping[str, Any],
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
) -> list[tuple[str, str]]:
    """What each call's symbol says that it does, and the nodes that it says it computes; nodes are numbered by line."""
    calls = lab.lower(lab.model(body, feeds, constants or {}, outputs)).calls
    return [(call.symbol.rpartition("_")[0], " ".join(call.origin)) for call in calls]


def conv(pads: int, result: str, inputs: str) -> str:
    window = f"strides=[2, 2], pads={[pads] * 4}, dilations=[1, 1], group=1"
    return f"{result} = graphopt.Conv2dBlocked<{window}>({inputs})"


CONSTANTS = {"v": numbers(1, 1, 3, 3, 16, 16), "w": numbers(1, 1, 3, 3, 16, 16) + 1, "bias": numbers(1, 16)}


def test_equal_groups_keep_their_own_nodes(lab: Any) -> None:
    """Equal groups share a function, and Relax numbers the variables of main and those of groups apart."""
    body = f"""
        {conv(1, "a", "x, v, bias")}
        b = Relu(a)
        c = graphopt.MaxPoolBlocked<kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]>(b)
        {conv(1, "d", "c, w, bias")}
        e = Relu(d)
        f = graphopt.MaxPoolBlocked<kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]>(e)
        g = Softmax(f)
        {conv(1, "h", "g, v, bias")}
        y = Relu(h)
    """
    assert named(lab, body, {"x": numbers(1, 1, 16, 16, 16)}, CONSTANTS) == [
        ("pad", "conv2dblocked0"),
        ("conv_direct_relu", "conv2dblocked0 relu1"),
        ("pool_max", "maxpoolblocked2"),
        ("pad", "conv2dblocked3"),
        ("conv_direct_relu", "conv2dblocked3 relu4"),
        ("pool_max", "maxpoolblocked5"),
        ("softmax", "softmax6"),
        ("pad", "conv2dblocked7"),
        ("conv_direct_relu", "conv2dblocked7 relu8"),
    ]


def test_equal_calls_are_told_apart_by_what_reads_them(lab: Any) -> None:
    """Two equal pools of one input, and the pads of two convolutions that differ in their weights only."""
    pool = "graphopt.MaxPoolBlocked<kernel_shape=[3, 3], strides=[1, 1], pads=[0, 0, 0, 0]>(x)"
    body = f"""
        p = {pool}
        q = {pool}
        {conv(1, "a", "x, v, bias")}
        {conv(1, "b", "x, w, bias")}
        r = Relu(q)
        s = Sqrt(p)
        c = Relu(b)
        d = Sqrt(a)
    """
    found = named(lab, body, {"x": np.abs(numbers(1, 1, 16, 16, 16))}, CONSTANTS, ("r", "s", "c", "d"))
    assert sorted(found) == [
        ("conv_direct_relu", "conv2dblocked3 relu6"),
        ("conv_direct_tir_sqrt", "conv2dblocked2 sqrt7"),
        ("pad", "conv2dblocked2"),
        ("pad", "conv2dblocked3"),
        ("pool_max_relu", "maxpoolblocked1 relu4"),
        ("pool_max_tir_sqrt", "maxpoolblocked0 sqrt5"),
    ]


def test_a_planned_concat_is_no_call_except_where_it_copies(lab: Any) -> None:
    body = """
        a = Relu(x)
        b = Exp(x)
        c = Concat<axis=1>(a, b, x)
        d = Sqrt(a)
        y = Concat<axis=1>(c, d)
        z = Softmax(c)
    """
    assert named(lab, body, {"x": np.abs(numbers(1, 16, 16, 16))}, {}, ("y", "z")) == [
        ("relu", "relu0"),
        ("exp", "exp1"),
        ("copy", "concat2"),
        ("tir_sqrt", "sqrt3"),
        ("softmax", "softmax5"),
    ]


@pytest.mark.parametrize("groups", [2, 4])
def test_nodes_of_which_nothing_is_left_lend_no_name(lab: Any, groups: int) -> None:
    """ToBlocked shuffles channels, so that the Transpose before it is dead: what follows must not take its name."""
    body = f"""
        a = Exp(x)
        b = Reshape(a, apart)
        c = Transpose<perm=[0, 2, 1, 3, 4]>(b)
        d = Reshape(c, together)
        e = graphopt.ToBlocked<block=16>(d)
        {conv(1, "f", "e, v, bias")}
        y = Relu(f)
    """
    shapes = {"apart": np.array([1, groups, 16 // groups, 16, 16]), "together": np.array([1, 16, 16, 16])}
    assert named(lab, body, {"x": numbers(1, 16, 16, 16)}, CONSTANTS | shapes) == [
        ("exp", "exp0"),
        ("to_blocked", "toblocked4"),
        ("pad", "conv2dblocked5"),
        ("conv_direct_relu", "conv2dblocked5 relu6"),
    ]


def test_a_node_that_hands_its_input_on_takes_no_name(lab: Any) -> None:
    """The Concat of one part is that part, also long after it was computed."""
    body = """
        a = Exp(x)
        b = Softmax(a)
        c = Concat<axis=0>(a)
        d = Sqrt(c)
        y = Add(b, d)
    """
    assert {origin for _, origin in named(lab, body, {"x": numbers(3, 40)})} == {"exp0", "softmax1", "sqrt3 add4"}
