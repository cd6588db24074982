"""Gradients of normalizations, softmax, cross entropy and embeddings, against PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.helpers.functions import run_function


def normal(seed: int, *shape: int, dtype: type = np.float64) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def leaf(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(array.copy()).requires_grad_()


def close(actual: NDArray[Any], expected: torch.Tensor | None) -> None:
    assert expected is not None
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)])
def test_batch_normalization(shape: tuple[int, ...]) -> None:
    x, scale, bias = leaf(normal(0, *shape) + 3), leaf(normal(1, 3)), leaf(normal(2, 3))
    y = torch.nn.functional.batch_norm(x, None, None, scale, bias, training=True, eps=1e-5)
    dy = normal(3, *shape)
    y.backward(torch.from_numpy(dy))
    mean, var = run_function("BatchStatistics", [x.detach().numpy()])
    axes = [axis for axis in range(len(shape)) if axis != 1]
    close(mean, x.mean(axes))
    close(var, x.var(axes, correction=0))
    operands = [dy, x.detach().numpy(), scale.detach().numpy(), mean, 1 / np.sqrt(var + 1e-5)]
    for result, expected in zip(
        run_function("BatchNormalizationGradient", operands), (x.grad, scale.grad, bias.grad), strict=True
    ):
        close(result, expected)


def test_variance_does_not_cancel() -> None:
    """In float32 the difference of the mean square and the squared mean would be noise here."""
    x = 4096 + normal(0, 64, 2, 8, dtype=np.float32)
    _, var = run_function("BatchStatistics", [x])
    np.testing.assert_allclose(var, x.astype(np.float64).var((0, 2)), rtol=1e-4)


@pytest.mark.parametrize(("shape", "axis"), [((4, 6), -1), ((4, 6), 1), ((2, 3, 5), -2), ((2, 3, 5), 0), ((7,), 0)])
def test_layer_normalization(shape: tuple[int, ...], axis: int) -> None:
    inner = shape[axis:]
    x, scale, bias = leaf(normal(0, *shape)), leaf(normal(1, *inner)), leaf(normal(2, *inner))
    torch.nn.functional.layer_norm(x, inner, scale, bias).backward(torch.from_numpy(normal(3, *shape)))
    numbers = x.detach().numpy()
    axes = tuple(range(axis % len(shape), len(shape)))
    mean, var = numbers.mean(axes, keepdims=True), numbers.var(axes, keepdims=True)
    operands = [normal(3, *shape), numbers, scale.detach().numpy(), mean, 1 / np.sqrt(var + 1e-5)]
    results = run_function("LayerNormalizationGradient", operands, {"axis": axis})
    for result, expected in zip(results, (x.grad, scale.grad, bias.grad), strict=True):
        close(result, expected)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["Softmax", "LogSoftmax"])
def test_softmax(name: str, axis: int) -> None:
    x = leaf(normal(0, 3, 4, 5))
    y = x.softmax(axis) if name == "Softmax" else x.log_softmax(axis)
    y.backward(torch.from_numpy(normal(1, 3, 4, 5)))
    (dx,) = run_function(f"{name}Gradient", [normal(1, 3, 4, 5), y.detach().numpy()], {"axis": axis})
    close(dx, x.grad)


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("plane", [(), (3,), (2, 2)])
def test_cross_entropy(plane: tuple[int, ...], reduction: str, weighted: bool, dtype: type) -> None:
    logits = leaf(normal(0, 6, 4, *plane))
    labels = np.random.default_rng(1).integers(0, 4, (6, *plane))
    labels[0] = -100
    weight = np.array([0.5, 2.0, 1.0, 3.0])
    loss = torch.nn.functional.cross_entropy(
        logits, torch.from_numpy(labels), torch.from_numpy(weight) if weighted else None, reduction=reduction
    )
    dl = np.asarray(normal(2, *loss.shape))
    loss.backward(torch.from_numpy(dl))
    operands = [dl, logits.log_softmax(1).detach().numpy(), labels.astype(dtype), *([weight] if weighted else [])]
    name = "CrossEntropyGradientWeighted" if weighted else "CrossEntropyGradient"
    (dlogits,) = run_function(name, operands, {"reduction": reduction, "ignore_index": -100})
    close(dlogits, logits.grad)


def test_cross_entropy_of_ignored_labels_alone_has_no_gradient() -> None:
    operands = [np.array(1.0), np.log(np.full((2, 3), 1 / 3)), np.full(2, -1)]
    (dlogits,) = run_function("CrossEntropyGradient", operands, {"reduction": "mean", "ignore_index": -1})
    np.testing.assert_array_equal(dlogits, np.zeros((2, 3)))


@pytest.mark.parametrize("dtype", [np.int64, np.int32])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("index_shape", [(), (500,), (4, 3)])
def test_gather_adds_equal_indices(index_shape: tuple[int, ...], axis: int, dtype: type) -> None:
    data = leaf(normal(0, 5, 6, 7))
    extent = data.shape[axis]
    indices = np.asarray(np.random.default_rng(1).integers(-extent, extent, index_shape))
    chosen = torch.from_numpy(np.where(indices < 0, indices + extent, indices).reshape(-1))
    y = torch.index_select(data, axis, chosen)
    y.backward(torch.from_numpy(normal(2, *y.shape)))
    place = axis % 3
    shape = (*data.shape[:place], *index_shape, *data.shape[place + 1 :])
    operands = [normal(2, *y.shape).reshape(shape), indices.astype(dtype), np.array([5, 6, 7])]
    (ddata,) = run_function("GatherGradient", operands, {"axis": axis})
    close(ddata, data.grad)
