"""before -> after: parameters in float32 with 16-bit copies, or in 16 bits, and a loss that is scaled."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph.state import GRADIENT, LOSS, NEXT, Role, mark, role, states
from graphopt.passes import MixedPrecision
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pass_base import PassResult
from graphopt.pipeline.pipeline import Event, Pipeline
from tests.helpers.steps import Trainer
from tests.helpers.text_models import listing, parse

WEIGHTS = {"v": (3, 8), "w": (8, 2), "s": (2,)}


def classifier() -> ir.Model:
    model = parse(
        """g (float[4,3] x, float[3,8] v, float[8,2] w, float[2] s, int64[4] labels) => (float loss) {
        p = MatMul(x, v)  r = Relu(p)  z = MatMul(r, w)  e = Exp(s)  y = Mul(z, e)
        loss = SoftmaxCrossEntropyLoss(y, labels) }""",
        WEIGHTS,
    )
    for name in WEIGHTS:
        mark(model.graph.initializers[name], Role.PARAMETER)
    model.graph.metadata_props[LOSS] = "loss"
    return model


def mixed(options: str) -> tuple[ir.Model, PassResult]:
    model = classifier()
    (each,) = Pipeline.parse(f"mixed-precision{{{options}}}").passes
    result = each(model)
    assert result.modified
    Check()(Event(1, "mixed-precision", model, None))
    assert isinstance(result, PassResult)
    return model, result


def test_master_weights() -> None:
    model, _ = mixed("to=fp16")
    assert listing(model) == "\n".join((
        "x.float16[4,3] = Cast(x) {to=10}",
        "v.float16[3,8] = Cast(const[3,8]) {to=10}",
        "p[4,8] = MatMul(x.float16, v.float16)",
        "r[4,8] = Relu(p)",
        "w.float16[8,2] = Cast(const[8,2]) {to=10}",
        "z[4,2] = MatMul(r, w.float16)",
        "e[2] = Exp(const[2])",
        "z.float32[4,2] = Cast(z) {to=1}",
        "y[4,2] = Mul(z.float32, e)",
        "loss[] = SoftmaxCrossEntropyLoss(y, labels)",
        "loss.scaled[] = Mul(loss, const[])",
    ))  # fmt: skip
    assert [value.name for value in model.graph.outputs] == ["loss", "loss.scaled"]
    assert model.graph.metadata_props[LOSS] == "loss.scaled"
    assert {value.dtype for value in states(model.graph) if role(value) is Role.PARAMETER} == {ir.DataType.FLOAT}


@pytest.mark.parametrize(("to", "kind"), [("fp16", ir.DataType.FLOAT16), ("bf16", ir.DataType.BFLOAT16)])
def test_parameters_of_16_bits(to: str, kind: ir.DataType) -> None:
    before = {name: classifier().graph.initializers[name].const_value.numpy() for name in WEIGHTS}
    model, result = mixed(f"to={to},master=false")
    found = {str(value.name): value for value in states(model.graph) if role(value) is Role.PARAMETER}
    assert {name: value.dtype for name, value in found.items()} == {"v": kind, "w": kind, "s": ir.DataType.FLOAT}
    for name, value in found.items():
        np.testing.assert_array_equal(value.const_value.numpy(), before[name].astype(value.dtype.numpy()))
    assert any(refusal.node == "s" and "Exp" in refusal.reason for refusal in result.refusals)
    assert sum(node.op_type == "Cast" for node in model.graph) == 2, "of the input and before the product with e"


def test_a_parameter_beyond_the_range_stays() -> None:
    model = classifier()
    model.graph.initializers["w"].const_value = ir.tensor(np.full((8, 2), 1e5, np.float32), name="w")
    result = Pipeline.parse("mixed-precision{to=fp16,master=false}").run(model).steps[0]
    assert model.graph.initializers["w"].dtype == ir.DataType.FLOAT
    assert any("beyond the largest float16" in refusal.reason for refusal in result.refusals)


@pytest.mark.parametrize(
    ("options", "scale"),
    [("to=fp16", 65536), ("to=fp16,loss-scale=128", 128), ("to=bf16,loss-scale=dynamic", 65536), ("to=bf16", None)],
)
def test_the_loss_scale(options: str, scale: float | None) -> None:
    model, _ = mixed(options)
    scales = [output for output in model.graph.outputs if output.name == "loss.scaled"]
    assert len(scales) == (scale is not None)
    assert any(role(value) is Role.COUNTER for value in states(model.graph)) == (scale == 65536)
    if scale is not None and "bf16" not in options:
        outputs = Trainer(model).step(x=np.ones((4, 3), np.float32), labels=np.zeros(4, np.int64))
        assert outputs["loss.scaled"] == outputs["loss"] * scale


def test_a_second_run_changes_nothing() -> None:
    for options in ("to=fp16", "to=fp16,master=false", "to=bf16,loss-scale=2"):
        model, _ = mixed(options)
        before = listing(model)
        (again,) = Pipeline.parse(f"mixed-precision{{{options}}}").run(model).steps
        assert not again.modified
        assert listing(model) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("to=tf32", "tf32 needs no casts"),
        ("to=fp16,loss-scale=high", "the loss scale must be dynamic, off or a number above 0, not high"),
        ("to=fp16,loss-scale=0", "a number above 0, not 0"),
        ("to=fp16,loss-scale=inf", "a number above 0, not inf"),
    ],
)
def test_options_that_mean_nothing(options: str, sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        Pipeline.parse(f"mixed-precision{{{options}}}")


def test_running_statistics_that_a_step_replaces_already_do_not_matter() -> None:
    model = classifier()
    mark(model.graph.initializers["s"], Role.STATISTIC)
    model.graph.initializers["s"].metadata_props[NEXT] = "loss"
    assert MixedPrecision.from_options({"to": "fp16"})(model).modified


def test_its_place_in_the_pipeline() -> None:
    model = classifier()
    model.graph.initializers["w"].metadata_props[GRADIENT] = "w.gradient"
    with pytest.raises(ModelError, match="run mixed-precision before differentiate"):
        MixedPrecision.from_options({"to": "fp16"})(model)
    model = classifier()
    del model.graph.metadata_props[LOSS]
    with pytest.raises(ModelError, match="run loss before mixed-precision"):
        MixedPrecision.from_options({"to": "fp16"})(model)
    assert not MixedPrecision()(classifier()).modified
