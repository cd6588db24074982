"""The bodies on blocked tensors against the plain operators, both in ONNX Runtime."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.ops.conv import pack_bias, pack_conv_weight, pack_depthwise_weight
from graphopt.ops.layout import blocks

FIXTURE_OK = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def blocked(x: np.ndarray, block: int, filler: float = 0.0) -> np.ndarray:
    """An independent ToBlocked with `filler` in the padded lanes."""
    n, c, h, w = x.shape
    out = np.full((n, blocks(c, block), h, w, block), filler, x.dtype)
    for channel in range(c):
        out[:, channel // block, :, :, channel % block] = x[:, channel]
    return out


def planar(x: np.ndarray, channels: int) -> np.ndarray:
    return np.stack([x[:, c // x.shape[4], :, :, c % x.shape[4]] for c in range(channels)], axis=1)


@pytest.mark.parametrize(("channels", "block"), [(1, 16), (3, 3), (16, 16), (20, 16), (33, 8)])
def test_to_and_from_blocked(run_node, channels: int, block: int) -> None:
    x = normal(2, channels, 3, 5)
    y = run_node("ToBlocked", [x], {"block": block})
    np.testing.assert_array_equal(y, blocked(x, block))
    np.testing.assert_array_equal(run_node("FromBlocked", [y], {"channels": channels}), x)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_to_blocked_of_other_dtypes(run_node, dtype: type) -> None:
    x = normal(1, 5, 2, 2).astype(dtype)
    np.testing.assert_array_equal(run_node("ToBlocked", [x], {"block": 4}), blocked(x, 4))


conv_attributes = st.fixed_dictionaries(
    {
        "strides": st.lists(st.integers(1, 3), min_size=2, max_size=2),
        "pads": st.lists(st.integers(0, 3), min_size=4, max_size=4),
        "dilations": st.lists(st.integers(1, 2), min_size=2, max_size=2),
    }
)
kernels = st.tuples(st.integers(1, 4), st.integers(1, 4))
planes = st.tuples(st.integers(7, 12), st.integers(7, 12))


@FIXTURE_OK
@given(attributes=conv_attributes, kernel=kernels, plane=planes, c=st.integers(1, 20), o=st.integers(1, 20))
def test_conv2d_blocked(run_node, attributes, kernel, plane, c, o) -> None:
    x, w, bias = normal(2, c, *plane), normal(o, c, *kernel), normal(o)
    attributes = attributes | {"group": 1}
    expected = run_node("Conv", [x, w, bias], attributes, domain="")
    bi, b = min(c, 16), 16
    packed = [blocked(x, bi, filler=1e3), pack_conv_weight(w, 1, bi, b), pack_bias(bias, b)]
    actual = run_node("Conv2dBlocked", packed, attributes)
    np.testing.assert_allclose(planar(actual, o), expected, rtol=1e-4, atol=1e-4)
    assert not actual[:, -1, :, :, (o - 1) % b + 1 :].any()


@pytest.mark.parametrize(("group", "c", "o"), [(2, 32, 64), (3, 48, 48)])
def test_conv2d_blocked_with_groups(run_node, group: int, c: int, o: int) -> None:
    x, w, bias = normal(1, c, 9, 8), normal(o, c // group, 3, 3), normal(o)
    attributes = {"strides": [2, 1], "pads": [0, 1, 2, 0], "dilations": [1, 1], "group": group}
    expected = run_node("Conv", [x, w, bias], attributes, domain="")
    packed = [blocked(x, 16), pack_conv_weight(w, group, 16, 16), pack_bias(bias, 16)]
    actual = run_node("Conv2dBlocked", packed, attributes)
    np.testing.assert_allclose(planar(actual, o), expected, rtol=1e-4, atol=1e-4)


def test_groups_that_do_not_fill_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fill blocks"):
        pack_conv_weight(normal(24, 12, 3, 3), 2, 16, 16)


@FIXTURE_OK
@given(attributes=conv_attributes, kernel=kernels, plane=planes, c=st.integers(1, 20))
def test_depthwise_conv2d_blocked(run_node, attributes, kernel, plane, c) -> None:
    x, w, bias = normal(2, c, *plane), normal(c, 1, *kernel), normal(c)
    expected = run_node("Conv", [x, w, bias], attributes | {"group": c}, domain="")
    packed = [blocked(x, 16, filler=1e3), pack_depthwise_weight(w, 16), pack_bias(bias, 16)]
    actual = run_node("DepthwiseConv2dBlocked", packed, attributes)
    np.testing.assert_allclose(planar(actual, c), expected, rtol=1e-4, atol=1e-4)


pool_attributes = st.fixed_dictionaries(
    {
        "kernel_shape": st.lists(st.integers(2, 4), min_size=2, max_size=2),
        "strides": st.lists(st.integers(1, 3), min_size=2, max_size=2),
        "pads": st.lists(st.integers(0, 1), min_size=4, max_size=4),
        "ceil_mode": st.integers(0, 1),
    }
)


@FIXTURE_OK
@given(attributes=pool_attributes, dilation=st.integers(1, 2), plane=planes)
def test_max_pool_blocked(run_node, attributes, dilation, plane) -> None:
    x = normal(2, 20, *plane)
    attributes = attributes | {"dilations": [dilation, 1]}
    expected = run_node("MaxPool", [x], attributes, domain="")
    np.testing.assert_array_equal(planar(run_node("MaxPoolBlocked", [blocked(x, 16)], attributes), 20), expected)


@FIXTURE_OK
@given(attributes=pool_attributes, count=st.integers(0, 1), plane=planes)
def test_average_pool_blocked(run_node, attributes, count, plane) -> None:
    x = normal(2, 20, *plane)
    attributes = attributes | {"count_include_pad": count}
    expected = run_node("AveragePool", [x], attributes, domain="")
    actual = run_node("AveragePoolBlocked", [blocked(x, 16)], attributes)
    np.testing.assert_allclose(planar(actual, 20), expected, rtol=1e-5, atol=1e-6)


def test_global_average_pool_blocked(run_node) -> None:
    x = normal(2, 20, 7, 5)
    actual = run_node("GlobalAveragePoolBlocked", [blocked(x, 16)])
    assert actual.shape == (2, 2, 1, 1, 16)
    np.testing.assert_allclose(planar(actual, 20), x.mean((2, 3), keepdims=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [3, 5])
def test_lrn_blocked_does_not_see_the_padded_lanes(run_node, size: int) -> None:
    x = normal(2, 20, 4, 3)
    attributes = {"size": size, "alpha": 0.5, "beta": 0.75, "bias": 1.5}
    expected = run_node("LRN", [x], attributes, domain="")
    actual = run_node("LRNBlocked", [blocked(x, 16, filler=1e3)], {"channels": 20, **attributes})
    np.testing.assert_allclose(planar(actual, 20), expected, rtol=1e-5, atol=1e-6)
    assert not actual[:, 1, :, :, 4:].any()
