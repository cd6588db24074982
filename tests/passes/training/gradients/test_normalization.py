"""Gradients of normalizations, against PyTorch."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional as F

from graphopt.graph import state
from graphopt.passes import Differentiate
from tests.helpers.draws import between, normal
from tests.helpers.gradients import build, require_torch, run

SHAPES = [(4, 3), (2, 3, 5), (2, 3, 4, 5), (2, 3, 2, 2, 2)]


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_normalization_by_fixed_statistics(shape: tuple[int, ...], dtype: type) -> None:
    arrays = {"x": normal(0, *shape, dtype=dtype), "s": normal(1, 3, dtype=dtype), "b": normal(2, 3, dtype=dtype)}
    arrays |= {"m": normal(3, 3, dtype=dtype), "v": between(4, 0.5, 2, 3, dtype=dtype)}
    text = "g (T[1] x, T[1] s, T[1] b, T[1] m, T[1] v) => (T y) { y = BatchNormalization(x, s, b, m, v) }"
    require_torch(text, arrays, lambda x, s, b, m, v: F.batch_norm(x, m, v, s, b), frozen=("m", "v"))


def trained(shape: tuple[int, ...], dtype: type, unbiased: bool = True) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """A BatchNormalization in training, differentiated; and the numbers in it."""
    arrays = {"x": normal(0, *shape, dtype=dtype), "s": normal(1, 3, dtype=dtype), "b": normal(2, 3, dtype=dtype)}
    running = {"m": normal(3, 3, dtype=dtype), "v": between(4, 0.5, 2, 3, dtype=dtype)}
    text = """g (T[1] x, T[1] s, T[1] b, T[1] m, T[1] v) => (T y, T[3] m_next, T[3] v_next) {
        y, m_next, v_next = BatchNormalization <training_mode = 1, momentum = 0.9>(x, s, b, m, v) }"""
    model = build(text, {**arrays, **running}, in_loss=("y",))
    for name, after in (("m", "m_next"), ("v", "v_next")):
        state.mark(model.graph.initializers[name], state.Role.STATISTIC)
        model.graph.initializers[name].metadata_props[state.NEXT] = after
    assert Differentiate(unbiased=unbiased)(model).modified
    return model, {**arrays, **running}


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_batch_normalization_by_its_batch(shape: tuple[int, ...], dtype: type) -> None:
    model, arrays = trained(shape, dtype)
    tensors = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
    for name in ("x", "s", "b"):
        tensors[name].requires_grad_()
    y = F.batch_norm(*(tensors[name] for name in ("x", "m", "v", "s", "b")), training=True, momentum=0.1)
    weights = model.graph.initializers["loss.weights0"].const_value
    assert weights is not None
    (y * torch.from_numpy(weights.numpy().copy())).sum().backward()
    outputs = run(model, {})
    bound = 1e-9 if dtype is np.float64 else 1e-4
    np.testing.assert_allclose(outputs["y"], y.detach().numpy(), rtol=bound, atol=bound)
    for name in ("x", "s", "b"):
        gradient = tensors[name].grad
        assert gradient is not None
        np.testing.assert_allclose(outputs[f"{name}.gradient"], gradient.numpy(), rtol=bound, atol=bound)
    for name in ("m", "v"):
        value = model.graph.initializers[name]
        after = state.next_value(value, model.graph)
        assert after is not None
        np.testing.assert_allclose(outputs[str(after.name)], tensors[name].numpy(), rtol=1e-6)
    assert "BatchNormalization" not in [node.op_type for node in model.graph]


def test_the_running_variance_may_be_that_of_the_batch() -> None:
    model, arrays = trained((2, 3, 5), np.float64, unbiased=False)
    expected = 0.9 * arrays["v"] + 0.1 * arrays["x"].var((0, 2))
    np.testing.assert_allclose(run(model, {})["v_next"], expected, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("shape", "axis"), [((4, 6), -1), ((2, 3, 5), -2), ((2, 3, 5), 1), ((7,), 0)])
def test_layer_normalization(shape: tuple[int, ...], axis: int, dtype: type) -> None:
    inner = shape[axis:]
    names = ("x", "s", "b")
    arrays = {name: normal(place, *(inner if place else shape), dtype=dtype) for place, name in enumerate(names)}
    text = f"g (T[1] x, T[1] s, T[1] b) => (T y) {{ y = LayerNormalization <axis = {axis}>(x, s, b) }}"
    require_torch(text, arrays, lambda x, s, b: F.layer_norm(x, inner, s, b))


def test_layer_normalization_without_bias_whose_scale_is_broadcast() -> None:
    arrays = {"x": normal(0, 2, 3, 5, dtype=np.float32), "s": normal(1, 1, 5, dtype=np.float32)}
    text = "g (T[1] x, T[1] s) => (T y) { y = LayerNormalization <axis = 1>(x, s) }"
    require_torch(text, arrays, lambda x, s: F.layer_norm(x, (3, 5)) * s)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 4, 3, 3)])
def test_instance_and_group_normalization(shape: tuple[int, ...], dtype: type) -> None:
    names = ("x", "s", "b")
    arrays = {name: normal(place, *((4,) if place else shape), dtype=dtype) for place, name in enumerate(names)}
    text = "g (T[1] x, T[1] s, T[1] b) => (T y) { y = InstanceNormalization(x, s, b) }"
    require_torch(text, arrays, lambda x, s, b: F.instance_norm(x, weight=s, bias=b))
    text = "g (T[1] x, T[1] s, T[1] b) => (T y) { y = GroupNormalization <num_groups = 2>(x, s, b) }"
    require_torch(text, arrays, lambda x, s, b: F.group_norm(x, 2, s, b), opset=21)


@pytest.mark.parametrize(("dtype", "axis"), [("f4", -1), ("f8", 1)])
def test_rms_normalization(dtype: str, axis: int) -> None:
    kind, inner = np.dtype(dtype), (2, 3, 5)[axis:]
    arrays = {"x": normal(0, 2, 3, 5, dtype=kind), "s": normal(1, *inner, dtype=kind)}
    text = f"g (T[1] x, T[1] s) => (T y) {{ y = RMSNormalization <axis = {axis}>(x, s) }}"
    require_torch(text, arrays, lambda x, s: F.rms_norm(x, inner, s, 1e-5), opset=23)


@pytest.mark.parametrize("order", [1, 2])
def test_lp_normalization(order: int) -> None:
    text = f"g (T[1] x) => (T y) {{ y = LpNormalization <axis = 1, p = {order}>(x) }}"
    require_torch(text, {"x": normal(0, 2, 5, 3)}, lambda x: F.normalize(x, p=order, dim=1))


@pytest.mark.parametrize(("size", "dtype"), [(1, "f4"), (3, "f4"), (5, "f4"), (3, "f8"), (4, "f8")])
def test_local_response_normalization(size: int, dtype: str) -> None:
    """PyTorch centres an even window otherwise: its channels are turned around. ONNX Runtime takes odd ones alone."""
    text = f"g (T[1] x) => (T y) {{ y = LRN <size = {size}, alpha = 0.5, beta = 0.6, bias = 1.5>(x) }}"

    def twin(x: torch.Tensor) -> torch.Tensor:
        return F.local_response_norm(x.flip(1), size, 0.5, 0.6, 1.5).flip(1)

    require_torch(text, {"x": normal(0, 2, 7, 3, 2, dtype=np.dtype(dtype))}, twin)
