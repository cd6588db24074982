"""What follows a kernel and gives more elements than it is not fused behind it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.compiler import compile_model
from graphopt.program.program import NativeSegment

CASES = {
    "product and sum": (
        "float[9,16] x, float[1,16] p",
        "float[9,16] y",
        "float[16,16] w",
        "s = MatMul(p, w) y = Add(s, x)",
    ),
    "of another rank": (
        "float[3,9,16] x, float[9,16] p",
        "float[3,9,16] y",
        "float[16,16] w",
        "s = MatMul(p, w) y = Add(x, s)",
    ),
    "vector": ("float[9,16] x, float[16] p", "float[9,16] y", "float[16,16] w", "s = MatMul(p, w) y = Mul(s, x)"),
    "convolution": (
        "float[1,16,14,14] x, float[1,16,1,1] p",
        "float[1,16,14,14] y",
        "float[16,16,1,1] w",
        "s = Conv(p, w) y = Mul(x, s)",
    ),
    "after an activation": (
        "float[2,16,7,9] x, float[2,16,1,1] p",
        "float[2,16,7,9] y",
        "float[16,16,1,1] w",
        "s = Conv(p, w) g = Sigmoid(s) y = Mul(x, g)",
    ),
    "squeeze and excite": (
        "float[2,24,7,9] x",
        "float[2,24,7,9] y",
        "float[24,24,1,1] w",
        "p = GlobalAveragePool(x) c = Conv(p, w) r = Relu(c) d = Conv(r, w) g = HardSigmoid(d) y = Mul(x, g)",
    ),
    "depthwise": (
        "float[1,16,14,14] x, float[1,16,3,3] p",
        "float[1,16,14,14] y",
        "float[16,1,3,3] w",
        "s = Conv<group = 16>(p, w) y = Add(x, s)",
    ),
    "mean": (
        "float[4,33] x",
        "float[4,33] y",
        "float[33] w",
        "m = ReduceMean<keepdims = 1>(x, axes) d = Sub(x, m) y = Mul(d, w)",
    ),
    "softmax": (
        "float[4,33] x, float[1,33] p",
        "float[4,33] y",
        "float[33] w",
        "s = Softmax(p) a = Mul(s, w) y = Mul(x, a)",
    ),
    "read twice": (
        "float[9,16] x, float[1,16] p",
        "float[9,16] y",
        "float[16,16] w",
        "s = MatMul(p, w) r = Relu(s) a = Add(s, r) y = Add(a, x)",
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("passes", [None, "normalize,fuse"])
def test_broadcasts(opencl: Any, name: str, passes: str | None) -> None:
    """The program agrees with ONNX Runtime, and no kernel fell back to the generic schedule."""
    inputs, outputs, weight, body = CASES[name]
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    g ({inputs}) => ({outputs}) <{weight}, int64[1] axes = {{1}}> {{ {body} }}
    """
    model = onnx.parser.parse_model(text)
    shape = [int(extent) for extent in weight[weight.index("[") + 1 : weight.index("]")].split(",")]
    numbers = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(numbers, "w"))
    compiled = compile_model(model, target="opencl", passes=passes, verify="ends", costs="roofline")
    segments = [segment for stage in compiled.artifact.program.stages for segment in stage.segments]
    assert all(isinstance(segment, NativeSegment) for segment in segments)
    assert not [note for note in compiled.notes if "does not fit" in note]
