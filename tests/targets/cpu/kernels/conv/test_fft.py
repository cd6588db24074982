"""Convolution by Fourier transforms, against the body of its function and against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from graphopt.ops.conv import pack_bias
from graphopt.ops.fft import fft_weight
from graphopt.targets.cpu.kernels.conv import fft as conv_fft
from graphopt.targets.cpu.kernels.conv.dft import Dft


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(dtype)


def blocked(x: Any, b: int) -> Any:
    """[N, C, H, W] -> [N, CB, H, W, b]; padded lanes are zero."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, -c % b), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, b, h, w).transpose(0, 1, 3, 4, 2))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 15, 16, 18, 20, 24, 32])
def test_transforms_are_numpys(n: int) -> None:
    dft = Dft(lambda value: value)
    x = np.random.default_rng(n).standard_normal((2, n))
    real = dft.real(list(x[0]))
    assert [im is None for _, im in real] == [2 * k % n == 0 for k in range(n // 2 + 1)]
    np.testing.assert_allclose([re + 1j * (im or 0) for re, im in real], np.fft.rfft(x[0]), atol=1e-12)
    for count in range(n + 1):
        np.testing.assert_allclose(dft.real_inverse(real, n, count), n * x[0, :count], atol=1e-12)
        for sign, whole in ((-1, np.fft.fft(x[0] + 1j * x[1])), (1, n * np.fft.ifft(x[0] + 1j * x[1]))):
            found = dft.complex([tuple(v) for v in x.T], sign, count)
            np.testing.assert_allclose([re + 1j * im for re, im in found], whole[:count], atol=1e-12)


@pytest.mark.parametrize(("n", "real", "inverse", "complex_"), [(8, 23, 26, 55), (16, 67, 74, 153)])
def test_transforms_are_short(n: int, real: int, inverse: int, complex_: int) -> None:
    """Results per transform, a sum of two products being one; dense ones would have n * n and 2 n * n or more."""
    count = 0

    def bind(value: float) -> float:
        nonlocal count
        count += 1
        return value

    dft, found = Dft(bind), []
    for transform in (
        lambda: dft.real([1.0] * n),
        lambda: dft.real_inverse([(1.0, None), *[(1.0, 1.0)] * (n // 2 - 1), (1.0, None)], n, n),
        lambda: dft.complex([(1.0, 1.0)] * n, 1, n),
    ):
        count = 0
        transform()
        found.append(count)
    assert found == [real, inverse, complex_]


def attributes(tile: int, kernel: tuple[int, int], pads: tuple[int, ...], group: int = 1) -> str:
    return f"tile={tile}, kernel_shape={list(kernel)}, pads={list(pads)}, group={group}"


def fft(
    lab: Any,
    tile: int,
    kernel: tuple[int, int],
    channels: tuple[int, int],
    plane: tuple[int, int],
    pads: tuple[int, ...] = (0, 0, 0, 0),
    batch: int = 1,
    group: int = 1,
    dtype: str = "float32",
) -> Any:
    """Check one Conv2dFft."""
    b = lab.target.cpu.lanes(dtype)
    c, o = channels
    x, w = numbers(batch, c, *plane, dtype=dtype), numbers(o, c // group, *kernel, dtype=dtype)
    constants = {"u": fft_weight(w, tile, b, group), "bias": pack_bias(numbers(o, dtype=dtype), b)}
    body = f"y = graphopt.Conv2dFft<{attributes(tile, kernel, pads, group)}>(x, u, bias)"
    return lab.same(body, {"x": blocked(x, b)}, constants, rtol=5e-6)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param({"tile": 16, "kernel": (5, 5), "channels": (16, 32), "plane": (28, 28), "pads": (2,) * 4}, id="5"),
        pytest.param({"tile": 8, "kernel": (5, 5), "channels": (32, 16), "plane": (14, 14), "pads": (2,) * 4},
                     id="5 in small tiles"),
        pytest.param({"tile": 16, "kernel": (7, 7), "channels": (20, 36), "plane": (23, 9), "pads": (3,) * 4},
                     id="7, ragged"),
        pytest.param({"tile": 16, "kernel": (11, 11), "channels": (3, 40), "plane": (13, 31), "pads": (5,) * 4},
                     id="11"),
        pytest.param({"tile": 16, "kernel": (16, 16), "channels": (16, 16), "plane": (17, 18)}, id="one output a tile"),
        pytest.param({"tile": 16, "kernel": (1, 7), "channels": (16, 16), "plane": (9, 30), "pads": (0, 3, 0, 3)},
                     id="row"),
        pytest.param({"tile": 16, "kernel": (7, 1), "channels": (16, 16), "plane": (30, 9), "pads": (3, 0, 3, 0)},
                     id="column"),
        pytest.param({"tile": 16, "kernel": (3, 3), "channels": (16, 16), "plane": (14, 14), "pads": (0, 2, 1, 3)},
                     id="asymmetric pads"),
        pytest.param({"tile": 16, "kernel": (5, 5), "channels": (16, 16), "plane": (1, 1), "pads": (2,) * 4},
                     id="one pixel"),
        pytest.param({"tile": 16, "kernel": (5, 5), "channels": (16, 16), "plane": (13, 14), "pads": (2,) * 4,
                      "batch": 2}, id="batch"),
        pytest.param({"tile": 16, "kernel": (5, 5), "channels": (32, 64), "plane": (27, 27), "pads": (2,) * 4,
                      "group": 2}, id="groups"),
        pytest.param({"tile": 8, "kernel": (5, 3), "channels": (96, 48), "plane": (9, 9), "pads": (0,) * 4,
                      "group": 3, "batch": 2}, id="groups and batch"),
        pytest.param({"tile": 12, "kernel": (5, 5), "channels": (16, 16), "plane": (16, 17), "pads": (2,) * 4},
                     id="tile of 12"),
        pytest.param({"tile": 18, "kernel": (5, 5), "channels": (16, 16), "plane": (28, 28), "pads": (2,) * 4},
                     id="tile of 18"),
        pytest.param({"tile": 8, "kernel": (5, 5), "channels": (128, 64), "plane": (15, 13), "pads": (2,) * 4},
                     id="turned"),
        pytest.param({"tile": 8, "kernel": (5, 5), "channels": (128, 256), "plane": (15, 13), "pads": (2,) * 4,
                      "group": 2}, id="turned, in groups"),
        pytest.param({"tile": 18, "kernel": (5, 5), "channels": (48, 128), "plane": (27, 15), "pads": (2,) * 4},
                     id="turned, two tiles"),
        pytest.param({"tile": 18, "kernel": (5, 5), "channels": (96, 256), "plane": (27, 27), "pads": (2,) * 4,
                      "group": 2}, id="turned, four tiles"),
        pytest.param({"tile": 16, "kernel": (5, 5), "channels": (256, 256), "plane": (5, 5), "pads": (2,) * 4},
                     id="one tile"),
        pytest.param({"tile": 16, "kernel": (5, 5), "channels": (16, 24), "plane": (15, 12), "pads": (2,) * 4,
                      "dtype": "float64"}, id="double"),
    ],
)  # fmt: skip
def test_fft_convolution(lab: Any, case: dict[str, Any]) -> None:
    assert len(fft(lab, **case).calls) == 3


@pytest.mark.parametrize(
    "case",
    [
        {"tile": 16, "kernel": (5, 5), "channels": (20, 36), "plane": (23, 9), "pads": (2, 1, 0, 3), "batch": 2},
        {"tile": 8, "kernel": (5, 3), "channels": (128, 256), "plane": (15, 11), "pads": (2, 1, 2, 1), "group": 2},
    ],
)
def test_fft_convolution_at_every_level(any_lab: Any, case: dict[str, Any]) -> None:
    fft(any_lab, **case)


@pytest.mark.parametrize(
    ("tile", "tiles", "blocks", "turned"),
    [
        (16, 25, (4, 4), False),
        (18, 16, (4, 4), True),
        (16, 36, (8, 8), True),
        (16, 36, (3, 8), True),
        (8, 9, (1, 2), False),
    ],
)
def test_tiles_are_turned_where_their_taps_share_cache_sets(
    tile: int, tiles: int, blocks: tuple[int, int], turned: bool
) -> None:
    assert conv_fft.turns(tile, tiles, blocks, 4, 16) == turned


@given(
    tile=st.sampled_from([4, 6, 8, 10, 12, 16]),
    kernel=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    channels=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    plane=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    batch=st.integers(1, 2),
)
@settings(deadline=None, max_examples=10, derandomize=True)
def test_fft_convolution_of_any_shape(lab: Any, tile: int, **case: Any) -> None:
    for axis in range(2):
        assume(case["kernel"][axis] <= tile)
        assume(case["plane"][axis] + case["pads"][axis] + case["pads"][axis + 2] >= case["kernel"][axis])
    fft(lab, tile, **case)


@pytest.mark.parametrize(("tile", "k"), [(8, 5), (16, 5), (16, 7), (16, 11), (18, 5)])
def test_error_against_float64(lab: Any, tile: int, k: int) -> None:
    """Mean error over mean magnitude: at most twice that of a direct sum of 16 * k * k products in float32."""
    b = lab.target.cpu.lanes()
    x, w = numbers(1, 16, 40, 40), numbers(16, 16, k, k)
    windows = np.lib.stride_tricks.sliding_window_view(x[0].astype(np.float64), (k, k), axis=(1, 2))
    exact = np.einsum("chwrs,ocrs->ohw", windows, w.astype(np.float64), optimize=True)
    constants = {"u": fft_weight(w, tile, b), "bias": pack_bias(np.zeros(16, np.float32), b)}
    body = f"y = graphopt.Conv2dFft<{attributes(tile, (k, k), (0, 0, 0, 0))}>(x, u, bias)"
    feeds = {"x": blocked(x, b)}
    model = lab.model(body, feeds, constants)
    y = lab.execute(lab.lower(model), feeds)["y"]
    found = y[0].transpose(0, 3, 1, 2).reshape(-1, *y.shape[2:4])[:16]
    error = np.abs(found - exact).mean() / np.abs(exact).mean()
    assert 1e-8 < error < 4e-7, f"FFT-{tile}, {k}x{k}: {error:.2e}"


def test_an_epilogue_is_part_of_the_inverse_transform(any_lab: Any) -> None:
    b = any_lab.target.cpu.lanes()
    x, residual = blocked(numbers(1, 32, 19, 14), b), blocked(numbers(1, 32, 19, 14) + 1, b)
    body = f"""
        a = graphopt.Conv2dFft<{attributes(16, (5, 5), (2, 2, 2, 2))}>(x, u, bias)
        s = Mul(a, scale)
        t = Add(s, residual)
        y = Relu(t)
    """
    constants = {
        "u": fft_weight(numbers(32, 32, 5, 5), 16, b),
        "bias": pack_bias(numbers(32), b),
        "scale": numbers(1, 32 // b, 1, 1, b),
    }
    lowered = any_lab.same(body, {"x": x, "residual": residual}, constants)
    assert len(lowered.calls) == 3
    assert lowered.calls[-1].outputs == ("y",)
    assert {"residual", "scale"} <= set(lowered.calls[-1].inputs)


@pytest.mark.parametrize(
    ("tile", "channels", "dtype", "reason"),
    [
        (34, 16, "float32", "tiles of 34 are not even numbers from 4 to 32"),
        (16, 32, "float32", "other channels than its input or its bias"),
        (16, 16, "float16", "do not compute in float16"),
    ],
)
def test_refusals(lab: Any, tile: int, channels: int, dtype: str, reason: str) -> None:
    """`channels` are those of the bias; the weight has 16."""
    b = lab.target.cpu.lanes()
    x, w = numbers(1, 16, 6, 6), numbers(16, 16, 5, 5)
    constants = {"u": fft_weight(w, tile, b).astype(dtype), "bias": pack_bias(np.zeros(channels), b).astype(dtype)}
    body = f"y = graphopt.Conv2dFft<{attributes(tile, (5, 5), (2, 2, 2, 2))}>(x, u, bias)"
    model = lab.model(body, {"x": blocked(x, b).astype(dtype)}, constants)
    refusal = lab.target.supports(model.graph[0], model.opset_imports)
    assert refusal is not None
    assert reason in refusal
