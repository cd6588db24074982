"""Shapes that nobody can infer are learned by running the node, and only where the data does not make them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.compiler import compile_model
from graphopt.frontend import load
from graphopt.verify.oracle import random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal


def parse(text: str, opset: int = 20) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>\n{text}')


def shapes(model: ir.Model) -> dict[str, tuple[int, ...] | None]:
    loaded = load.load(model).model
    values = [value for node in loaded.graph for value in node.outputs]
    return {str(v.name): v.shape.numpy() if v.shape is not None and v.shape.is_static() else None for v in values}


LEARNED = {
    "behind an operator that nothing describes": (
        "g (int32[4, 3] x) => (uint32[a, b] y) { a = com.microsoft.MurmurHash3(x)  b = Identity(a)"
        "  c = Transpose(b)  s = Shape(c)  y = Reshape(c, s) }",
        {"a": (4, 3), "c": (3, 4)},
    ),
    "a loop of constant count": (
        """g (float[2, 3] x) => (float[n, 3] y) <int64 m = {3}, bool c = {1}> {
            e = Loop(m, c, x) <body = b (int64 i, bool b0, float[n, 3] a) => (bool b1, float[k, 3] o)
                { b1 = Identity(b0)  o = Concat<axis = 0>(a, x) }>
            y = Relu(e)
        }""",
        {"e": (8, 3), "y": (8, 3)},
    ),
    "a claim that is wrong": (
        "g (int32[4, 3] x) => (uint32[7] y) { y = com.microsoft.MurmurHash3(x) }",
        {"y": (4, 3)},
    ),
    "a claim about data": (
        "g (float[6] x, int64[2] s) => (float[2, 3] y) { a = Reshape(x, s)  y = Relu(a) }",
        {"a": None, "y": None},
    ),
    "data": ("g (float[6] x) => (int64[1, 6] y) { y = NonZero(x) }", {"y": None}),
}


@pytest.mark.parametrize("name", LEARNED)
def test_shapes(name: str) -> None:
    text, expected = LEARNED[name]
    found = shapes(parse(text))
    assert {key: found[key] for key in expected} == expected


def test_what_follows_is_native() -> None:
    model = parse(LEARNED["a loop of constant count"][0])
    compilation = compile_model(model)
    assert [name for name, _ in compilation.fallbacks] == ["e (Loop)"]
    for seed in range(2):
        feeds = random_inputs(load.load(model).model, seed)
        require_equal(run_onnxruntime(model, feeds), compilation.artifact.session().run(feeds), "learned")


CEILED = """g (float[1, 2, 7, 6] x) => (float[a, b, c, d] y, float[k] z) <int64[1] s = {-1}> {
    y = OPERATOR <ceil_mode = 1, kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [3, 3]> (x)
    z = Reshape(y, s)
}"""


@pytest.mark.parametrize("opset", [11, 19, 20])
@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
def test_pools_in_ceil_mode_have_the_windows_of_onnxruntime(operator: str, opset: int) -> None:
    model = parse(CEILED.replace("OPERATOR", operator), opset)
    x = np.random.default_rng(0).standard_normal((1, 2, 7, 6)).astype(np.float32)
    expected = run_onnxruntime(model, {"x": x})
    require_equal(expected, compile_model(model).artifact.session().run({"x": x}), operator)


@pytest.mark.parametrize("onesided", [0, 1])
def test_frequencies_of_stft(onesided: int) -> None:
    model = parse(
        f"g (float[1, 32, 1] x) => (float[a, b, c, d] y) <int64 h = {{8}}, int64 n = {{16}}>"
        f"{{ t = STFT<onesided = {onesided}>(x, h, , n)  y = Neg(t) }}"
    )
    x = np.random.default_rng(0).standard_normal((1, 32, 1)).astype(np.float32)
    require_equal(run_onnxruntime(model, {"x": x}), compile_model(model).artifact.session().run({"x": x}), "STFT")
