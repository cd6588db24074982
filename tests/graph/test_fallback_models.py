"""Models for ONNX Runtime, cut out of a graph and opened while compiling."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphopt.errors import UnsupportedError
from graphopt.graph.fallback_models import SHARED_BYTES, Dims, FallbackModel, extract, fallback_models, observed
from graphopt.graph.segments import NodeRun, node_runs
from graphopt.verify.oracle import run_onnxruntime


def model_of(text: str, opset: int = 21) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')
    ShapeInferencePass()(model)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def run_of(model: ir.Model, refused: str) -> NodeRun:
    nodes = list(model.graph)
    refusals = {node: "no kernel" for node in nodes if node.outputs[0].name in refused.split()}
    return next(run for run in node_runs(nodes, refusals, model.graph.outputs) if not run.native)


def opened(model: ir.Model, refused: str, **stored: Any) -> list[FallbackModel]:
    return list(fallback_models(model, run_of(model, refused), model.graph.outputs, stored, 1))


@pytest.mark.parametrize("captured", ["a", "w"])
def test_an_extracted_model_is_complete(captured: str) -> None:
    """Constants that only a subgraph reads come along; values that it captures become inputs."""
    model = model_of(
        """g (float[2] x, bool c) => (float[2] y) <float[2] w = {1, 2}> {
            a = Relu(x)
            y = If (c) <
                then_branch = t () => (float[2] p) { p = Neg(CAPTURED) },
                else_branch = e () => (float[2] q) { q = Exp(CAPTURED) }
            >
        }""".replace("CAPTURED", captured)
    )
    proto, outside = extract(model, run_of(model, "y"))
    assert not outside
    onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    assert [value.name for value in proto.graph.input] == (["c", "a"] if captured == "a" else ["c"])
    assert [tensor.name for tensor in proto.graph.initializer] == ([] if captured == "a" else ["w"])


def test_shapes_are_those_of_the_inputs_alone() -> None:
    model = model_of("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    for dims, written in ((Dims.STATIC, [2]), (Dims.RANK, [0]), (Dims.NONE, [])):
        graph = extract(model, run_of(model, "y"), dims)[0].graph
        assert [dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim] == written
        assert not any(dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim)


def test_only_functions_that_are_called_come_along() -> None:
    model = ir.from_onnx_text("""
        <ir_version: 10, opset_import: ["": 21, "own": 1]>
        g (float[2] x) => (float[2] y) { y = own.Outer(x) }
        <domain: "own", opset_import: ["": 21, "own": 1]> Outer (a) => (b) { b = own.Inner(a) }
        <domain: "own", opset_import: ["": 21]> Inner (a) => (b) { b = Neg(a) }
        <domain: "own", opset_import: ["": 21]> Other (a) => (b) { b = Exp(a) }
    """)
    node = model.graph.node(0)
    run = NodeRun((node,), tuple(model.graph.inputs), tuple(model.graph.outputs), (("make_y", "no kernel"),))
    assert [function.name for function in extract(model, run)[0].functions] == ["Outer", "Inner"]
    (found,) = fallback_models(model, run, model.graph.outputs, {}, 1)
    np.testing.assert_array_equal(found.session.run(None, {"x": np.ones(2, np.float32)})[0], [-1, -1])


def weighted(count: int, dtype: str = "float") -> ir.Model:
    model = model_of(f"g ({dtype}[{count}] x, {dtype}[{count}] w) => ({dtype}[{count}] y) {{ y = Mul(x, w) }}")
    weight = model.graph.inputs.pop()
    assert weight.dtype is not None
    weight.const_value = ir.tensor(np.arange(count).astype(weight.dtype.numpy()), dtype=weight.dtype)
    model.graph.register_initializer(weight)
    return model


@pytest.mark.parametrize("dtype", ["float", "double", "float16", "int8", "int64", "uint32"])
def test_large_constants_stay_outside(dtype: str) -> None:
    model = weighted(2048, dtype)
    (found,) = opened(model, "y")
    assert list(found.weights) == ["w"]
    assert len(found.data) < SHARED_BYTES
    expected = found.weights["w"]
    np.testing.assert_array_equal(found.session.run(None, {"x": np.ones_like(expected)})[0], expected)
    assert not opened(weighted(8, dtype), "y")[0].weights


def test_a_constant_whose_name_is_taken_stays_inside() -> None:
    model = weighted(2048)
    same, other = np.arange(2048, dtype=np.float32), np.ones(2048, np.float32)
    assert opened(model, "y", w=same)[0].weights
    assert not opened(model, "y", w=other)[0].weights
    assert not opened(model, "y", w=same.astype(np.int32).view(np.int32))[0].weights


BRANCHES = """g (int64 rate, float[4, 6] x) => (float["a", "b", "c"] y) <float[1, 1, 1] w = {2}, int64 k = {16000}> {
    c = Equal(rate, k)
    y = If (c) <
        then_branch = t () => (float["a", "b", "c"] p) {
            axes = Constant<value_ints = [1]>()  u = Unsqueeze(x, axes)  p = Conv(u, w)
        },
        else_branch = e () => (float["a", "b", "c"] q) {
            s = Shape(x)  one = Constant<value = int64 {1}>()  d = Gather(s, one)  is = Equal(d, one)
            r = If (is) <
                then_branch = it () => (float["a", "b", "c"] v) {
                    axis = Constant<value_ints = [1]>()  v = Unsqueeze(x, axis)
                },
                else_branch = ie () => (float["a", "b"] o) { o = Identity(x) }
            >
            q = Conv(r, w)
        }
    >
}"""


def test_a_branch_that_another_size_takes_is_no_obstacle() -> None:
    """With the size that is given, ONNX Runtime would see that the branch gives Conv a matrix, and refuse the model."""
    (found,) = opened(model_of(BRANCHES), "c y")
    x = np.ones((4, 6), np.float32)
    (y,) = found.session.run(["y"], {"rate": np.array(16000), "x": x})
    np.testing.assert_array_equal(y, 2 * x[:, None])


def test_nodes_that_are_refused_together_are_cut() -> None:
    model = model_of("g (float[2] x) => (float[2] y, bfloat16[2] z) { y = Neg(x) h = Cast<to = 16>(x) z = Cos(h) }")
    with pytest.raises(UnsupportedError, match=r"node make_z \(Cos\) can run nowhere: no kernel, and ONNX Runtime"):
        opened(model, "y h z")


def test_a_run_shows_what_comes_out() -> None:
    (found,) = opened(model_of("g (float[2, 3] x) => (int64[2, n] y) { y = NonZero(x) }"), "y")
    assert observed(found, lambda _: np.ones((2, 3), np.float32)) == {"y": ("int64", (2, 6))}
    assert observed(found, lambda _: np.ones((2, 3), np.int32)) == {}, "what it refuses says nothing"


def test_what_a_loop_collects_in_no_iteration_has_its_shape() -> None:
    model = model_of(
        """g (float[2,3] x) => (float[2,3] y, float[K,2,3] z) <int64 count = {0}> {
            y, z = Loop (count, "", x) <
                body = b (int64 i, bool c, float[2,3] s) => (bool d, float[2,3] t, float[2,3] u) {
                    d = Identity(c) t = Neg(s) u = Add(t, s)
                }
            >
        }"""
    )
    (found,) = opened(model, "y z")
    outputs = found.session.run(None, {"x": np.ones((2, 3), np.float32)})
    assert [array.shape for array in outputs] == [(2, 3), (0, 2, 3)]


def test_nor_does_a_loop_in_a_loop() -> None:
    model = model_of(
        """g (float[2,3] x) => (float[2,3] y, float[K,L,2,3] z) <int64 count = {2}> {
            y, z = Loop (count, "", x) <
                body = b (int64 i, bool c, float[2,3] s) => (bool d, float[2,3] t, float[0,2,3] u) {
                    none = Constant<value_int = 0>()
                    t, u = Loop (none, "", s) <
                        body = e (int64 j, bool f, float[2,3] p) => (bool h, float[2,3] q, float[2,3] r) {
                            h = Identity(f) q = Neg(p) r = Add(q, p)
                        }
                    >
                    d = Identity(c)
                }
            >
        }"""
    )
    (found,) = opened(model, "y z")
    outputs = found.session.run(None, {"x": np.ones((2, 3), np.float32)})
    assert [array.shape for array in outputs] == [(2, 3), (2, 0, 2, 3)]


@pytest.mark.parametrize("step", ["Softplus(x)", "LeakyRelu(x)"])
def test_activations_of_float64_within_a_scan(step: str) -> None:
    def text(opset: int) -> ir.Model:
        body = f"body = b (double[3] x) => (double[3] z) {{ z = {step} }}"
        return model_of(f"g (double[2,3] xs) => (double[2,3] y) {{ y = Scan<num_scan_inputs = 1, {body}>(xs) }}", opset)

    feeds = {"xs": np.linspace(-2, 2, 6).reshape(2, 3)}
    (found,) = opened(text(20), "y")
    np.testing.assert_allclose(found.session.run(None, feeds)[0], run_onnxruntime(text(18), feeds)["y"], rtol=1e-15)


@pytest.mark.parametrize(
    "operator",
    ["Elu", "HardSigmoid<beta = 0.3>", "HardSwish", "LeakyRelu", "Mish", "Selu", "Softplus", "Softsign"]
    + ["ThresholdedRelu<alpha = 0.5>"],
)
def test_activations_of_float64_within_a_branch_run_as_in_the_opset_of_their_definition(operator: str) -> None:
    def text(opset: int) -> ir.Model:
        branch = f"branch = side () => (double[5] z) {{ z = {operator}(x) }}"
        other = "else_branch = other () => (double[5] o) { o = Identity(x) }"
        text = f"g (bool c, double[5] x) => (double[5] y) {{ y = If(c) <then_{branch}, {other}> }}"
        return model_of(text, opset)

    feeds = {"c": np.array(True), "x": np.array([-3.0, -0.5, 0.0, 0.7, 2.0])}
    (found,) = opened(text(20), "y")
    expected = run_onnxruntime(text(18), feeds)["y"]
    np.testing.assert_allclose(found.session.run(None, feeds)[0], expected, rtol=1e-15, atol=0)
