"""Tensors without elements: they compile, and nothing is launched for them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.compiler import compile_model

HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
MODELS = {
    "no image": ("g (float[0,3,8,8] x) => (float[0,5,6,6] y) <float[5,3,3,3] w> { y = Conv(x, w) }", (5, 3, 3, 3)),
    "no depth": ("g (float[4,0] x) => (float[4,3] y) <float[0,3] w> { y = MatMul(x, w) }", (0, 3)),
    "no rows": ("g (float[0,6] x) => (float[0,3] y) <float[6,3] w> { y = MatMul(x, w) }", (6, 3)),
}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "tf32"])
@pytest.mark.parametrize("name", MODELS)
def test_empty_tensors(name: str, precision: str) -> None:
    text, shape = MODELS[name]
    model = onnx.parser.parse_model(HEAD + text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), "w"))
    compiled = compile_model(model, target="cuda", precision=precision, costs="roofline", fallback=False)
    assert [port.name for port in compiled.artifact.program.outputs] == ["y"]
