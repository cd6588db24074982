"""Layout changes, pooling and local response normalization on blocked tensors, against the functions' bodies."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

few = settings(deadline=None, max_examples=30, derandomize=True)


def numbers(*shape: int) -> Any:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("channels", "block"), [(1, 16), (3, 3), (16, 16), (20, 16), (33, 8), (7, 4)])
@pytest.mark.parametrize(("plane", "dtype"), [((3, 5), "float32"), ((11, 13), "float32"), ((3, 5), "float64")])
def test_to_and_from_blocked(any_lab: Any, channels: int, block: int, plane: tuple[int, int], dtype: str) -> None:
    x = numbers(2, channels, *plane).astype(dtype)
    any_lab.same(f"y = graphopt.ToBlocked<block={block}>(x)", {"x": x})
    blocked = numbers(2, -(-channels // block), *plane, block).astype(dtype)
    any_lab.same(f"y = graphopt.FromBlocked<channels={channels}>(x)", {"x": blocked})


@pytest.mark.parametrize(
    ("split", "axes", "calls"),
    [
        ((2, 4, 5, 6, 7), (0, 2, 1, 3, 4), 1),
        ((2, 5, 4, 6, 7), (0, 2, 1, 3, 4), 1),
        ((2, 4, 5, 7, 6), (0, 2, 1, 4, 3), 2),
    ],
)
def test_channels_are_shuffled_on_the_way(lab: Any, split: Any, axes: Any, calls: int) -> None:
    """Reshape, Transpose, Reshape, ToBlocked: one kernel where the Transpose exchanges groups and channels only."""
    body = f"a = Relu(x) s = Reshape(a, split) t = Transpose<perm={list(axes)}>(s) u = Reshape(t, back)"
    body += " y = graphopt.ToBlocked<block=16>(u)"
    constants = {"split": np.array(split), "back": np.array([2, 20, 6, 7])}
    lowered = lab.same(body, {"x": numbers(2, 20, 6, 7)}, constants)
    assert len(lowered.calls) == calls + 1


@pytest.mark.parametrize(
    ("shape", "axes", "planes", "calls"),
    [
        ((2, 6, 7, 20), (0, 3, 1, 2), (2, 20, 6, 7), 1),
        ((1, 42, 32, 1), (0, 2, 1, 3), (1, 32, 1, 42), 1),  # a column that became a row
        ((2, 1, 42, 20), (0, 3, 1, 2), (2, 20, 6, 7), 1),
        ((2, 6, 7, 20), (0, 3, 2, 1), (2, 20, 7, 6), 2),
        ((6, 7, 2, 20), (2, 3, 0, 1), (2, 20, 6, 7), 2),
        ((2, 6, 20, 7), (0, 2, 1, 3), (2, 20, 6, 7), 2),
        ((2, 7, 6, 20), (0, 3, 1, 2), (2, 10, 6, 14), 2),  # planes of something else
    ],
)
def test_channels_that_lie_last(lab: Any, shape: Any, axes: Any, planes: Any, calls: int) -> None:
    """Transpose, Reshape, ToBlocked: one kernel where each image keeps its pixels in order."""
    body = f"t = Transpose<perm={list(axes)}>(x) u = Reshape(t, planes) y = graphopt.ToBlocked<block=16>(u)"
    lowered = lab.same(body, {"x": numbers(*shape)}, {"planes": np.array(planes)})
    assert len(lowered.calls) == calls


def test_padded_lanes_are_zero(lab: Any) -> None:
    x = np.full((1, 5, 2, 2), np.nan, np.float32)
    lowered = lab.lower(lab.model("y = graphopt.ToBlocked<block=4>(x)", {"x": x}))
    y = lab.execute(lowered, {"x": x})["y"]
    assert np.isnan(y[:, 0]).all()
    assert np.isnan(y[:, 1, :, :, 0]).all()
    assert not y[:, 1, :, :, 1:].any()


def pool(lab: Any, mode: str, channels: int, plane: tuple[int, int], batch: int = 1, **attributes: Any) -> Any:
    b = lab.target.cpu.lanes()
    given_attributes = {
        "kernel_shape": (3, 3), "strides": (1, 1), "pads": (0, 0, 0, 0), "ceil_mode": 0,
        **({"dilations": (1, 1)} if mode == "Max" else {"count_include_pad": 0}), **attributes,
    }  # fmt: skip
    spelled = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in given_attributes.items())
    x = numbers(batch, -(-channels // b), *plane, b)
    return lab.same(f"y = graphopt.{mode}PoolBlocked<{spelled}>(x)", {"x": x})


@pytest.mark.parametrize("mode", ["Max", "Average"])
@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"plane": (8, 8)}, id="plain"),
        pytest.param({"plane": (13, 21), "strides": (2, 2), "pads": (1, 1, 1, 1), "channels": 40}, id="stride"),
        pytest.param({"plane": (7, 9), "kernel_shape": (2, 3), "strides": (2, 2), "ceil_mode": 1}, id="ceil"),
        pytest.param({"plane": (9, 8), "pads": (0, 2, 1, 1), "ceil_mode": 1, "strides": (2, 3)}, id="ceil and pads"),
        pytest.param({"plane": (11, 11), "kernel_shape": (9, 9), "batch": 2}, id="wide window"),
        pytest.param({"plane": (3, 3)}, id="one output"),
    ],
)
def test_pool(any_lab: Any, mode: str, case: dict[str, Any]) -> None:
    pool(any_lab, mode, **{"channels": 16, **case})


def test_max_pool_with_dilations(any_lab: Any) -> None:
    pool(any_lab, "Max", 16, (11, 12), dilations=(2, 3), pads=(1, 2, 0, 1), strides=(2, 1))


def test_max_pool_sees_no_padding(lab: Any) -> None:
    """Padding is no zero: among negative numbers it would win."""
    b = lab.target.cpu.lanes()
    x = -1 - np.abs(numbers(1, 1, 5, 5, b))
    body = "y = graphopt.MaxPoolBlocked<kernel_shape=[3,3],strides=[1,1],pads=[1,1,1,1],dilations=[1,1],ceil_mode=0>(x)"
    lab.same(body, {"x": x})


@pytest.mark.parametrize("ceil_mode", [0, 1])
@pytest.mark.parametrize("pads", [(1, 1, 1, 1), (0, 2, 1, 0), (0, 0, 0, 0)])
def test_average_pool_counts_padding_where_told(any_lab: Any, pads: tuple[int, ...], ceil_mode: int) -> None:
    pool(any_lab, "Average", 16, (8, 10), pads=pads, strides=(2, 3), count_include_pad=1, ceil_mode=ceil_mode)


@given(
    mode=st.sampled_from(["Max", "Average"]),
    channels=st.integers(1, 40),
    plane=st.tuples(st.integers(1, 16), st.integers(1, 16)),
    kernel_shape=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    ceil_mode=st.integers(0, 1),
    extra=st.integers(0, 1),
)
@few
def test_pool_of_any_shape(lab: Any, mode: str, extra: int, **case: Any) -> None:
    kernel, pads = case["kernel_shape"], case["pads"]
    for axis in range(2):
        assume(pads[axis] < kernel[axis] and pads[axis + 2] < kernel[axis])
        assume(case["plane"][axis] + pads[axis] + pads[axis + 2] >= kernel[axis])
    if mode == "Average":
        case["count_include_pad"] = extra
    pool(lab, mode, **case)


@pytest.mark.parametrize("plane", [(1, 1), (7, 7), (5, 12)])
def test_global_average_pool(any_lab: Any, plane: tuple[int, int]) -> None:
    b = any_lab.target.cpu.lanes()
    lowered = any_lab.same("y = graphopt.GlobalAveragePoolBlocked(x)", {"x": numbers(2, 3, *plane, b)})
    assert len(lowered.calls) == 1


@pytest.mark.parametrize("value", [0.1, 1e4, -3.3e-5, 1e-42])
def test_the_mean_of_a_flat_plane_is_its_value(lab: Any, value: float) -> None:
    b = lab.target.cpu.lanes()
    x = np.full((1, 1, 184, 248, b), value, np.float32)
    model = lab.model("y = graphopt.GlobalAveragePoolBlocked(x)", {"x": x})
    y = lab.execute(lab.lower(model), {"x": x})["y"]
    np.testing.assert_allclose(y, x[:, :, :1, :1], rtol=1e-7, atol=np.finfo(np.float32).smallest_subnormal)


@pytest.mark.parametrize("channels", [16, 20, 3])
@pytest.mark.parametrize(("size", "beta"), [(1, 0.75), (3, 0.75), (3, 0.5), (5, 0.6)])
def test_lrn(any_lab: Any, channels: int, size: int, beta: float) -> None:
    """Only the real channels count: the rest of a block may hold anything finite."""
    b = any_lab.target.cpu.lanes()
    x = numbers(1, -(-channels // b), 4, 3, b) * 3
    body = f"""
        z = graphopt.LRNBlocked<channels={channels}, size={size}, alpha=0.3, beta={beta}, bias=1.5>(x)
        y = graphopt.FromBlocked<channels={channels}>(z)
    """
    any_lab.same(body, {"x": x})


def test_lrn_of_even_size(lab: Any) -> None:
    """ONNX Runtime refuses even sizes; ONNX defines them: one neighbour less before than after."""
    x = numbers(1, 2, 3, 2, 4)
    model = lab.model("y = graphopt.LRNBlocked<channels=7, size=3, alpha=0.3, beta=0.75, bias=1.5>(x)", {"x": x})
    node = model.graph.node(0)
    node.attributes["size"] = ir.AttrInt64("size", 4)
    y = lab.execute(lab.lower(model), {"x": x})["y"]
    planar = x.transpose(0, 1, 4, 2, 3).reshape(1, 8, 3, 2).astype(np.float64)[:, :7]
    expected = np.stack(
        [
            planar[:, c] / (1.5 + 0.3 / 4 * (planar[:, max(0, c - 1) : c + 3] ** 2).sum(axis=1)) ** 0.75
            for c in range(7)
        ],
        axis=1,
    )
    np.testing.assert_allclose(y.transpose(0, 1, 4, 2, 3).reshape(1, 8, 3, 2)[:, :7], expected, rtol=1e-5)


def test_pool_takes_an_epilogue(any_lab: Any) -> None:
    b = any_lab.target.cpu.lanes()
    body = """
        p = graphopt.AveragePoolBlocked<
            kernel_shape=[2,2], strides=[2,2], pads=[0,0,0,0], ceil_mode=0, count_include_pad=0>(x)
        s = Mul(p, scale)
        y = Relu(s)
    """
    lowered = any_lab.same(body, {"x": numbers(1, 2, 8, 8, b)}, {"scale": numbers(1, 2, 1, 1, b)})
    assert len(lowered.calls) == 1
