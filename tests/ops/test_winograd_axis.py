"""Winograd convolutions along one axis: exactness of the matrices, the operator's body, and its rounding error."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.ops.conv import pack_bias
from graphopt.ops.layout import pad_to_blocks
from graphopt.ops.winograd import exact_matrices, possible, winograd_weight
from graphopt.passes.conv.algorithms import AXIS_ERROR, Algorithm, relative_error

SIZES = sorted(AXIS_ERROR)


def blocked(x: np.ndarray, block: int) -> np.ndarray:
    n, _, h, w = x.shape
    return pad_to_blocks(x, 1, block).reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2).copy()


def planar(x: np.ndarray, channels: int) -> np.ndarray:
    n, count, h, w, block = x.shape
    return x.transpose(0, 1, 4, 2, 3).reshape(n, count * block, h, w)[:, :channels]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_matrices_compute_the_correlation_exactly(m: int, r: int) -> None:
    at, g, bt = exact_matrices(m, r)
    a = m + r - 1
    for i in range(m):
        for k in range(r):
            for d in range(a):
                total = sum((at[i][t] * g[t][k] * bt[t][d] for t in range(a)), Fraction(0))
                assert total == (1 if d == i + k else 0)


def test_one_tap_needs_no_transform() -> None:
    assert exact_matrices(1, 1) == (((1,),), ((1,),), ((1,),))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from(SIZES),
    axis=st.sampled_from([2, 3]),
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    plane=st.tuples(st.integers(1, 4), st.integers(7, 21)),
    batch=st.integers(1, 3),
    c=st.integers(1, 20),
    o=st.integers(1, 20),
    block=st.sampled_from([8, 16]),
)
def test_conv2d_winograd_axis(run_node, size, axis, pads, plane, batch, c, o, block) -> None:
    m, r = size
    kernel = (r, 1) if axis == 2 else (1, r)
    plane = plane[::-1] if axis == 2 else plane
    generator = np.random.default_rng(0)
    x, w, bias = (generator.standard_normal(s).astype(np.float32) for s in ((batch, c, *plane), (o, c, *kernel), (o,)))
    expected = run_node("Conv", [x, w, bias], {"pads": pads}, domain="")
    packed = [blocked(x, block), winograd_weight(w, m, block), pack_bias(bias, block)]
    actual = planar(run_node("Conv2dWinogradAxis", packed, {"m": m, "axis": axis, "pads": pads}), o)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=(1e-5 if m + r > 10 else 2e-6) * np.abs(expected).max())


@pytest.mark.parametrize("channels", [1, 16, 128])
@pytest.mark.parametrize(("m", "r"), SIZES)
def test_rounding_error_is_the_expected_one(run_node, m: int, r: int, channels: int) -> None:
    generator = np.random.default_rng(1)
    x = generator.standard_normal((1, channels, 1, 1500)).astype(np.float32)
    w = generator.standard_normal((16, channels, 1, r)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x[0, :, 0].astype(np.float64), r, axis=1)
    exact = np.einsum("clr,ocr->ol", windows, w[:, :, 0].astype(np.float64), optimize=True)
    block = min(channels, 16)
    packed = [blocked(x, block), winograd_weight(w, m, block), pack_bias(np.zeros(16, np.float32), block)]
    actual = planar(run_node("Conv2dWinogradAxis", packed, {"m": m, "axis": 3, "pads": [0, 0, 0, 0]}), 16)[0, :, 0]
    error = np.abs(actual - exact).mean() / np.abs(exact).mean()
    expected = relative_error(Algorithm(f"winograd{m}"), channels, (1, r))
    assert expected / 1.4 < error < expected * 1.4


def test_weight_transform_is_in_float64_with_zero_padded_lanes() -> None:
    w = np.random.default_rng(2).standard_normal((5, 3, 1, 5)).astype(np.float32)
    u = winograd_weight(w, 4, 4)
    assert u.shape == (8, 2, 1, 4, 4)
    gm = np.array([[float(v) for v in row] for row in exact_matrices(4, 5)[1]])
    expected = np.einsum("ir,ocr->ioc", gm, w[:, :, 0].astype(np.float64)).astype(np.float32)
    for o in range(5):
        np.testing.assert_allclose(u[:, o // 4, 0, :3, o % 4], expected[:, o], rtol=1e-6)
    assert not u[:, :, :, 3].any()
    assert not u[:, 1, :, :, 1:].any()
    np.testing.assert_array_equal(winograd_weight(w.swapaxes(2, 3), 4, 4), u)


def test_other_kernels_are_refused() -> None:
    assert possible(4, (1, 5))
    for m, kernel in ((6, (1, 7)), (8, (3, 3)), (2, (1, 1)), (2, (1, 4)), (2, (5, 5)), (1, (4, 1))):
        assert not possible(m, kernel)
        with pytest.raises(ValueError, match=f"not {kernel[0]}x{kernel[1]}"):
            winograd_weight(np.zeros((1, 1, *kernel), np.float32), m, 16)
