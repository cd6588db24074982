"""LSTM and GRU that keep their gates give what ONNX Runtime's own give, and gradients as PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.helpers.functions import run_function

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 4, 2

PLACES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Which gate of PyTorch (i, f, u, o; r, z, u) stands at each place of ONNX (i, o, f, u; z, r, u)."""


def normal(seed: int, *shape: int) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape)


def as_onnx(kind: str, tensor: torch.Tensor) -> NDArray[Any]:
    parts = tensor.detach().numpy().reshape(len(PLACES[kind]), HIDDEN, -1)
    return np.ascontiguousarray(parts[list(PLACES[kind])].reshape(tensor.shape))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_gradients_through_time(kind: str) -> None:
    module = getattr(torch.nn, kind)(INPUTS, HIDDEN).double()
    x = torch.from_numpy(normal(0, STEPS, BATCH, INPUTS)).requires_grad_()
    starts = [torch.from_numpy(normal(n, 1, BATCH, HIDDEN)).requires_grad_() for n in (1, 2)[: 1 + (kind == "LSTM")]]
    y, last = module(x, tuple(starts) if kind == "LSTM" else starts[0])
    dy = normal(3, *y.shape)
    dlast = [normal(n, BATCH, HIDDEN) for n in (4, 5)[: len(starts)]]
    lasts = last if kind == "LSTM" else (last,)
    total = (y * torch.from_numpy(dy)).sum()
    for state, gradient in zip(lasts, dlast, strict=True):
        total = total + (state[0] * torch.from_numpy(gradient)).sum()
    total.backward()

    w, r = (as_onnx(kind, tensor) for tensor in (module.weight_ih_l0, module.weight_hh_l0))
    b = np.concatenate([as_onnx(kind, tensor) for tensor in (module.bias_ih_l0, module.bias_hh_l0)])
    begin = [state.detach().numpy()[0] for state in starts]
    numbers = x.detach().numpy()
    if kind == "LSTM":
        output, gates, cells = run_function("LSTMTraining", [numbers, w, r, b, *begin])
        dg, *dstarts = run_function("LSTMGradient", [dy, gates, cells, begin[1], r, *dlast])
        dhidden = dg
    else:
        output, gates, linear = run_function("GRUTraining", [numbers, w, r, b, *begin])
        dg, du, *dstarts = run_function("GRUGradient", [dy, gates, linear, output, begin[0], r, *dlast])
        dhidden = np.concatenate([dg[..., : 2 * HIDDEN], du], axis=2)
    np.testing.assert_allclose(output, y.detach().numpy(), rtol=1e-9, atol=1e-12)
    before = np.concatenate([begin[0][None], output[:-1]])
    found = {
        "x": dg @ w,
        "w": np.einsum("tng,tni->gi", dg, numbers),
        "r": np.einsum("tng,tnh->gh", dhidden, before),
        "b": np.concatenate([dg.sum((0, 1)), dhidden.sum((0, 1))]),
    }
    gradients = {name: parameter.grad for name, parameter in module.named_parameters()}
    assert x.grad is not None
    expected = {
        "x": x.grad.numpy(),
        "w": as_onnx(kind, gradients["weight_ih_l0"]),
        "r": as_onnx(kind, gradients["weight_hh_l0"]),
        "b": np.concatenate([as_onnx(kind, gradients["bias_ih_l0"]), as_onnx(kind, gradients["bias_hh_l0"])]),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-8, atol=1e-10, err_msg=name)
    for value, state in zip(dstarts, starts, strict=True):
        assert state.grad is not None
        np.testing.assert_allclose(value, state.grad.numpy()[0], rtol=1e-8, atol=1e-10)
