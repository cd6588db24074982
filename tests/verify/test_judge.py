"""What is right is what ONNX Runtime makes of the model as it was given, within what rounding does to it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import FeedError, VerificationError
from graphopt.frontend import load
from graphopt.verify.judge import Judge, judge
from graphopt.verify.oracle import UNSTABLE
from graphopt.verify.sensitivity import CAPS, allowances, nudge, spread


def parse(text: str, opset: int = 20) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}')


STEPS = """g (float[64, 64] x) => (float[64, 64] y) <float scale = {0.037}, uint8 zero = {128}> {
    q = QuantizeLinear(x, scale, zero)  d = DequantizeLinear(q, scale, zero)  y = Relu(d)
}"""
SMOOTH = "g (float[64, 64] x) => (float[64, 64] y) { y = Relu(x) }"


def judged(text: str, x: np.ndarray) -> Judge:
    model = parse(text)
    return judge(model, model, given={"x": x})


def edges() -> np.ndarray:
    """Numbers of which many lie where QuantizeLinear rounds either way."""
    generator = np.random.default_rng(0)
    return ((generator.integers(-40, 40, (64, 64)) + 0.5) * np.float32(0.037)).astype(np.float32)


def test_a_step_is_within_the_sensitivity_of_a_model_of_steps() -> None:
    verdict = judged(STEPS, edges())
    actual = {"y": np.maximum(verdict.expected["y"] - np.float32(0.037), 0)}
    verdict.require(actual, "a step")
    assert verdict.notes == [
        "output y was judged by the model's own sensitivity: under rounding alone ONNX Runtime differs from itself by "
        f"up to 0.037, so {verdict.allowed['y']:.3g} was allowed"
    ]
    assert verdict.allowed["y"] <= CAPS["float32"] * verdict.expected["y"].max()


def test_a_mistake_is_not() -> None:
    verdict = judged(STEPS, edges())
    with pytest.raises(VerificationError, match="wrong: output y at"):
        verdict.require({"y": verdict.expected["y"] * np.float32(0.9)}, "wrong")
    assert not verdict.notes
    smooth = judged(SMOOTH, edges())
    with pytest.raises(VerificationError, match="a step: output y at"):
        smooth.require({"y": np.maximum(smooth.expected["y"] - np.float32(0.037), 0)}, "a step")


@pytest.mark.parametrize("wrong", [np.full((64, 64), np.nan, np.float32), np.zeros((64, 63), np.float32)])
def test_structure_is_never_excused(wrong: np.ndarray) -> None:
    verdict = judged(STEPS, edges())
    assert verdict.mismatches({"y": wrong})
    assert verdict.mismatches({})[0].message == "output y is missing"
    assert verdict.mismatches({"y": verdict.expected["y"].astype(np.float64)})


CHAOS = """g (float[64, 64] x) => (float[64, 64] y) <float large = {1e7}> {
    a = Mul(x, large)  b = Floor(a)  y = Sub(a, b)
}"""


def test_an_output_without_a_stable_value_proves_nothing() -> None:
    verdict = judged(CHAOS, np.random.default_rng(0).standard_normal((64, 64), np.float32))
    other = {"y": 1 - verdict.expected["y"]}
    assert [each.kind for each in verdict.mismatches(other)] == [UNSTABLE]
    verdict.require(other, "here")
    assert verdict.lost == {"y"}
    (note,) = verdict.notes
    assert note.startswith("output y has no stable value: under rounding alone ONNX Runtime moves it by ")
    verdict.require(verdict.expected, "here")
    assert verdict.lost == set()


@pytest.mark.parametrize("wrong", [np.zeros((64, 64)), np.zeros(4096, np.float32), None])
def test_but_its_type_and_rank_are_stable(wrong: np.ndarray | None) -> None:
    verdict = judged(CHAOS, np.random.default_rng(0).standard_normal((64, 64), np.float32))
    with pytest.raises(VerificationError, match="output y"):
        verdict.require({} if wrong is None else {"y": wrong}, "here")
    assert verdict.lost == set()


def test_the_spread_of_eight_bits_is_of_steps() -> None:
    constants = "<float s = {0.037}, uint8 z = {128}>"
    model = parse(f"g (float[64, 64] x) => (uint8[64, 64] q) {constants} {{ q = QuantizeLinear(x, s, z) }}")
    verdict = judge(model, model, given={"x": edges()})
    spreads = spread(model, verdict.feeds, verdict.expected)
    assert spreads == {"q": 1.0}
    assert allowances(spreads, verdict.expected) == {"q": 2.0}


def test_whole_numbers_and_special_values_are_not_nudged() -> None:
    special = np.array([0, -0.0, 3, np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(nudge(special, np.random.default_rng(0)), special)
    moved = nudge(np.full(100, 0.3, np.float16), np.random.default_rng(0))
    assert set(np.unique(moved)) == {np.float16(0.3) + np.float16(d) * 2**-12 for d in (-1, 1)}


def test_the_reference_is_the_file(tmp_path: Path) -> None:
    """Even one whose conversion would change the numbers: here the loaded model is another one."""
    onnx.save(ir.to_proto(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")), tmp_path / "m.onnx")
    loaded = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    verdict = judge(tmp_path / "m.onnx", loaded)
    np.testing.assert_array_equal(verdict.expected["y"], -verdict.feeds["x"])


def test_a_model_that_onnxruntime_refuses_is_judged_as_loaded() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }", opset=99)
    verdict = judge(model, parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    (note,) = verdict.notes
    assert "so the reference is the model as loaded" in note
    np.testing.assert_array_equal(verdict.expected["y"], -verdict.feeds["x"])


def test_an_ir_version_of_the_future_is_no_obstacle() -> None:
    proto = ir.to_proto(parse("g (float[2] x) => (float[2] y) { y = Neg(x) }"))
    proto.ir_version = 14
    verdict = judge(proto, load.load(proto).model)
    assert not verdict.notes
    assert proto.ir_version == 14


def test_inputs_that_do_not_fit() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    with pytest.raises(FeedError, match="--input names 'z', which is no input; the inputs are x"):
        judge(model, model, given={"z": np.zeros(2, np.float32)})
    with pytest.raises(FeedError, match=r"--input x is float64 \(3,\), and the model is compiled for float32 \(2,\)"):
        judge(model, model, given={"x": np.zeros(3)})


def test_inputs_that_the_model_cannot_take() -> None:
    model = parse("g (int64[1] i, float[3] d) => (float[1] y) { y = Gather(d, i) }")
    with pytest.raises(VerificationError, match="out of data bounds.*; give inputs that the model takes with --input"):
        judge(model, model, given={"i": np.array([9])})


@pytest.mark.parametrize(
    "text",
    [
        "g (int64[2, 6] m) => (float[a, b, c] y) <int64 one = {1}, int64[2] n = {8, 2}> {"
        " w = ConstantOfShape(n)  s = CumSum(m, one)  p = Mul(s, m)  y = Gather(w, p) }",
        "g (int64[3] i, int64[1] p) => (float[a, b] y) <int64 two = {2}, int64[2] n = {8, 3}> {"
        " w = ConstantOfShape(n)  j = Mul(i, two)  k = Add(j, p)  y = Gather(w, k) }",
        "g (float[1, 8, 1] x, int64 a) => (float[b, c, d] y) { y = DFT(x, , a) }",
        "g (float[1, 4, 9] x, int64[2] i, int64[2] b) => (float[p, q, r, s] y) { y = Col2Im(x, i, b) }",
        "g (float[3, 2, 3] t, int64[4] s) => (float[a, b, c, d] y) { y = AffineGrid(t, s) }",
    ],
    ids=["positions of tokens", "every second", "an axis", "columns", "a grid"],
)
def test_inputs_that_the_model_does_not_take_are_drawn_smaller(text: str) -> None:
    model = parse(text)
    verdict = judge(model, model)
    assert verdict.expected["y"].size
    told = ["the model does not take the integers that were drawn, so it was given zeros and ones"]
    assert verdict.notes == ([] if "Col2Im" in text or "AffineGrid" in text else told)
