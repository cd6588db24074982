"""Functions in place of operators: values, nesting, what stays, and a kernel whose code cannot be generated."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from graphopt import targets
from graphopt.compiler import compile_model
from graphopt.errors import CodegenError, GraphoptError
from graphopt.frontend.expand import expand_functions
from graphopt.frontend.load import load
from graphopt.verify.oracle import compare, random_inputs, run_onnxruntime


def model(text: str, opset: int = 20) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {text}')


LOSS = """agraph (float[3, 5] x, int64[3] t, float[5] w) => (float loss, float[3, 5] log)
{ y = Abs(x)  loss, log = SoftmaxCrossEntropyLoss<reduction = "mean">(y, t, w) }"""


def test_a_function_of_functions_becomes_native_nodes() -> None:
    source = model(LOSS)
    feeds = random_inputs(load(source).model, 0) | {"t": np.array([0, 4, 2])}
    compilation = compile_model(source, fallback=False)
    assert compilation.fallbacks == ()
    assert compare(run_onnxruntime(load(source).model, feeds), compilation.artifact.session().run(feeds)) == []


def test_the_expanded_model_is_valid_and_equal() -> None:
    loaded = load(model(LOSS)).model
    feeds = random_inputs(loaded, 0) | {"t": np.array([0, 4, 2])}
    before = run_onnxruntime(loaded, feeds)
    refused = {"SoftmaxCrossEntropyLoss", "NegativeLogLikelihoodLoss"}
    count = expand_functions(loaded, lambda node, _: "refused" if node.op_type in refused else None)
    assert count == 1
    kinds = [node.op_type for node in loaded.graph]
    assert not refused & set(kinds)
    assert kinds[0] == "Abs"
    assert [value.name for value in loaded.graph.outputs] == ["loss", "log"]
    assert compare(before, run_onnxruntime(loaded, feeds)) == []
    assert expand_functions(loaded, lambda node, _: None) == 0


def test_one_node_that_is_not_native_leaves_the_operator() -> None:
    loaded = load(model(LOSS)).model
    refused = {"SoftmaxCrossEntropyLoss", "Transpose"}
    assert expand_functions(loaded, lambda node, _: "refused" if node.op_type in refused else None) == 0
    assert [node.op_type for node in loaded.graph] == ["Abs", "SoftmaxCrossEntropyLoss"]


def test_what_onnxruntime_computes_otherwise_stays() -> None:
    """Of integers every exponential is cut to one: log(2) + 3 is 3, and the function's log(2 e^3 + 2 e^2) is 4."""
    source = model("agraph (int64[4] x) => (int64 y) { y = ReduceLogSumExp<keepdims = 0>(x) }")
    feeds = {"x": np.array([3, 3, 2, 2])}
    compilation = compile_model(source)
    assert len(compilation.fallbacks) == 1
    assert run_onnxruntime(load(source).model, feeds)["y"] == compilation.artifact.session().run(feeds)["y"] == 3


def test_an_operator_without_a_function_stays() -> None:
    loaded = load(model("agraph (float[2, 2] x) => (float y) { y = Det(x) }")).model
    assert expand_functions(loaded, lambda node, _: "refused") == 0


def fail_at(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from graphopt.targets.cpu.target import CpuTarget

    lower = CpuTarget.lower

    def failing(self: Any, nodes: Any, *args: Any) -> Any:
        if any(node.op_type == kind for node in nodes):
            raise CodegenError("unknown intrinsic")
        return lower(self, nodes, *args)

    monkeypatch.setattr(CpuTarget, "lower", failing)


def test_a_kernel_that_cannot_be_generated_becomes_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    assert targets.TARGETS
    fail_at("Neg", monkeypatch)
    source = model("agraph (float[2] x) => (float[2] y) { a = Abs(x)  b = Neg(a)  y = Exp(b) }")
    compilation = compile_model(source)
    ((name, reason),) = compilation.fallbacks
    assert name.endswith("(Neg)")
    assert reason == "TVM cannot generate code for Neg: unknown intrinsic"
    x = np.array([1, -2], np.float32)
    np.testing.assert_allclose(compilation.artifact.session().run({"x": x})["y"], np.exp(-abs(x)), rtol=1e-5)
    with pytest.raises(GraphoptError, match="1 of 3 nodes have no native form"):
        compile_model(source, fallback=False)
