"""Errors of generated kernels: those of the algorithms, and large ones where a kernel or its weights are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.bench import errors, layers
from graphopt.compiler import Compilation, compile_model
from graphopt.lowering.target import Target
from graphopt.targets import load_target

PIPELINE = "normalize,fuse,select-conv{{algorithms={},max-error=1e-5}},layout"


@pytest.fixture(scope="module")
def target() -> Target:
    return load_target("llvm", None, 1, cache=True)


def model(text: str, **constants: tuple[int, ...]) -> onnx.ModelProto:
    """The graph `text` at opset 20; constants are standard normal and have the shapes given."""
    generator = np.random.default_rng(0)
    built = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')
    for name, shape in constants.items():
        array = generator.standard_normal(shape).astype(np.float32)
        built.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        built.graph.input.remove(next(each for each in built.graph.input if each.name == name))
    for number, node in enumerate(built.graph.node):
        node.name = f"{node.op_type.lower()}{number}"
    return built


def convolution(
    channels: int = 16, group: int = 1, attributes: str = "pads = [1, 1, 1, 1]", n: int = 1, k: int = 3
) -> onnx.ModelProto:
    """y = Conv(x, w, b): k x k, `channels` -> 16, on a plane of 34 x 34."""
    shape = (16, channels // group, k, k)
    text = f"g (float[{n}, {channels}, 34, 34] x, float[{', '.join(map(str, shape))}] w, float[16] b) "
    body = f"=> (float[N, C, H, W] y) {{ y = Conv <{attributes}, group = {group}> (x, w, b) }}"
    return model(text + body, w=shape, b=(16,))


def found(source: onnx.ModelProto, target: Target, passes: str | None = None) -> tuple[dict[str, float], Compilation]:
    compiled = compile_model(source, passes=passes, threads=1)
    return measure(source, compiled, target), compiled


def measure(source: onnx.ModelProto, compiled: Compilation, target: Target) -> dict[str, float]:
    original = errors.before_selection(graphopt.load(source).model)
    return errors.errors(compiled.pipeline.model, original, layers.native(compiled.artifact), target, 1)


def only(result: dict[str, float]) -> float:
    assert len(result) == 1
    return next(iter(result.values()))


def test_each_algorithm_has_its_published_error(target: Target) -> None:
    """One input channel counts, as in tests/ops/test_winograd.py: the terms of many would add to the error."""
    source = convolution()
    weights = next(each for each in source.graph.initializer if each.name == "w")
    array = onnx.numpy_helper.to_array(weights).copy()
    array[:, 1:] = 0
    weights.CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    measured = {
        name: only(found(source, target, PIPELINE.format(name))[0])
        for name in ("blocked", "winograd2", "winograd4", "winograd6")
    }
    assert sorted(measured, key=measured.__getitem__) == list(measured)
    for name, published in (("winograd2", 7.7e-8), ("winograd4", 3.3e-7), ("winograd6", 8.8e-7)):
        assert published / 3 < measured[name] < published * 3
    assert measured["winograd4"] > 2 * measured["blocked"] > 0


@pytest.mark.parametrize(
    ("source", "algorithm", "operator"),
    [
        (convolution(3, attributes="pads = [2, 1, 0, 1], strides = [2, 1]"), "blocked", "Conv2dBlocked"),
        (convolution(32, 2, "pads = [0, 0, 1, 1], dilations = [2, 1]"), "planar", "Conv"),
        (convolution(16, 16, "strides = [2, 2], pads = [1, 1, 1, 1]"), "depthwise", "DepthwiseConv2dBlocked"),
        (convolution(5, attributes="pads = [1, 0, 1, 2], dilations = [1, 2]"), "im2col", "Conv2dIm2col"),
        (convolution(20, n=2, k=5), "fft", "Conv2dFft"),
        (convolution(20, n=2), "winograd2", "Conv2dWinograd"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_forms_of_convolutions(source: onnx.ModelProto, algorithm: str, operator: str, target: Target) -> None:
    result, compiled = found(source, target, PIPELINE.format(algorithm))
    (name,) = result
    assert 0 < result[name] < 3e-6
    assert {node.name: node.op_type for node in compiled.pipeline.model.graph}[name] == operator


def test_products(target: Target) -> None:
    text = """
    g (float[2, 5, 24] x, float[24, 32] u, float[12, 32] v, float[12] b) => (float[10, 12] z) {
        y = MatMul(x, u)
        flat = Constant <value_ints = [10, 32]> ()
        rows = Reshape (y, flat)
        z = Gemm <transB = 1, alpha = 0.5, beta = 2.0> (rows, v, b)
    }"""
    result, compiled = found(model(text, u=(24, 32), v=(12, 32), b=(12,)), target)
    assert len(result) == sum(node.op_type in errors.PRODUCTS for node in compiled.pipeline.model.graph) == 2
    assert all(0 < error < 1e-6 for error in result.values())


def test_nodes_without_constant_weights_have_none(target: Target) -> None:
    text = "g (float[4, 4] x) => (float[4, 4] z) { y = Relu(x)  z = MatMul(y, x) }"
    assert found(model(text), target)[0] == {}


def test_nodes_of_onnx_runtime_have_none(target: Target) -> None:
    source = convolution()
    compiled = compile_model(source, threads=1)
    original = errors.before_selection(graphopt.load(source).model)
    assert errors.errors(compiled.pipeline.model, original, set(), target, 1) == {}


def test_wrong_weights_are_seen(target: Target) -> None:
    source = convolution()
    compiled = compile_model(source, passes=PIPELINE.format("winograd4"), threads=1)
    node = next(node for node in compiled.pipeline.model.graph if node.op_type == "Conv2dWinograd")
    u = node.inputs[1]
    assert u is not None
    assert u.const_value is not None
    wrong = u.const_value.numpy().copy()
    wrong[7] *= 1.001
    u.const_value = ir.Tensor(wrong, name=u.name)
    assert only(measure(source, compiled, target)) > 1e-5


@pytest.mark.parametrize(("value", "least"), [(0.0, 0.01), (np.nan, 1.0)])
def test_wrong_results_are_seen(value: float, least: float, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    right = errors.run

    def damaged(*arguments: Any) -> Any:
        result = right(*arguments)
        result[:, :, 3] = value
        return result

    monkeypatch.setattr(errors, "run", damaged)
    assert only(found(convolution(), target)[0]) >= least


def test_equal_nodes_are_run_once(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    right = errors.run
    monkeypatch.setattr(errors, "run", lambda *arguments: runs.append(1) or right(*arguments))
    text = """
    g (float[4, 16] x, float[16, 16] u, float[16, 16] v) => (float[4, 16] d) {
        a = MatMul(x, u)  s = Relu(a)  b = MatMul(s, u)  t = Relu(b)  c = MatMul(t, v)  d = Relu(c)
    }"""
    result, _ = found(model(text, u=(16, 16), v=(16, 16)), target)
    assert len(result) == 3
    assert len(runs) == 2


def test_planar_undoes_blocks() -> None:
    x = np.random.default_rng(0).standard_normal((2, 20, 3, 5))
    blocked = np.pad(x, ((0, 0), (0, 12), (0, 0), (0, 0))).reshape(2, 2, 16, 3, 5).transpose(0, 1, 3, 4, 2)
    np.testing.assert_array_equal(errors.planar(blocked, 20), x)
