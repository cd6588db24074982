"""Inputs that are drawn are inputs that the model takes: ONNX Runtime runs every one of them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphopt.errors import ModelError
from graphopt.verify.draws import random_inputs
from graphopt.verify.oracle import run_onnxruntime


def parse(text: str, opset: int = 20) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": {opset}, "own": 1]>\n{text}')
    ShapeInferencePass()(model)
    return model


LSTM = 'LSTM<hidden_size = 3>(x, w, r, "", i)'
TAKEN = {
    "an index behind an offset": (
        "g (int64[99] i, float[7] d) => (float[99] y) <int64 two = {2}> { j = Add(i, two)  y = Gather(d, j) }",
        (-2, 4),
    ),
    "an index within a branch": (
        """g (bool c, int64[99] i, float[4] d) => (float[99] y) { y = If(c) <
            then_branch = t () => (float[99] p) { p = Gather(d, i) },
            else_branch = e () => (float[99] q) { q = Gather(d, i) }
        > }""",
        (0, 3),
    ),
    "an index that a loop carries": (
        """g (int64[99] i, float[4] d) => (int64[99] k, float["n", 99] y) <int64 m = {2}, bool c = {1}> {
            k, y = Loop(m, c, i) <body = b (int64 n, bool b0, int64[99] a) => (bool b1, int64[99] o, float[99] z)
                { b1 = Identity(b0)  o = Identity(a)  z = Gather(d, a) }>
        }""",
        (0, 3),
    ),
    "an index behind a loop": (
        """g (int64[99] i, float[4] d) => (float[99] y) <int64 m = {2}, bool c = {1}> {
            k = Loop(m, c, i) <body = b (int64 n, bool b0, int64[99] a) => (bool b1, int64[99] o)
                { b1 = Identity(b0)  o = Identity(a) }>
            y = Gather(d, k)
        }""",
        (0, 3),
    ),
    "an index within a function": (
        """g (int64[99] i, float[4] d) => (float[99] y) { y = own.Pick(d, i) }
        <domain: "own", opset_import: ["": 20]> Pick (a, b) => (c) { c = Gather(a, b) }""",
        None,
    ),
    "one of two joined": (
        "g (int64[9] i, int64[3] j, float[4] d) => (float[12] y) { k = Concat<axis = 0>(i, j)  y = Gather(d, k) }",
        (0, 3),
    ),
    "a place in two axes": (
        "g (int64[99, 2] i, float[5, 3] d) => (float[99] y) { y = GatherND(d, i) }",
        (0, 2),
    ),
    "a scattered place": (
        "g (int64[4, 1] i, float[4] u, float[9] d) => (float[9] y) { y = ScatterND(d, i, u) }",
        None,
    ),
    "one hot": (
        "g (int64[99] i) => (float[99, 4] y) <int64 n = {4}, float[2] v = {0, 1}> { y = OneHot(i, n, v) }",
        (0, 3),
    ),
    "a remainder": ("g (int64[99] n, int64[99] i) => (int64[99] y) { y = Mod(n, i) }", (1, 7)),
    "lengths to reverse": ("g (int64[99] i, float[6, 99] x) => (float[6, 99] y) { y = ReverseSequence(x, i) }", (1, 6)),
    "images of regions": (
        "g (int64[99] i, float[2, 3, 8, 8] x, float[99, 4] r) => (float[a, b, c, d] y) { y = RoiAlign(x, r, i) }",
        (0, 1),
    ),
    "what is too alike": (
        "g (int64 i, float[1, 6, 4] b, float[1, 2, 6] s, float t, float u) => (int64[n, 3] y)"
        " { y = NonMaxSuppression(b, s, i, t, u) }",
        None,
    ),
    "classes of a loss": (
        "g (int64[99] i, float[99, 5] x) => (float y) { y = NegativeLogLikelihoodLoss(x, i) }",
        (0, 4),
    ),
    "repeats": ("g (int64[2] i, float[2, 3] x) => (float[a, b] y) { y = Tile(x, i) }", None),
    "a size of ones": ("g (int64[3] i, float[2, 3] x) => (float[a, b, c] y) { y = Expand(x, i) }", None),
    "a shape": ("g (int64[3] i, float[2, 6] x) => (float[a, b, c] y) { y = Reshape(x, i) }", None),
    "parts": ("g (int64[2] i, float[2, 5] x) => (float[2, a] y, float[2, b] z) { y, z = Split<axis = 1>(x, i) }", None),
    "the best": ("g (int64[1] i, float[2, 5] x) => (float[2, a] y, int64[2, a] z) { y, z = TopK(x, i) }", None),
    "pads": ("g (int64[4] i, float[2, 5] x) => (float[a, b] y) { y = Pad(x, i) }", None),
    "bounds": (
        "g (int64[2] i, int64[2] j, float[3, 5] x) => (float[a, b] y) { y = Slice(x, i, j) }",
        None,
    ),
    "axes": ("g (int64[1] i, float[3, 5] x) => (float[a, b] y) { y = ReduceSum(x, i) }", None),
    "new axes": ("g (int64[2] i, float[3, 5] x) => (float[a, b, c, d] y) { y = Unsqueeze(x, i) }", None),
    "scales": ("g (float[4] i, float[1, 1, 3, 5] x) => (float[a, b, c, d] y) { y = Resize(x, , i) }", None),
    "a count of turns": (
        """g (int64 i, float[2] x) => (float[2] y) <bool c = {1}> {
            y = Loop(i, c, x) <body = b (int64 n, bool b0, float[2] a) => (bool b1, float[2] o)
                { b1 = Identity(b0)  o = Neg(a) }>
        }""",
        None,
    ),
    "a range": ("g (float i, float j, float k) => (float[n] y) { y = Range(i, j, k) }", None),
    "an embedding that masks a number": (
        "g (int64[99] i, float[7] d) => (float[99] y, bool[99] m) <int64 pad = {3}>"
        "{ y = Gather(d, i)  m = Equal(i, pad) }",
        (0, 6),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_onnxruntime_takes_them(name: str) -> None:
    text, bounds = TAKEN[name]
    model = parse(text)
    for seed in range(5):
        feeds = random_inputs(model, seed)
        run_onnxruntime(model, feeds)
        if bounds is not None:
            assert (feeds["i"].min(), feeds["i"].max()) == bounds


MODES = "g (int64 rate) => (bool y) <int64 a = {8000}, int64[2] b = {16000, 48000}> { p = Equal(rate, a)  y = MORE }"


def test_a_mode_is_one_that_the_model_knows() -> None:
    model = parse(MODES.replace("MORE", "Identity(p)"))
    assert random_inputs(model, 0)["rate"] == 8000
    more = MODES.replace("=> (bool y)", "=> (bool y, bool[2] q)")
    two = parse(more.replace("MORE", "Identity(p) q = Equal(rate, b)"))
    assert {int(random_inputs(two, seed)["rate"]) for seed in range(20)} == {8000, 16000, 48000}


def test_a_scalar_is_an_array() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float x, double d, int64 i) => (float y, double e, int64 j)
        { y = Sqrt(x)  e = Acosh(d)  j = Neg(i) }"""
    drawn = random_inputs(ir.from_onnx_text(text), 0)
    assert {name: (type(array), array.shape) for name, array in drawn.items()} == dict.fromkeys("xdi", (np.ndarray, ()))


@pytest.mark.parametrize("operator", ["Log", "Sqrt", "Acosh", "Asin", "Acos", "Atanh"])
def test_numbers_are_in_the_domain(operator: str) -> None:
    text = "g (float[2, 50] x) => (float[100] y) <int64[1] s = {-1}> { r = Reshape(x, s)  y = OPERATOR(r) }"
    model = parse(text.replace("OPERATOR", operator))
    assert np.isfinite(run_onnxruntime(model, random_inputs(model, 0))["y"]).all()


@pytest.mark.parametrize(("exponent", "negative"), [("2", True), ("0.5", False)])
def test_only_fractional_powers_ask_for_positive_numbers(exponent: str, negative: bool) -> None:
    model = parse(f"g (float[99] x) => (float[99] y) <float e = {{{exponent}}}> {{ y = Pow(x, e) }}")
    assert bool((random_inputs(model, 0)["x"] < 0).any()) == negative


def test_what_is_given_is_not_drawn() -> None:
    model = parse("g (seq(float[2]) s, float[2] x) => (float[2] y) { y = Neg(x) }")
    assert set(random_inputs(model, 0, {"s"})) == {"x"}
    with pytest.raises(ModelError, match="input s is no tensor, so no random one can be made; give it with --input"):
        random_inputs(model, 0)
