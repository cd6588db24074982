"""Masks in bits: where an activation is read for its sign alone, and not where it is there anyway."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph import state
from graphopt.passes import Differentiate, Loss, Masks
from graphopt.passes.training.loss import Kind
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pass_base import PassResult
from graphopt.pipeline.pipeline import Event
from graphopt.verify.oracle import random_inputs, run_onnxruntime
from tests.helpers.text_models import parse


def masked(text: str, **weights: tuple[int, ...]) -> tuple[ir.Model, PassResult]:
    """A training model with its masks in bits: it computes the same numbers, bit by bit."""
    listed = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in weights.items())
    model = parse(text.replace(") =>", f", {listed}) =>", 1), weights)
    for name in weights:
        state.mark(model.graph.initializers[name], state.Role.PARAMETER)
    Loss(kind=Kind.MSE)(model)
    Differentiate()(model)
    feeds = random_inputs(model, 0)
    before = run_onnxruntime(model, feeds)
    result = Masks()(model)
    assert isinstance(result, PassResult)
    Check()(Event(1, "masks", model, None))
    for name, array in run_onnxruntime(model, feeds).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert not Masks()(model).modified
    return model, result


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def kept(model: ir.Model) -> set[str]:
    """Values of the forward pass that the backward pass reads."""
    nodes = [node for node in model.graph if state.PHASE in node.metadata_props]
    values = {value for node in nodes for value in node.inputs if value is not None and not value.is_initializer()}
    return {
        str(value.name)
        for value in values
        if (producer := value.producer()) is not None and state.PHASE not in producer.metadata_props
    }


POOLED = """g (float[2,3,8,8] x) => (float[2,3,4,4] y) {
    a = Mul(x, w)  h = Relu(a)  y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(h) }"""


def test_the_sign_of_a_pooled_relu_is_kept_in_bits() -> None:
    model, result = masked(POOLED, w=(3, 1, 1))
    assert result.modified
    assert kinds(model).count("PositiveBits") == kinds(model).count("MaskByBits") == 1
    assert "h" not in kept(model)
    (bits,) = [node.outputs[0] for node in model.graph if node.op_type == "PositiveBits"]
    assert bits.shape == (48,)
    assert result.notes == (f"1 masks are kept in bits, which saves {2 * 3 * 64 * 4 - 48} bytes of activations",)
    names = [node.name for node in model.graph]
    assert names.index("h.PositiveBits") == names.index("relu1") + 1


def test_an_activation_that_a_product_reads_too_stays() -> None:
    text = "g (float[2,3] x) => (float[2,4] y) { a = Mul(x, w)  h = Relu(a)  y = MatMul(h, v) }"
    model, result = masked(text, w=(3,), v=(3, 4))
    assert not result.modified
    (refusal,) = result.refusals
    assert refusal.reason == "h is kept for matmul2.backward.Gemm too"
    assert "h" in kept(model)


def test_an_output_stays() -> None:
    text = "g (float[2,3] x) => (float[2,3] h) { a = Add(x, w)  h = Relu(a) }"
    _, result = masked(text, w=(3,))
    # the loss reads the difference, not h; but h is returned
    assert [refusal.reason for refusal in result.refusals] == ["h is an output"]


def test_both_bounds_of_a_clip_are_one_mask() -> None:
    text = """g (float[2,3] x) => (float[2,3] y) <float low = {0}, float high = {6}> {
        a = Mul(x, w)  h = Clip(a, low, high)  y = Add(h, w) }"""
    model, result = masked(text, w=(3,))
    assert result.modified
    assert kinds(model).count("PositiveBits") == 1
    forward = [node.op_type for node in model.graph if state.PHASE not in node.metadata_props]
    start = forward.index("Clip")
    assert forward[start : start + 6] == ["Clip", "Greater", "Less", "And", "Cast", "PositiveBits"]
    assert "h" not in kept(model)


def test_the_mask_of_dropout_takes_a_bit_instead_of_a_byte() -> None:
    text = """g (float[4,32] x) => (float[4,32] y) <bool t = {1}, float r = {0.5}> {
        a = Mul(x, w)  h = Dropout(a, r, t)  y = Add(h, w) }"""
    model, result = masked(text, w=(32,))
    assert result.modified
    assert not any(name.endswith("DropoutMask") for name in kept(model))
