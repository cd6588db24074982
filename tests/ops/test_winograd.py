from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.ops.conv import pack_bias
from graphopt.ops.winograd import KERNEL, exact_matrices, winograd_weight
from graphopt.passes.conv.algorithms import Algorithm, relative_error


def blocked(x: np.ndarray, block: int) -> np.ndarray:
    n, c, h, w = x.shape
    out = np.zeros((n, -(-c // block), h, w, block), x.dtype)
    for channel in range(c):
        out[:, channel // block, :, :, channel % block] = x[:, channel]
    return out


def planar(x: np.ndarray, channels: int) -> np.ndarray:
    return np.stack([x[:, c // x.shape[4], :, :, c % x.shape[4]] for c in range(channels)], axis=1)


@pytest.mark.parametrize("m", [2, 4, 6])
def test_matrices_compute_the_correlation_exactly(m: int) -> None:
    at, g, bt = exact_matrices(m)
    a = m + KERNEL - 1
    for i in range(m):
        for k in range(KERNEL):
            for d in range(a):
                total = sum((at[i][t] * g[t][k] * bt[t][d] for t in range(a)), Fraction(0))
                assert total == (1 if d == i + k else 0)


# Largest error over largest result, by output tile: the transforms of larger tiles amplify rounding.
LARGEST_ERROR = {2: 4e-6, 4: 1e-5, 6: 5e-5}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    m=st.sampled_from([2, 4, 6]),
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    plane=st.tuples(st.integers(3, 13), st.integers(3, 13)),
    c=st.integers(1, 20),
    o=st.integers(1, 20),
    block=st.sampled_from([8, 16]),
)
def test_conv2d_winograd(run_node, m, pads, plane, c, o, block) -> None:
    generator = np.random.default_rng(0)
    x, w, bias = (generator.standard_normal(s).astype(np.float32) for s in ((2, c, *plane), (o, c, 3, 3), (o,)))
    expected = run_node("Conv", [x, w, bias], {"pads": pads}, domain="")
    packed = [blocked(x, block), winograd_weight(w, m, block), pack_bias(bias, block)]
    actual = run_node("Conv2dWinograd", packed, {"m": m, "pads": pads})
    np.testing.assert_allclose(planar(actual, o), expected, rtol=0, atol=LARGEST_ERROR[m] * np.abs(expected).max())


# Relative L1 error of one 3x3 convolution in float32, as the literature reports it for these points.
@pytest.mark.parametrize(("m", "published"), [(2, 7.7e-8), (4, 3.3e-7), (6, 8.8e-7)])
def test_rounding_error_is_the_published_one(run_node, m: int, published: float) -> None:
    generator = np.random.default_rng(1)
    x = generator.uniform(-1, 1, (1, 1, 64, 64)).astype(np.float32)
    w = generator.uniform(-1, 1, (16, 1, 3, 3)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x[0, 0].astype(np.float64), (3, 3))
    exact = np.einsum("hwrs,ors->ohw", windows, w[:, 0].astype(np.float64))
    packed = [blocked(x, 1), winograd_weight(w, m, 1), pack_bias(np.zeros(16, np.float32), 1)]
    actual = planar(run_node("Conv2dWinograd", packed, {"m": m, "pads": [0, 0, 0, 0]}), 16)[0]
    error = np.abs(actual - exact).mean() / np.abs(exact).mean()
    assert published / 3 < error < published * 3


@pytest.mark.parametrize("channels", [16, 64, 128])
@pytest.mark.parametrize("m", [2, 4, 6])
def test_rounding_error_of_many_channels_is_the_expected_one(run_node, m: int, channels: int) -> None:
    generator = np.random.default_rng(1)
    x, w = (generator.standard_normal(s).astype(np.float32) for s in ((1, channels, 26, 26), (16, channels, 3, 3)))
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.float64), (3, 3), axis=(1, 2))
    exact = np.einsum("chwrs,ocrs->ohw", windows, w.astype(np.float64), optimize=True)
    packed = [blocked(x, 16), winograd_weight(w, m, 16), pack_bias(np.zeros(16, np.float32), 16)]
    actual = planar(run_node("Conv2dWinograd", packed, {"m": m, "pads": [0, 0, 0, 0]}), 16)[0]
    error = np.abs(actual - exact).mean() / np.abs(exact).mean()
    expected = relative_error(Algorithm(f"winograd{m}"), channels)
    assert expected / 1.3 < error < expected * 1.3


def test_weight_transform_is_in_float64_with_zero_padded_lanes() -> None:
    w = np.random.default_rng(2).standard_normal((5, 3, 3, 3)).astype(np.float32)
    u = winograd_weight(w, 4, 4)
    assert u.shape == (36, 2, 1, 4, 4)
    _, g, _ = exact_matrices(4)
    gm = np.array([[float(v) for v in row] for row in g])
    expected = np.einsum("ir,ocrs,js->ijoc", gm, w.astype(np.float64), gm).reshape(36, 5, 3).astype(np.float32)
    for o in range(5):
        np.testing.assert_allclose(u[:, o // 4, 0, :3, o % 4], expected[:, o], rtol=1e-6)
    assert not u[:, :, :, 3].any()
    assert not u[:, 1, :, :, 1:].any()


def test_other_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="3x3"):
        winograd_weight(np.zeros((1, 1, 5, 5), np.float32), 2, 16)
