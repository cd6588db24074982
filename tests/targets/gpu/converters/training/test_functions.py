"""Functions of the backward pass on a GPU, against their bodies in ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.runtime.devices.opencl import OpenClDevice
from tests.helpers.lab import make_model
from tests.helpers.on_opencl import agree, execute


@pytest.fixture(autouse=True)
def pocl(opencl: OpenClDevice) -> None:
    """Every test runs on it."""


def numbers(*shape: int, offset: float = 0.0) -> Any:
    return (np.random.default_rng([29, *shape]).standard_normal(shape) + offset).astype(np.float32)


def few(*shape: int) -> Any:
    """Few distinct numbers, so that maxima repeat."""
    return np.random.default_rng([17, *shape]).integers(-4, 5, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("x", "outputs", "kernel", "attributes"),
    [
        pytest.param((2, 3, 9, 9), 5, (3, 3), {"pads": [1, 1, 1, 1]}, id="padded"),
        pytest.param((3, 4, 11, 8), 20, (3, 2), {"strides": [2, 3], "pads": [1, 0, 0, 1]}, id="strides"),
        pytest.param((1, 6, 9, 10), 4, (2, 3), {"dilations": [2, 3], "group": 2}, id="dilations, groups"),
        pytest.param((2, 40, 7, 7), 48, (1, 1), {}, id="1x1"),
        pytest.param((3, 6, 8, 8), 6, (3, 3), {"group": 6, "pads": [1, 1, 1, 1]}, id="depthwise"),
        pytest.param((2, 6, 9), 3, (3,), {"group": 3, "strides": [2]}, id="a line, two channels in a group"),
        pytest.param((1, 2, 5, 6, 4), 3, (2, 3, 2), {}, id="a volume"),
        pytest.param((2, 3, 4, 4), 2, (4, 4), {}, id="a single position"),
        pytest.param((2, 1, 4, 4), 1, (1, 1), {}, id="a single weight"),
    ],
)
def test_weights_of_convolutions(x: Any, outputs: int, kernel: Any, attributes: dict[str, Any]) -> None:
    rank = len(kernel)
    every = {"strides": [1] * rank, "dilations": [1] * rank, "pads": [0] * 2 * rank, "group": 1, **attributes}
    spelled = ", ".join(f"{name}={value}" for name, value in every.items())
    extents = [
        (size + every["pads"][axis] + every["pads"][rank + axis] - every["dilations"][axis] * (tap - 1) - 1)
        // every["strides"][axis] + 1
        for axis, (size, tap) in enumerate(zip(x[2:], kernel, strict=True))
    ]  # fmt: skip
    feeds = {"x": numbers(*x), "dy": numbers(x[0], outputs, *extents)}
    body = f"y = graphopt.ConvWeightGradient<kernel_shape={list(kernel)}, {spelled}>(x, dy)"
    found = agree(body, feeds)["y"]
    assert found.shape == (outputs, x[1] // every["group"], *kernel)


@pytest.mark.parametrize("shape", [(2, 5, 7, 9), (4, 6), (1, 1, 1, 1)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    c = shape[1]
    feeds = {"dy": numbers(*shape, offset=0.5), "x": numbers(*shape), "scale": numbers(c, offset=1)}
    body = """
        mean, var = graphopt.BatchStatistics(x)
        dx, ds, db = graphopt.BatchNormalizationGradient(dy, x, scale, m, i)
    """
    feeds |= {"m": numbers(c) * 0.1, "i": np.abs(numbers(c, offset=2))}
    agree(body, feeds, outputs=("mean", "var", "dx", "ds", "db"))


def test_a_large_mean_does_not_cancel_the_variance() -> None:
    x = numbers(4, 3, 60, 60, offset=4096.0)
    model = make_model("mean, var = graphopt.BatchStatistics(x)", {"x": x}, {}, ("mean", "var"), 21)
    found = execute(model, {"x": x})
    np.testing.assert_allclose(found["var"], x.astype(np.float64).var((0, 2, 3)), rtol=2e-6)
    np.testing.assert_allclose(found["mean"], x.astype(np.float64).mean((0, 2, 3)), rtol=1e-7)


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 33), -1), ((3, 6, 5), 1)])
def test_softmax(kind: str, shape: tuple[int, ...], axis: int) -> None:
    body = f"p = {kind}<axis={axis}>(x) y = graphopt.{kind}Gradient<axis={axis}>(dy, p)"
    agree(body, {"dy": numbers(*shape), "x": numbers(*shape) * 2})


@pytest.mark.parametrize(("shape", "axis"), [((6, 32), -1), ((3, 4, 5), 1), ((130, 7), 1)])
def test_layer_normalization(shape: tuple[int, ...], axis: int) -> None:
    inner = shape[axis:] if axis > 0 else shape[-1:]
    feeds = {"dy": numbers(*shape), "x": numbers(*shape, offset=3), "w": numbers(*inner), "b": numbers(*inner)}
    body = f"""
        y, m, i = LayerNormalization<axis={axis}>(x, w, b)
        dx, dw, db = graphopt.LayerNormalizationGradient<axis={axis}>(dy, x, w, m, i)
    """
    agree(body, feeds, outputs=("y", "m", "i", "dx", "dw", "db"))


@pytest.mark.parametrize(
    ("reduction", "weighted", "plane"),
    [("mean", False, ()), ("mean", True, (3, 5)), ("sum", True, ()), ("none", False, (4,))],
)
def test_cross_entropy(reduction: str, weighted: bool, plane: tuple[int, ...]) -> None:
    classes = 11
    labels = np.random.default_rng(0).integers(0, classes, (4, *plane))
    labels.reshape(-1)[1] = 5
    feeds = {"x": numbers(4, classes, *plane) * 3, "labels": labels}
    feeds["dl"] = np.asarray(numbers(4, *plane) if reduction == "none" else numbers())
    given = f'reduction = "{reduction}", ignore_index = 5'
    suffix, more = ("Weighted", ", w") if weighted else ("", "")
    body = f"""
        loss, p = SoftmaxCrossEntropyLoss<{given}>(x, labels{more})
        dx = graphopt.CrossEntropyGradient{suffix}<{given}>(dl, p, labels{more})
    """
    constants = {"w": np.abs(numbers(classes))} if weighted else {}
    found = agree(body, feeds, constants, ("loss", "p", "dx"))
    ignored = np.moveaxis(found["dx"], 1, -1)[labels == 5]
    assert ignored.size
    assert not ignored.any()


@pytest.mark.parametrize(
    ("shape", "axis", "indices", "dtype"),
    [
        ((10, 96), 0, [[3, 3, -1], [0, 9, 3]], np.int64),
        ((3, 5, 33), 1, [1, 1, 1, 1], np.int32),
        ((5,), 0, [4], np.int32),
    ],
)
def test_gather(shape: tuple[int, ...], axis: int, indices: Any, dtype: Any) -> None:
    """Equal indices add up, negative ones count from the end, rows that no index names are zero."""
    places = np.array(indices, dtype)
    dy = numbers(*shape[:axis], *places.shape, *shape[axis + 1 :])
    body = f"y = graphopt.GatherGradient<axis={axis}>(dy, places, size)"
    agree(body, {"dy": dy, "places": places}, {"size": np.array(shape)})


def test_indices_out_of_range_add_nothing() -> None:
    dy, places = numbers(3, 8), np.array([1, 2, 0])
    body = "y = graphopt.GatherGradient<axis=0>(dy, places, size)"
    model = make_model(body, {"dy": dy, "places": places}, {"size": np.array([4, 8])}, ("y",), 21)
    y = execute(model, {"dy": dy, "places": np.array([1, 1 << 40, -5])})["y"]
    np.testing.assert_array_equal(y[1], dy[0])
    assert not y[[0, 2, 3]].any()


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"kernel_shape": [2, 2]}, id="disjoint"),
        pytest.param({"pads": [1, 1, 1, 1]}, id="overlapping"),
        pytest.param({"ceil_mode": 1, "strides": [2, 3]}, id="ceil"),
        pytest.param({"dilations": [2, 1], "strides": [1, 2]}, id="dilation"),
    ],
)
def test_pools(given: dict[str, Any]) -> None:
    window = {
        "kernel_shape": [3, 3], "strides": [2, 2], "dilations": [1, 1], "pads": [0] * 4, "ceil_mode": 0, **given,
    }  # fmt: skip
    spelled = ", ".join(f"{name}={value}" for name, value in window.items())
    x = few(2, 3, 9, 12)
    found = agree(f"y, a = graphopt.MaxPoolArgmax<{spelled}>(x)", {"x": x}, outputs=("y", "a"))
    feeds, size = {"dy": few(*found["y"].shape) + np.float32(0.25), "a": found["a"]}, {"size": np.array(x.shape)}
    agree(f"y = graphopt.MaxPoolGradient<{spelled}>(dy, a, size)", feeds, size)
    if window["dilations"] == [1, 1]:
        for include in (0, 1):
            body = f"y = graphopt.AveragePoolGradient<{spelled}, count_include_pad={include}>(dy, size)"
            agree(body, {"dy": feeds["dy"]}, size)


def test_maxima_of_special_values() -> None:
    """NaN wins; of equal numbers the first; -inf alone names an element of its window."""
    x = np.array([[[[1, 1, np.nan, 5, -np.inf, -np.inf, 0.0, -0.0, 3, np.nan]]]], np.float32)
    window = "kernel_shape=[1,2], strides=[1,2], dilations=[1,1], pads=[0,0,0,0], ceil_mode=0"
    body = f"y, a = graphopt.MaxPoolArgmax<{window}>(x)"
    found = execute(make_model(body, {"x": x}, {}, ("y", "a"), 21), {"x": x})
    assert found["a"].reshape(-1).tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("size", [1, 8, 1003])
def test_bits(size: int) -> None:
    x = numbers(size)
    x[: size // 2 : 3] = np.nan
    body = "y = graphopt.PositiveBits(x) z = graphopt.MaskByBits(dy, y)"
    found = agree(body, {"x": x, "dy": numbers(size, offset=9)}, outputs=("y", "z"))
    np.testing.assert_array_equal(found["z"] != 0, x > 0)


def test_a_bit_that_is_not_set_hides_what_is_there() -> None:
    dy, bits = np.array([np.nan, np.inf, np.nan, 1.5, -0.0], np.float32), np.array([0b11000], np.uint8)
    feeds = {"dy": dy, "bits": bits}
    y = execute(make_model("y = graphopt.MaskByBits(dy, bits)", feeds, {}, ("y",), 21), feeds)["y"]
    assert y.tobytes() == np.array([0, 0, 0, 1.5, -0.0], np.float32).tobytes()


@pytest.mark.parametrize(("seed", "counter", "ratio"), [(0, 0, 0.5), (123456789, 1 << 40, 0.9), (-1, 2, 0.0)])
def test_dropout_has_the_bits_of_all_machines(seed: int, counter: int, ratio: float) -> None:
    body = f"y = graphopt.DropoutMask<seed={seed}, ratio={ratio}>(c, s)"
    agree(body, {"c": np.array(counter, np.int64)}, {"s": np.array([3, 1000])})
