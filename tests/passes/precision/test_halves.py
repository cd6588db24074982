"""Models in fp16 and bf16 as a whole: normalizations, masks, opsets, the zoo."""

from collections import Counter

import ml_dtypes
import numpy as np
import onnx.reference
import onnx_ir as ir
import onnx_ir.passes.common
import pytest

import graphopt
from graphopt.modes import Precision as Format
from graphopt.passes import Precision
from graphopt.passes.precision.nodes import unfit
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pass_base import PassResult
from graphopt.pipeline.pipeline import Pipeline
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.halved import CLOSE, check_types, halve, listing, parse, reasons

NORMALIZATIONS = {
    "LayerNormalization(p, s, b)": (20, 8),
    "RMSNormalization(p, s)": (23, 8),
    "GroupNormalization<num_groups = 2>(p, s, b)": (21, 4),
    "InstanceNormalization(p, s, b)": (22, 4),
}


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("call", NORMALIZATIONS)
def test_normalizations_of_halves(call: str, to: str) -> None:
    """Those between products are in half, as far as operators know that type."""
    opset, extent = NORMALIZATIONS[call]
    names = ("s", "b") if "b)" in call else ("s",)
    model, result = halve(
        f"g (float[2,4,3,8] x, float[8,8] w, {', '.join(f'float[{extent}] {name}' for name in names)})"
        f" => (float[2,4,3,8] y) <float far = {{4}}> {{ m = MatMul(x, w)  p = Add(m, far)  n = {call}"
        " y = MatMul(n, w) }",
        {"w": (8, 8), **dict.fromkeys(names, (extent,))},
        to,
        opset,
        execute=to == "fp16",
    )
    assert not reasons(result)
    assert Counter(node.op_type for node in model.graph)["Cast"] == 2
    norm = next(node for node in model.graph if node.op_type.endswith("Normalization"))
    assert len({value.dtype for value in (*norm.inputs, *norm.outputs)}) == 1


def test_small_numbers_beside_large_ones_are_no_loss() -> None:
    weights = np.geomspace(1e-12, 1, 1000, dtype=np.float32)
    assert unfit(weights, ir.DataType.FLOAT16, "w") is None
    assert unfit(weights[:500], ir.DataType.FLOAT16, "w") is not None
    assert unfit(weights[:500], ir.DataType.BFLOAT16, "w") is None


def test_bfloat16_matches_the_reference() -> None:
    """ONNX Runtime has no bfloat16 kernels on CPUs; the reference evaluator has."""
    text = (
        "g (float[2,8] x, float[8,8] w, float[8] b) => (float[2,8] y)"
        "{ p = MatMul(x, w)  a = Add(p, b)  r = Relu(a)  s = Softmax(r)  y = Gemm(s, w, b) }"
    )
    weights = {"w": (8, 8), "b": (8,)}
    model, result = halve(text, weights, "bf16", execute=False)
    assert listing(model) == (
        "x.bfloat16:b = Cast(x)\np:b = MatMul(x.bfloat16, const[8,8]b)\na:b = Add(p, const[8]b)\nr:b = Relu(a)\n"
        "r.float32 = Cast(r)\ns = Softmax(r.float32)\ns.bfloat16:b = Cast(s)\n"
        "y.bfloat16:b = Gemm(s.bfloat16, const[8,8]b, const[8]b)\ny = Cast(y.bfloat16)"
    )
    assert all(value.const_value.numpy().dtype == ml_dtypes.bfloat16 for value in model.graph.initializers.values())
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(parse(text, weights), feeds)
    actual = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    require_equal(expected, {"y": actual[0]}, "bfloat16", {"float32": Tolerance(4e-2, 1e-2)})


@pytest.mark.parametrize("opset", [20, 22])
def test_bfloat16_convolutions_get_their_opset(opset: int) -> None:
    text = "g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y) { c = Conv(x, w)  y = Relu(c) }"
    model, result = halve(text, {"w": (4, 3, 3, 3)}, "bf16", opset=opset, execute=False)
    assert model.opset_imports[""] == 22
    assert any("opset 22 is the first" in note for note in result.notes) == (opset == 20)
    assert listing(model) == (
        "x.bfloat16:b = Cast(x)\nc:b = Conv(x.bfloat16, const[4,3,3,3]b)\ny.bfloat16:b = Relu(c)\ny = Cast(y.bfloat16)"
    )


def test_an_opset_is_not_raised_over_what_would_mean_something_else() -> None:
    text = (
        "g (float[1,4,8,8] x, float[4,4,3,3] w, float[2] s, float[2] b) => (float[1,4,6,6] y)"
        "{ c = Conv(x, w)  y = GroupNormalization<num_groups = 2>(c, s, b) }"
    )
    model = parse(text, {"w": (4, 4, 3, 3), "s": (2,), "b": (2,)})
    result = Precision(Format.BF16)(model)
    assert isinstance(result, PassResult)
    assert model.opset_imports[""] == 20
    assert reasons(result)["conv0"] == "Conv of opset 20 has no bfloat16; opset 22 has"
    assert not result.modified


ZOO = {"lenet-digits": 2, "mobilenetv2": 4}
"""Model and its casts: at the input, around the mean over the plane if there is one, at the output."""


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    model = graphopt.load(f"zoo:{name}").model
    Pipeline.parse("normalize,fuse").run(model)
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(model, feeds)
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
    step = Pipeline.parse("precision{to=fp16}").run(model, [Check()]).steps[0]
    assert step.modified
    check_types(model)
    products = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert {value.dtype for node in products for value in node.inputs} == {ir.DataType.FLOAT16}
    assert Counter(node.op_type for node in model.graph)["Cast"] == ZOO[name]
    assert all("GlobalAveragePool" in refusal.reason for refusal in step.refusals)
    halves = [v.const_value for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16]
    assert sum(tensor.nbytes for tensor in halves) <= weights / 2
    require_equal(expected, run_onnxruntime(model, feeds), name, CLOSE)
    assert not Precision(Format.FP16)(model).modified
