"""Weights that a run packs, against the bodies of the functions and against packing at compile time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.ops.conv import pack_conv_weight, pack_depthwise_weight
from graphopt.ops.winograd import winograd_weight


def numbers(*shape: int) -> Any:
    return np.random.default_rng([5, *shape]).standard_normal(shape).astype(np.float32)


def run(lab: Any, body: str, x: Any, rtol: float = 2e-5) -> Any:
    """What the kernels compute, which agrees with the bodies."""
    lowered = lab.same(body, {"x": x}, rtol=rtol)
    return lab.execute(lowered, {"x": x})["y"]


@pytest.mark.parametrize(
    ("outputs", "channels", "kernel"), [(2, 2, (1, 1)), (1.5, 2, (2, 5)), (0.5, 1, (3, 3)), (2, 1.25, (3, 3))]
)
def test_packing_and_unpacking(any_lab: Any, outputs: float, channels: float, kernel: tuple[int, int]) -> None:
    """Sizes in blocks: full ones are squares, ragged ones are filled with zeros."""
    b = any_lab.target.cpu.lanes()
    w = numbers(int(outputs * b), int(channels * b), *kernel)
    packed = run(any_lab, f"y = graphopt.ToBlockedWeight<in_block={b}, block={b}>(x)", w)
    np.testing.assert_array_equal(packed, pack_conv_weight(w, 1, b, b))
    back = run(any_lab, f"y = graphopt.FromBlockedWeight<shape={list(w.shape)}>(x)", packed)
    np.testing.assert_array_equal(back, w)


def test_packing_planes(lab: Any) -> None:
    b, w = lab.target.cpu.lanes(), numbers(20, 3, 7, 7)
    packed = run(lab, f"y = graphopt.ToBlockedWeight<in_block=1, block={b}>(x)", w)
    np.testing.assert_array_equal(packed, pack_conv_weight(w, 1, 1, b))
    np.testing.assert_array_equal(run(lab, "y = graphopt.FromBlockedWeight<shape=[20, 3, 7, 7]>(x)", packed), w)


@pytest.mark.parametrize("channels", [16, 21])
def test_depthwise_weights(lab: Any, channels: int) -> None:
    b, w = lab.target.cpu.lanes(), numbers(channels, 1, 3, 5)
    packed = run(lab, f"y = graphopt.ToDepthwiseWeight<block={b}>(x)", w)
    np.testing.assert_array_equal(packed, pack_depthwise_weight(w, b))
    np.testing.assert_array_equal(run(lab, f"y = graphopt.FromDepthwiseWeight<channels={channels}>(x)", packed), w)


@pytest.mark.parametrize(("group", "kernel"), [(1, (3, 3)), (2, (2, 3))])
def test_flipped_weights_are_those_of_the_gradient(any_lab: Any, group: int, kernel: tuple[int, int]) -> None:
    b = any_lab.target.cpu.lanes()
    w = numbers(group * b, 2 * b, *kernel)  # [O, C / group, ...]
    flipped = run(any_lab, f"y = graphopt.FlipBlockedWeight<group={group}>(x)", pack_conv_weight(w, group, b, b))
    of_groups = w.reshape(group, b, 2 * b, *kernel)[..., ::-1, ::-1].swapaxes(1, 2).reshape(-1, b, *kernel)
    np.testing.assert_array_equal(flipped, pack_conv_weight(of_groups, group, b, b))


@pytest.mark.parametrize("m", [2, 4, 6])
def test_winograd_weights(lab: Any, m: int) -> None:
    b = lab.target.cpu.lanes()
    w = numbers(b + 3, 2 * b, 3, 3)
    u = run(lab, f"y = graphopt.WinogradWeight<m={m}>(x)", pack_conv_weight(w, 1, b, b))
    np.testing.assert_allclose(u, winograd_weight(w, m, b), rtol=1e-5, atol=1e-6)


def test_special_values_move_as_they_are(lab: Any) -> None:
    b = lab.target.cpu.lanes()
    w = numbers(b, b, 3, 3)
    w.reshape(-1)[:4] = np.nan, np.inf, -0.0, 1e-42
    packed = run(lab, f"y = graphopt.ToBlockedWeight<in_block={b}, block={b}>(x)", w)
    flipped = run(lab, "y = graphopt.FlipBlockedWeight<group=1>(x)", packed)
    assert packed.tobytes() == pack_conv_weight(w, 1, b, b).tobytes()
    assert flipped.tobytes() == pack_conv_weight(w[..., ::-1, ::-1].swapaxes(0, 1), 1, b, b).tobytes()
