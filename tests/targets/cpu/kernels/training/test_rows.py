"""Gradients of Softmax, LayerNormalization, losses and Gather, against the bodies of the functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.lab import Lab


def numbers(*shape: int) -> Any:
    return np.random.default_rng([19, *shape]).standard_normal(shape).astype(np.float32)


def agree(lab: Lab, body: str, feeds: dict[str, Any], constants: dict[str, Any], outputs: tuple[str, ...]) -> Any:
    """Kernels alone compute what ONNX Runtime does, within a few roundings of the largest number."""
    model = lab.model(body, feeds, constants, outputs=outputs)
    lowered = lab.lower(model)
    assert not lowered.notes
    found, expected = lab.execute(lowered, feeds), run_onnxruntime(model, feeds)
    for name in outputs:
        scale = np.abs(expected[name][np.isfinite(expected[name])]).max(initial=0)
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, atol=2e-6 * scale, err_msg=name)
    return found


@pytest.mark.parametrize("kind", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("shape", "axis"), [((5, 33), -1), ((2, 3, 64), 2), ((3, 6, 5), 1)])
def test_softmax(lab: Lab, kind: str, shape: tuple[int, ...], axis: int) -> None:
    dy, x = numbers(*shape), numbers(*shape) * 2
    body = f"p = {kind}<axis={axis}>(x) y = graphopt.{kind}Gradient<axis={axis}>(dy, p)"
    agree(lab, body, {"dy": dy, "x": x}, {}, ("y",))


@pytest.mark.parametrize(("shape", "axis"), [((6, 32), -1), ((2, 5, 48), 2), ((3, 4, 5), 1), ((130, 7), 1)])
def test_layer_normalization_and_its_gradient(lab: Lab, shape: tuple[int, ...], axis: int) -> None:
    inner = shape[axis:] if axis > 0 else shape[-1:]
    feeds = {"dy": numbers(*shape), "x": numbers(*shape) + 3, "w": numbers(*inner), "b": numbers(*inner)}
    body = f"""
        y, m, i = LayerNormalization<axis={axis}>(x, w, b)
        dx, dw, db = graphopt.LayerNormalizationGradient<axis={axis}>(dy, x, w, m, i)
    """
    agree(lab, body, feeds, {}, ("y", "m", "i", "dx", "dw", "db"))


@pytest.mark.parametrize(
    ("reduction", "weighted", "plane"),
    [("mean", False, ()), ("mean", True, (3, 5)), ("sum", False, (3, 5)), ("none", True, ())],
)
def test_cross_entropy(lab: Lab, reduction: str, weighted: bool, plane: tuple[int, ...]) -> None:
    classes = 11
    labels = np.random.default_rng(0).integers(0, classes, (4, *plane))
    labels.reshape(-1)[1] = 5
    feeds = {"x": numbers(4, classes, *plane) * 3, "labels": labels}
    feeds["dl"] = numbers(4, *plane) if reduction == "none" else numbers()
    given = f'reduction = "{reduction}", ignore_index = 5'
    suffix, more = ("Weighted", ", w") if weighted else ("", "")
    body = f"""
        loss, p = SoftmaxCrossEntropyLoss<{given}>(x, labels{more})
        dx = graphopt.CrossEntropyGradient{suffix}<{given}>(dl, p, labels{more})
    """
    constants = {"w": np.abs(numbers(classes))} if weighted else {}
    found = agree(lab, body, feeds, constants, ("loss", "p", "dx"))
    ignored = np.moveaxis(found["dx"], 1, -1)[labels == 5]
    assert ignored.size
    assert not ignored.any()


def test_labels_out_of_range_touch_no_other_memory(lab: Lab) -> None:
    x, labels = numbers(3, 4), np.array([0, 4_000_000_000, -7])
    body = 'loss, p = SoftmaxCrossEntropyLoss<reduction = "none">(x, labels)'
    model = lab.model(body, {"x": x, "labels": np.array([0, 1, 2])}, outputs=("loss", "p"))
    found = lab.execute(lab.lower(model), {"x": x, "labels": labels})
    np.testing.assert_allclose(found["loss"][0], -found["p"][0, 0])


@pytest.mark.parametrize(
    ("shape", "axis", "indices"),
    [
        ((10, 96), 0, [[3, 3, -1], [0, 9, 3]]),
        ((4, 7), 1, [6, 0, 0, -7]),
        ((3, 5, 33), 1, [1, 1, 1, 1]),
        ((5,), 0, [4, 4]),
    ],
)
def test_gather(lab: Lab, shape: tuple[int, ...], axis: int, indices: Any) -> None:
    """Equal indices add up, negative ones count from the end, rows that no index names are zero."""
    places = np.array(indices, np.int32 if axis else np.int64)
    dy = numbers(*shape[:axis], *places.shape, *shape[axis + 1 :])
    body = f"y = graphopt.GatherGradient<axis={axis}>(dy, places, size)"
    lab.same(body, {"dy": dy, "places": places}, {"size": np.array(shape)})


def test_indices_out_of_range_add_nothing(lab: Lab) -> None:
    dy, places = numbers(3, 8), np.array([1, 2, 0])
    body = "y = graphopt.GatherGradient<axis=0>(dy, places, size)"
    model = lab.model(body, {"dy": dy, "places": places}, {"size": np.array([4, 8])})
    y = lab.execute(lab.lower(model), {"dy": dy, "places": np.array([1, 1 << 40, -5])})["y"]
    np.testing.assert_array_equal(y[1], dy[0])
    assert not y[[0, 2, 3]].any()


def test_every_level(any_lab: Lab) -> None:
    feeds = {"dy": numbers(6, 40), "x": numbers(6, 40), "w": numbers(40), "b": numbers(40)}
    body = """
        y, m, i = LayerNormalization(x, w, b)
        dx, dw, db = graphopt.LayerNormalizationGradient<axis=-1>(dy, x, w, m, i)
        p = Softmax(x)
        dp = graphopt.SoftmaxGradient<axis=-1>(dy, p)
    """
    agree(any_lab, body, feeds, {}, ("y", "dx", "dw", "db", "dp"))
