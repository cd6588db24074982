"""Gradients of the losses and of Softmax, against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest
from torch.nn import functional as F

from tests.helpers.draws import between, normal
from tests.helpers.gradients import require_torch


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis: int, dtype: type) -> None:
    x = {"x": normal(0, 2, 3, 4, dtype=dtype)}
    require_torch(f"g (T[1] x) => (T y) {{ y = Softmax <axis = {axis}>(x) }}", x, lambda x: x.softmax(axis))
    require_torch(f"g (T[1] x) => (T y) {{ y = LogSoftmax <axis = {axis}>(x) }}", x, lambda x: x.log_softmax(axis))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("plane", [(), (2, 2)])
def test_cross_entropy_and_likelihood(plane: tuple[int, ...], reduction: str, weighted: bool, dtype: type) -> None:
    labels = np.random.default_rng(1).integers(0, 4, (6, *plane))
    labels[0] = -100
    arrays = {"x": normal(0, 6, 4, *plane, dtype=dtype), "t": labels}
    arrays |= {"w": between(2, 0.5, 2, 4, dtype=dtype)} if weighted else {}
    inputs = f"T[1] x, int64[{','.join(map(str, labels.shape))}] t" + (", T[4] w" if weighted else "")
    for operator, twin in (("SoftmaxCrossEntropyLoss", F.cross_entropy), ("NegativeLogLikelihoodLoss", F.nll_loss)):
        text = f"""g ({inputs}) => (T y) {{
            y = {operator} <reduction = "{reduction}", ignore_index = -100>({", ".join(arrays)}) }}"""
        require_torch(text, arrays, lambda *given, twin=twin: twin(*given, reduction=reduction), frozen=("w",))


def test_log_probabilities_that_are_used_too() -> None:
    arrays = {"x": normal(0, 3, 4), "t": np.array([1, 3, 0])}
    text = "g (T[1] x, int64[3] t) => (T y, T p) { y, p = SoftmaxCrossEntropyLoss(x, t) }"
    require_torch(text, arrays, lambda x, t: (F.cross_entropy(x, t), x.log_softmax(1)))


def test_logits_far_apart() -> None:
    """No exponential overflows, and a sure prediction has a gradient of almost nothing."""
    arrays = {"x": np.array([[1000.0, -1000.0], [1000.0, -1000.0]]), "t": np.array([0, 1])}
    text = "g (T[1] x, int64[2] t) => (T y) { y = SoftmaxCrossEntropyLoss(x, t) }"
    require_torch(text, arrays, lambda x, t: F.cross_entropy(x, t))


def test_labels_of_int32() -> None:
    arrays = {"x": normal(0, 3, 4), "t": np.array([1, 3, 0], np.int32)}
    text = "g (T[1] x, int32[3] t) => (T y) { y = SoftmaxCrossEntropyLoss(x, t) }"
    require_torch(text, arrays, lambda x, t: F.cross_entropy(x, t.long()))
