"""Weight gradients of convolutions on blocked tensors, against the bodies of their functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.targets.cpu.kernels.training import weight_gradient

few = settings(deadline=None, max_examples=12, derandomize=True)


def numbers(*shape: int) -> Any:
    return np.random.default_rng([11, *shape]).standard_normal(shape).astype(np.float32)


def blocked(x: Any, b: int) -> Any:
    """[N, C, H, W] -> [N, CB, H, W, b]; padded lanes hold numbers, as they may."""
    n, c, h, w = x.shape
    padded = np.concatenate([x, np.full((n, -c % b, h, w), 3, x.dtype)], axis=1)
    return np.ascontiguousarray(padded.reshape(n, -1, b, h, w).transpose(0, 1, 3, 4, 2))


def gradient(
    lab: Any,
    channels: tuple[int, int],
    plane: tuple[int, int],
    kernel: tuple[int, int] = (3, 3),
    strides: tuple[int, int] = (1, 1),
    pads: tuple[int, int, int, int] = (1, 1, 1, 1),
    dilations: tuple[int, int] = (1, 1),
    group: int = 1,
    bi: int = 0,
    batch: int = 2,
) -> Any:
    """Check one gradient, given back as planar weights; depthwise where groups have one channel."""
    b = lab.target.cpu.lanes()
    c, o = channels
    out = [(plane[i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in range(2)]
    feeds = {"x": blocked(numbers(batch, c, *plane), bi or b), "dy": blocked(numbers(batch, o, *out), b)}
    window = f"kernel_shape={list(kernel)}, strides={list(strides)}, pads={list(pads)}, dilations={list(dilations)}"
    if group == c == o and group > 1:
        body = f"w = graphopt.DepthwiseWeightGradientBlocked<{window}>(x, dy)"
        body += f"y = graphopt.FromDepthwiseWeight<channels={c}>(w)"
    else:
        body = f"w = graphopt.Conv2dWeightGradientBlocked<{window}, group={group}>(x, dy)"
        body += f"y = graphopt.FromBlockedWeight<shape={[o, c // group, *kernel]}>(w)"
    return lab.same(body, feeds, rtol=1e-4)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"channels": (16, 16), "plane": (8, 8)}, id="plain"),
        pytest.param({"channels": (40, 72), "plane": (9, 13)}, id="ragged channels and width"),
        pytest.param({"channels": (3, 32), "plane": (23, 23), "kernel": (7, 7), "strides": (2, 2),
                      "pads": (3, 3, 3, 3), "bi": 1}, id="first layer"),
        pytest.param({"channels": (16, 16), "plane": (11, 10), "pads": (0, 2, 1, 3), "kernel": (2, 5)},
                     id="asymmetric pads"),
        pytest.param({"channels": (16, 32), "plane": (12, 15), "dilations": (2, 3), "pads": (2, 3, 2, 3)},
                     id="dilation"),
        pytest.param({"channels": (16, 32), "plane": (12, 15), "strides": (3, 2)}, id="stride"),
        pytest.param({"channels": (64, 128), "plane": (5, 6), "group": 4, "strides": (2, 2)}, id="group and stride"),
        pytest.param({"channels": (32, 48), "plane": (17, 19), "kernel": (1, 1), "pads": (0, 0, 0, 0)}, id="1x1"),
        pytest.param({"channels": (32, 16), "plane": (9, 9), "kernel": (1, 1), "pads": (0, 0, 0, 0),
                      "strides": (2, 2), "batch": 5}, id="1x1 with stride"),
        pytest.param({"channels": (16, 16), "plane": (1, 1), "kernel": (1, 1), "pads": (0, 0, 0, 0)}, id="one pixel"),
        pytest.param({"channels": (16, 16), "plane": (2, 300), "kernel": (1, 3), "pads": (0, 1, 0, 1)}, id="long rows"),
        pytest.param({"channels": (32, 32), "plane": (14, 14), "group": 32}, id="depthwise"),
        pytest.param({"channels": (20, 20), "plane": (13, 9), "strides": (2, 2), "group": 20, "kernel": (5, 5),
                      "pads": (2, 2, 2, 2)}, id="depthwise with stride"),
    ],
)  # fmt: skip
def test_weight_gradient(lab: Any, case: dict[str, Any]) -> None:
    gradient(lab, **case)


def test_every_level(any_lab: Any) -> None:
    """Ragged channels with stride and batch, planes, groups, depthwise."""
    gradient(any_lab, (20, 40), (9, 13), strides=(2, 1))
    gradient(any_lab, (3, 32), (11, 11), kernel=(5, 5), bi=1)
    gradient(any_lab, (32, 64), (5, 6), group=2)
    gradient(any_lab, (20, 20), (6, 6), group=20)


@given(
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    plane=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    batch=st.integers(1, 3),
    depthwise=st.booleans(),
)
@few
def test_weight_gradient_of_any_shape(lab: Any, depthwise: bool, **case: Any) -> None:
    for axis in range(2):
        reach = (case["kernel"][axis] - 1) * case["dilations"][axis] + 1
        assume(case["plane"][axis] + case["pads"][axis] + case["pads"][axis + 2] >= reach)
    if depthwise:
        case["channels"], case["group"] = (case["channels"][0],) * 2, case["channels"][0]
    gradient(lab, **case)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e-42])
def test_special_values_reach_the_weights_that_see_them(lab: Any, value: float) -> None:
    """One pixel of one channel: all taps of that input, and no others."""
    b = lab.target.cpu.lanes()
    x, dy = np.ones((1, 2, 5, 5, b), np.float32), np.ones((1, 1, 5, 5, b), np.float32)
    x[0, 1, 2, 2, 3] = value
    body = "y = graphopt.Conv2dWeightGradientBlocked<kernel_shape=[3,3],strides=[1,1],pads=[1,1,1,1],dilations=[1,1]"
    model = lab.model(f"{body}, group=1>(x, dy)", {"x": x, "dy": dy})
    y = lab.execute(lab.lower(model), {"x": x, "dy": dy})["y"]
    touched = ~np.isfinite(y) if not np.isfinite(value) else np.zeros(y.shape, bool)
    assert touched[:, 1, :, :, 3].all() == (not np.isfinite(value))
    touched[:, 1, :, :, 3] = False
    assert not touched.any()
    np.testing.assert_array_equal(y[0, 0, 1, 1], 25)


def test_few_weights_share_the_images_among_tasks(lab: Any) -> None:
    """The partition follows the shapes alone, so that no number of threads changes a bit."""
    parts = weight_gradient.Parts.of(8, 32, 32, False)
    assert (parts.images, parts.rows, parts.columns, parts.count) == (1, 4, 32, 64)
    assert weight_gradient.Parts.of(8, 7, 7, False) == weight_gradient.Parts(2, 7, 7, 1, 4)
    assert weight_gradient.Parts.of(3, 9, 40, True) == weight_gradient.Parts(1, 1, 120, 3, 9)
    lowered = gradient(lab, (1, 1), (16, 16), batch=6)
    assert sum("added" in call.symbol or "add_shares" in call.symbol for call in lowered.calls) == 1


@pytest.mark.parametrize(
    ("channels", "plane", "kernel", "group"),
    [
        ((5, 6), (9, 8), (3, 2), 1),
        ((8, 12), (7, 6), (3, 3), 4),
        ((3, 2), (11,), (3,), 1),
        ((2, 4), (5, 4, 3), (2, 2, 3), 2),
    ],
)
def test_planar_tensors_of_any_rank(lab: Any, channels: Any, plane: Any, kernel: Any, group: int) -> None:
    rank = len(plane)
    strides, dilations, pads = (2,) + (1,) * (rank - 1), (1,) * (rank - 1) + (2,), (1,) * 2 * rank
    out = [(n + 2 - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(plane, kernel, strides, dilations, strict=True)]
    feeds = {"x": numbers(3, channels[0], *plane), "dy": numbers(3, channels[1], *out)}
    window = f"kernel_shape={list(kernel)}, strides={list(strides)}, pads={list(pads)}, dilations={list(dilations)}"
    lab.same(f"y = graphopt.ConvWeightGradient<{window}, group={group}>(x, dy)", feeds, rtol=1e-4)
