import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.ops.conv import pack_bias
from graphopt.ops.fft import REAL, complex_frequencies, fft_weight, frequencies, outputs, taps


def blocked(x: np.ndarray, block: int) -> np.ndarray:
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, -c % block), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2))


def planar(x: np.ndarray, channels: int) -> np.ndarray:
    n, cb, h, w, b = x.shape
    return x.transpose(0, 1, 4, 2, 3).reshape(n, cb * b, h, w)[:, :channels]


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [4, 6, 8, 12, 16, 18])
def test_every_frequency_or_its_conjugate_is_listed_once(n: int) -> None:
    listed = [tuple(int(v) for v in f) for f in frequencies(n)]
    assert len(listed) == complex_frequencies(n) + REAL
    conjugates = [((-row) % n, (-column) % n) for row, column in listed[:-REAL]]
    assert sorted([*listed, *conjugates]) == [(row, column) for row in range(n) for column in range(n)]
    assert 2 * complex_frequencies(n) + REAL == n * n


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.sampled_from([8, 12, 16]),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    plane=st.tuples(st.integers(7, 25), st.integers(7, 25)),
    c=st.integers(1, 20),
    o=st.integers(1, 20),
    block=st.sampled_from([8, 16]),
)
def test_conv2d_fft(run_node, n, kernel, pads, plane, c, o, block) -> None:
    x, w, bias = numbers(2, c, *plane), numbers(o, c, *kernel), numbers(o)
    expected = run_node("Conv", [x, w, bias], {"pads": pads}, domain="")
    packed = [blocked(x, block), fft_weight(w, n, block), pack_bias(bias, block)]
    actual = run_node("Conv2dFft", packed, {"tile": n, "kernel_shape": kernel, "pads": pads, "group": 1})
    scale = np.sqrt(c * kernel[0] * kernel[1])
    np.testing.assert_allclose(planar(actual, o), expected, rtol=1e-5, atol=5e-6 * scale)


@pytest.mark.parametrize(
    ("kernel", "plane", "pads", "group", "channels"),
    [
        ((5, 5), (27, 27), [2, 2, 2, 2], 2, (32, 64)),
        ((7, 7), (14, 19), [3, 3, 3, 3], 1, (20, 33)),
        ((11, 11), (13, 24), [5, 5, 5, 5], 1, (3, 8)),
        ((1, 7), (9, 30), [0, 3, 0, 3], 3, (48, 48)),
        ((5, 5), (5, 5), [0, 0, 0, 0], 1, (16, 16)),
        ((5, 5), (1, 1), [2, 2, 2, 2], 1, (16, 16)),
    ],
)
def test_kernels_pads_and_groups(run_node, kernel, plane, pads, group, channels) -> None:
    c, o = channels
    x, w, bias = numbers(2, c, *plane), numbers(o, c // group, *kernel), numbers(o)
    expected = run_node("Conv", [x, w, bias], {"pads": pads, "group": group}, domain="")
    packed = [blocked(x, 16), fft_weight(w, 16, 16, group), pack_bias(bias, 16)]
    actual = run_node("Conv2dFft", packed, {"tile": 16, "kernel_shape": kernel, "pads": pads, "group": group})
    np.testing.assert_allclose(planar(actual, o), expected, rtol=1e-5, atol=5e-6 * np.sqrt(w[0].size))


@pytest.mark.parametrize(("n", "k"), [(8, 5), (16, 5), (16, 7), (16, 11)])
def test_rounding_error(run_node, n: int, k: int) -> None:
    """Relative L1 error of one channel, as the literature gives it for Winograd: 7.7e-8 for F(2), 3.3e-7 for F(4)."""
    generator = np.random.default_rng(1)
    x = generator.uniform(-1, 1, (1, 1, 64, 64)).astype(np.float32)
    w = generator.uniform(-1, 1, (16, 1, k, k)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x[0, 0].astype(np.float64), (k, k))
    exact = np.einsum("hwrs,ors->ohw", windows, w[:, 0].astype(np.float64))
    packed = [blocked(x, 1), fft_weight(w, n, 1), pack_bias(np.zeros(16, np.float32), 1)]
    attributes = {"tile": n, "kernel_shape": [k, k], "pads": [0, 0, 0, 0], "group": 1}
    actual = planar(run_node("Conv2dFft", packed, attributes), 16)[0]
    error = np.abs(actual - exact).mean() / np.abs(exact).mean()
    assert 2e-8 < error < 5e-7, f"FFT-{n}, {k}x{k}: {error:.2e}"


def test_weight_has_the_products_of_gauss_in_float64_and_zero_padded_lanes() -> None:
    w = numbers(5, 3, 5, 5, seed=2)
    u = fft_weight(w, 8, 4)
    count = complex_frequencies(8)
    assert u.shape == (taps(8), 2, 1, 4, 4) == (3 * count + REAL, 2, 1, 4, 4)
    spectrum = np.conj(np.fft.fft2(w.astype(np.float64), s=(8, 8))) / 64
    for f, (row, column) in enumerate(frequencies(8)):
        for o in range(5):
            value = spectrum[o, :, row, column]
            if f < count:
                c, difference, total = (u[f + part * count, o // 4, 0, :3, o % 4] for part in range(3))
                np.testing.assert_allclose(c, value.real, rtol=1e-6, atol=1e-9)
                np.testing.assert_allclose(difference, value.imag - value.real, rtol=1e-6, atol=1e-9)
                np.testing.assert_allclose(total, value.imag + value.real, rtol=1e-6, atol=1e-9)
            else:
                np.testing.assert_allclose(u[f + 2 * count, o // 4, 0, :3, o % 4], value.real, rtol=1e-6, atol=1e-9)
                np.testing.assert_allclose(value.imag, 0, atol=1e-12)
    assert not u[:, :, :, 3].any()
    assert not u[:, 1, :, :, 1:].any()


def test_outputs_of_a_tile() -> None:
    assert outputs(16, (5, 7)) == (12, 10)


@pytest.mark.parametrize(
    ("shape", "tile", "group", "reason"),
    [
        ((16, 16, 5, 5), 7, 1, "must be even"),
        ((16, 16, 5, 5), 2, 1, "at least 4"),
        ((16, 16, 9, 3), 8, 1, "9x3 kernel does not fit a tile of 8x8"),
        ((32, 8, 5, 5), 16, 2, "2 groups of 8 -> 16 channels do not fill blocks of 16"),
        ((40, 16, 5, 5), 16, 2, "2 groups of 16 -> 20 channels"),
    ],
)
def test_refusals(shape: tuple[int, ...], tile: int, group: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        fft_weight(np.zeros(shape, np.float32), tile, 16, group)
