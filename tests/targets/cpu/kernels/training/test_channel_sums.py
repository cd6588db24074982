"""Batch statistics and the gradient of batch normalization, against the bodies of the functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.lab import Lab


def numbers(*shape: int, offset: float = 0.0) -> Any:
    return (np.random.default_rng([13, *shape]).standard_normal(shape) + offset).astype(np.float32)


def statistics(lab: Lab, x: Any, channels: int = 0) -> dict[str, Any]:
    kind = f"BatchStatisticsBlocked<channels={channels}>" if channels else "BatchStatistics"
    model = lab.model(f"mean, var = graphopt.{kind}(x)", {"x": x}, outputs=("mean", "var"))
    return lab.execute(lab.check(model, {"x": x}, rtol=1e-5), {"x": x})


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (3, 16, 8, 8), (4, 6), (2, 3, 50), (1, 1, 1, 1), (2, 3, 4, 4, 4)])
def test_statistics(lab: Lab, shape: tuple[int, ...]) -> None:
    statistics(lab, numbers(*shape))


@pytest.mark.parametrize(("channels", "images", "plane"), [(0.5, 1, (1, 1)), (2, 3, (7, 5)), (2.25, 2, (30, 31))])
def test_statistics_of_blocks(lab: Lab, channels: float, images: int, plane: tuple[int, int]) -> None:
    b = lab.target.cpu.lanes()
    x = numbers(images, -(-int(channels * b) // b), *plane, b)
    statistics(lab, x, int(channels * b))


@pytest.mark.parametrize("blocked", [False, True])
def test_a_large_mean_does_not_cancel_the_variance(lab: Lab, blocked: bool) -> None:
    b = lab.target.cpu.lanes()
    x = numbers(4, 1, 60, 60, b, offset=4096.0) if blocked else numbers(4, b, 60, 60, offset=4096.0)
    kind = f"BatchStatisticsBlocked<channels={b}>" if blocked else "BatchStatistics"
    model = lab.model(f"mean, var = graphopt.{kind}(x)", {"x": x}, outputs=("mean", "var"))
    found = lab.execute(lab.lower(model), {"x": x})
    axes = (0, 1, 2, 3) if blocked else (0, 2, 3)
    np.testing.assert_allclose(found["var"], x.astype(np.float64).var(axes), rtol=1e-6)
    np.testing.assert_allclose(found["mean"], x.astype(np.float64).mean(axes), rtol=1e-7)


def gradient(lab: Lab, shape: tuple[int, ...], channels: int, blocked: bool) -> dict[str, Any]:
    feeds = {"dy": numbers(*shape, offset=0.5), "x": numbers(*shape[::-1]).reshape(shape)}
    vectors = {"scale": numbers(channels, offset=1), "mean": numbers(channels) * 0.1}
    feeds |= vectors | {"inv": np.abs(numbers(channels, offset=2))}
    kind = f"BatchNormalizationGradient{'Blocked' if blocked else ''}"
    outputs = ("dx", "ds", "db")
    model = lab.model(f"dx, ds, db = graphopt.{kind}(dy, x, scale, mean, inv)", feeds, outputs=outputs)
    lowered = lab.lower(model)
    assert not lowered.notes
    found, expected = lab.execute(lowered, feeds), run_onnxruntime(model, feeds)
    for name in outputs:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-4, atol=2e-5 * np.abs(expected[name]).max())
    return found


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (3, 16, 8, 8), (4, 6), (1, 2, 1, 1)])
def test_gradient(lab: Lab, shape: tuple[int, ...]) -> None:
    gradient(lab, shape, shape[1], False)


@pytest.mark.parametrize(("channels", "images", "plane"), [(0.5, 1, (1, 2)), (2, 3, (7, 5)), (2.25, 2, (30, 31))])
def test_gradient_of_blocks(any_lab: Lab, channels: float, images: int, plane: tuple[int, int]) -> None:
    b = any_lab.target.cpu.lanes()
    count = int(channels * b)
    found = gradient(any_lab, (images, -(-count // b), *plane, b), count, True)
    assert not found["dx"].transpose(0, 2, 3, 1, 4).reshape(-1, -(-count // b) * b)[:, count:].any()


def test_not_a_number_stays_in_its_channel(lab: Lab) -> None:
    x = numbers(2, 3, 5, 5)
    x[1, 1, 2, 2] = np.nan
    model = lab.model("mean, var = graphopt.BatchStatistics(x)", {"x": x}, outputs=("mean", "var"))
    found = lab.execute(lab.lower(model), {"x": x})
    assert np.isnan(found["mean"]).tolist() == np.isnan(found["var"]).tolist() == [False, True, False]


@pytest.mark.parametrize(("channels", "images", "plane"), [(1, 1, (1, 1)), (2.25, 3, (7, 5))])
def test_sums_of_channels(any_lab: Lab, channels: float, images: int, plane: tuple[int, int]) -> None:
    """The gradient of a bias."""
    b = any_lab.target.cpu.lanes()
    count = int(channels * b)
    x = numbers(images, -(-count // b), *plane, b)
    any_lab.same(f"y = graphopt.ChannelSumsBlocked<channels={count}>(x)", {"x": x})
