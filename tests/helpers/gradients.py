"""Gradients of `differentiate` beside those of PyTorch's autograd, or beside differences of the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from graphopt.errors import VerificationError
from graphopt.frontend.complete import complete
from graphopt.graph import state
from graphopt.passes import Differentiate
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pipeline import Event
from graphopt.verify.oracle import run_onnxruntime

Array = NDArray[Any]
Twin = Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]

_TOLERANCE = {"float64": 1e-6, "float32": 1e-4}


def build(
    text: str,
    arrays: Mapping[str, Array],
    frozen: tuple[str, ...] = (),
    opset: int = 20,
    in_loss: tuple[str, ...] = (),
) -> ir.Model:
    """A model from text in which T is the dtype of floats; float arrays are parameters, others and `frozen` inputs.

    The loss is the sum of all float outputs (of those `in_loss`), each times fixed random numbers.
    """
    floats = [array.dtype for array in arrays.values() if array.dtype.kind == "f"]
    spelled = "double" if floats and floats[0] == np.float64 else "float"
    head = f'<ir_version: 11, opset_import: ["": {opset}, "graphopt": 1]>\n'
    model = ir.from_onnx_text(head + text.replace("T[", f"{spelled}[").replace("T ", f"{spelled} "))
    graph = model.graph
    for value in list(graph.inputs):
        array = arrays[str(value.name)]
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
        if array.dtype.kind == "f" and value.name not in frozen:
            graph.inputs.remove(value)
            value.const_value = ir.tensor(array, name=value.name)
            graph.register_initializer(value)
            state.mark(value, state.Role.PARAMETER)
    for number, node in enumerate(graph):
        node.name = f"{node.op_type.lower()}{number}"
    complete(model)
    _add_loss(model, spelled, in_loss)
    return model


def _add_loss(model: ir.Model, spelled: str, in_loss: tuple[str, ...]) -> None:
    graph, generator = model.graph, np.random.default_rng(99)
    dtype = ir.DataType.DOUBLE if spelled == "double" else ir.DataType.FLOAT
    total: ir.Value | None = None
    chosen = [value for value in graph.outputs if not in_loss or value.name in in_loss]
    for place, output in enumerate([value for value in chosen if value.dtype == dtype]):
        numbers = generator.standard_normal(output.shape.numpy()).astype(dtype.numpy())
        weights = ir.Value(name=f"loss.weights{place}", const_value=ir.tensor(numbers), shape=output.shape)
        weights.type = output.type
        graph.register_initializer(weights)
        product = ir.node("Mul", [output, weights], name=f"loss.mul{place}")
        part = ir.node("ReduceSum", product.outputs, {"keepdims": 0}, name=f"loss.sum{place}")
        graph.extend([product, part])
        product.outputs[0].shape, product.outputs[0].type = output.shape, output.type
        part.outputs[0].shape, part.outputs[0].type = ir.Shape(()), output.type
        if total is None:
            total = part.outputs[0]
            continue
        both = ir.node("Add", [total, part.outputs[0]], name=f"loss.add{place}")
        graph.append(both)
        both.outputs[0].shape, both.outputs[0].type = ir.Shape(()), output.type
        total = both.outputs[0]
    assert total is not None
    total.name = "loss"
    graph.outputs.append(total)
    graph.metadata_props[state.LOSS] = "loss"


def run(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs from ONNX Runtime, or from ONNX's reference where ONNX Runtime has no kernel for float64."""
    try:
        return run_onnxruntime(model, feeds)
    except VerificationError as error:
        if "NOT_IMPLEMENTED" not in str(error):
            raise
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[Conv, ConvTranspose, LRN, Erf, Mean])
    names = [str(value.name) for value in model.graph.outputs]
    return dict(zip(names, evaluator.run(None, dict(feeds)), strict=True))


def gradients_of(model: ir.Model, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Differentiate `model` in place, check it, and run it; returns gradients by parameter, and all outputs."""
    pass_ = Differentiate()
    assert pass_(model).modified
    Check()(Event(1, "differentiate", model, None))
    for node in model.graph:
        assert all(value.shape is not None and value.dtype is not None for value in node.outputs), node
    outputs = run(model, feeds)
    found = {
        str(value.name): outputs[value.metadata_props[state.GRADIENT]]
        for value in state.states(model.graph)
        if state.GRADIENT in value.metadata_props
    }
    return found, outputs


def require_torch(
    text: str, arrays: Mapping[str, Array], twin: Twin, frozen: tuple[str, ...] = (), opset: int = 20
) -> ir.Model:
    """The gradients are those of `twin`, which takes the tensors in their order; returns the differentiated model."""
    model = build(text, arrays, frozen, opset)
    outputs = [value for value in model.graph.outputs if value.name != "loss"]
    weights = [array for name, value in model.graph.initializers.items() if name.startswith("loss.weights")
               for array in [value.const_value.numpy()]]  # fmt: skip
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    trained = {name for name, array in arrays.items() if array.dtype.kind == "f" and name not in frozen}
    for name in trained:
        tensors[name].requires_grad_()
    results = twin(*tensors.values())
    pairs = zip(results if isinstance(results, tuple) else (results,), weights, strict=True)
    loss = sum((result * torch.from_numpy(array)).sum() for result, array in pairs)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    feeds = {name: array for name, array in arrays.items() if name not in trained}
    found, values = gradients_of(model, {str(v.name): feeds[str(v.name)] for v in model.graph.inputs})
    dtype = next(iter(array.dtype.name for array in arrays.values() if array.dtype.kind == "f"))
    bound = _TOLERANCE[dtype]
    np.testing.assert_allclose(values["loss"], loss.detach().numpy(), rtol=bound, atol=bound, err_msg="loss")
    for name in sorted(trained):
        gradient = tensors[name].grad
        expected = np.zeros_like(arrays[name]) if gradient is None else gradient.numpy()
        actual = found.get(name, np.zeros_like(arrays[name]))
        assert actual.dtype == expected.dtype
        scale = max(1.0, float(np.abs(expected).max(initial=0.0)))
        np.testing.assert_allclose(actual, expected, rtol=bound, atol=bound * scale, err_msg=f"gradient of {name}")
    assert outputs
    return model


def require_differences(text: str, arrays: Mapping[str, Array], opset: int = 20, step: float = 1e-5) -> ir.Model:
    """The gradients are slopes of the loss along random directions (float64)."""
    model = build(text, arrays, opset=opset)
    forward = state.exposed(model)
    feeds = {name: array for name, array in arrays.items() if array.dtype.kind != "f"}
    found, _ = gradients_of(model, feeds)
    generator = np.random.default_rng(5)
    for name, gradient in found.items():
        direction = generator.standard_normal(arrays[name].shape)
        losses = []
        for sign in (1, -1):
            moved = {**arrays, name: arrays[name] + sign * step * direction}
            losses.append(float(run(forward, {str(v.name): moved[str(v.name)] for v in forward.graph.inputs})["loss"]))
        slope = (losses[0] - losses[1]) / (2 * step)
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-6, err_msg=name)
    return model


def _pads(x: Array, pads: list[int]) -> Array:
    half = len(pads) // 2
    return np.pad(x, [(0, 0), (0, 0), *zip(pads[:half], pads[half:], strict=True)])


class Conv(OpRun):
    """Conv by PyTorch: ONNX's reference is slow, and it lacks some forms."""

    def _run(self, x, w, b=None, dilations=None, group=1, pads=None, strides=None, **_):  # type: ignore[no-untyped-def]
        rank = w.ndim - 2
        function = (torch.conv1d, torch.conv2d, torch.conv3d)[rank - 1]
        padded = torch.from_numpy(_pads(x, list(pads or [0] * 2 * rank)).copy())
        bias = None if b is None else torch.from_numpy(b.copy())
        y = function(
            padded, torch.from_numpy(w.copy()), bias, stride=list(strides or [1] * rank),
            dilation=list(dilations or [1] * rank), groups=group or 1,
        )  # fmt: skip
        return (y.numpy(),)


class ConvTranspose(OpRun):
    """ConvTranspose by PyTorch."""

    def _run(  # type: ignore[no-untyped-def]
        self, x, w, b=None, dilations=None, group=1, output_padding=None, pads=None, strides=None, **_
    ):
        rank = w.ndim - 2
        function = (torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d)[rank - 1]
        ones = [1] * rank
        y = function(
            torch.from_numpy(x.copy()), torch.from_numpy(w.copy()), None, stride=list(strides or ones),
            dilation=list(dilations or ones), groups=group or 1,
        ).numpy()  # fmt: skip
        around = list(pads or [0] * 2 * rank)
        extra = list(output_padding or [0] * rank)
        wide = np.pad(y, [(0, 0), (0, 0), *((0, each) for each in extra)])
        cut = tuple(slice(around[axis], wide.shape[2 + axis] - around[rank + axis]) for axis in range(rank))
        result = wide[(slice(None), slice(None), *cut)]
        return (result if b is None else result + b.reshape(1, -1, *ones),)


class LRN(OpRun):
    """LRN in the dtype of x."""

    def _run(self, x, alpha=1e-4, beta=0.75, bias=1.0, size=1, **_):  # type: ignore[no-untyped-def]
        y = np.empty_like(x)
        for channel in range(x.shape[1]):
            low, high = max(0, channel - (size - 1) // 2), channel + size // 2 + 1
            total = (x[:, low:high] ** 2).sum(1)
            y[:, channel] = x[:, channel] / (bias + alpha / size * total) ** beta
        return (y,)


class Erf(OpRun):
    """Erf in the dtype of x."""

    def _run(self, x):  # type: ignore[no-untyped-def]
        return (torch.erf(torch.from_numpy(x.copy())).numpy(),)


class Mean(OpRun):
    """Mean that broadcasts."""

    def _run(self, *values):  # type: ignore[no-untyped-def]
        total = np.asarray(sum(np.broadcast_arrays(*values)), values[0].dtype)
        return (total / np.asarray(len(values), total.dtype),)
