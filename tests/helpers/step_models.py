"""Step models written as ONNX text: what `differentiate` and `optimizer` would make of small models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph import state
from graphopt.models import samples
from graphopt.training.build import StepModel, from_step_model

HEAD = '<ir_version: 11, opset_import: ["": 20]>'


def step_model(text: str, values: Mapping[str, tuple[str, str, NDArray[Any]]], loss: str = "loss") -> ir.Model:
    """A step model of the text; the inputs named in `values` become state: (role, next value, first numbers)."""
    model = ir.from_onnx_text(f"{HEAD}\n{text}")
    graph = model.graph
    for value in list(graph.inputs):
        if value.name in values:
            role, following, numbers = values[value.name]
            graph.inputs.remove(value)
            value.const_value = ir.tensor(numbers, name=value.name)
            graph.register_initializer(value)
            state.mark(value, state.Role(role))
            value.metadata_props[state.NEXT] = following
    for number, node in enumerate(graph):
        node.name = f"{node.op_type.lower()}{number}"
    graph.metadata_props[state.LOSS] = loss
    return model


def linear(batch: int = 4, rows: int = 3) -> ir.Model:
    """Least squares: loss = mean((x w - y)^2), w -= lr dw; `w` begins with zeros."""
    text = f"""
    linear (float[{batch},{rows}] x, float[{batch},1] y, float lr, float[{rows},1] w)
        => (float loss, float[{rows},1] w_next)
    {{
        p = MatMul (x, w)
        d = Sub (p, y)
        q = Mul (d, d)
        loss = ReduceMean <keepdims = 0> (q)
        xt = Transpose <perm = [1, 0]> (x)
        g = MatMul (xt, d)
        scale = Constant <value_float = {2 / batch}> ()
        dw = Mul (g, scale)
        s = Mul (dw, lr)
        w_next = Sub (w, s)
    }}
    """
    return step_model(text, {"w": ("parameter", "w_next", np.zeros((rows, 1), np.float32))})


def softmax(batch: int = 32) -> ir.Model:
    """Softmax regression on pictures of 8 x 8, by momentum; all state begins with zeros."""
    text = f"""
    softmax (float[{batch},1,8,8] image, int64[{batch}] labels, float lr,
             float[64,10] w, float[10] b, float[64,10] momentum)
        => (float loss, int64 correct, float[64,10] w_next, float[10] b_next, float[64,10] momentum_next)
    {{
        flat = Constant <value_ints = [{batch}, 64]> ()
        x = Reshape (image, flat)
        scores = Gemm (x, w, b)
        loss, logp = SoftmaxCrossEntropyLoss (scores, labels)
        p = Exp (logp)
        classes = Constant <value_int = 10> ()
        zero_one = Constant <value = float[2] {{0, 1}}> ()
        hot = OneHot <axis = -1> (labels, classes, zero_one)
        d0 = Sub (p, hot)
        n = Constant <value_float = {float(batch)}> ()
        d = Div (d0, n)
        xt = Transpose <perm = [1, 0]> (x)
        gw = MatMul (xt, d)
        axis = Constant <value_ints = [0]> ()
        gb = ReduceSum <keepdims = 0> (d, axis)
        mu = Constant <value_float = 0.9> ()
        vm = Mul (momentum, mu)
        momentum_next = Add (vm, gw)
        uw = Mul (momentum_next, lr)
        w_next = Sub (w, uw)
        ub = Mul (gb, lr)
        b_next = Sub (b, ub)
        guess = ArgMax <axis = 1, keepdims = 0> (scores)
        hit = Equal (guess, labels)
        number = Cast <to = 7> (hit)
        correct = ReduceSum <keepdims = 0> (number)
    }}
    """
    zeros = np.zeros((64, 10), np.float32)
    return step_model(
        text,
        {
            "w": ("parameter", "w_next", zeros),
            "b": ("parameter", "b_next", zeros[0]),
            "momentum": ("optimizer", "momentum_next", zeros),
        },
    )


def softmax_inference(batch: int | str = "N") -> onnx.ModelProto:
    """The inference model of `softmax`: its weights are initializers `w` and `b`."""
    text = f"""
    digits (float[{batch},1,8,8] image) => (float[{batch},10] scores)
    <float[10] b = {{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}}>
    {{
        x = Flatten (image)
        scores = Gemm (x, w, b)
    }}
    """
    model = onnx.parser.parse_model(f"{HEAD}\n{text}")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((64, 10), np.float32), "w"))
    return model


def proto(model: ir.Model) -> onnx.ModelProto:
    """The model as users save it."""
    return ir.to_proto(model)


def digits_step(original: bool = True) -> StepModel:
    """Softmax regression on the digits as `build_step` makes it; with `original` it knows its inference model."""
    step = from_step_model(softmax())
    return replace(step, original=softmax_inference(), output="scores", kind="cross-entropy") if original else step


def digits_data() -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Training and test data of `softmax`."""
    train, test = samples.training_digits(), samples.digits()
    return dict(zip(("image", "labels"), train, strict=True)), dict(zip(("image", "labels"), test, strict=True))
