"""Programs with an If whose condition only the run knows: both ways, against ONNX Runtime on the model as given."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

import graphopt
from graphopt.compiler import compile_model
from graphopt.errors import GraphoptError, UnsupportedError
from graphopt.program.program import FallbackSegment, Place, SelectSegment

MODELS = {
    # What both sides use, what is used outside too, and a side that is only a captured value or a constant.
    "shared": """
        m (float[4, 64] x, bool c, float[4, 64] z) => (float[4, 64] y, float[4, 64] w, float[2] k)
        <float[2] one = {1, 2}, float[2] two = {3, 4}> {
            p = Relu(x)  before = Exp(z)
            y0, w, k = If(c) <
                then_branch = t () => (a, b, d) { q = Sin(p)  a = Mul(q, before)  b = Identity(x)  d = Identity(one) },
                else_branch = e () => (a, b, d) { a = Neg(z)  b = Add(p, z)  d = Identity(two) }>
            y = Add(y0, x)
        }""",
    # A computed condition of shape [1], the same condition twice, once below itself.
    "computed": """
        m (float[1] s, float[3, 70] x) => (float[3, 70] y, float[3, 70] z) <float[1] half = {0.5}> {
            c = Greater(s, half)
            y = If(c) <
                then_branch = t () => (a) {
                    i = If(c) <then_branch = tt () => (aa) { aa = Tanh(x) },
                                else_branch = te () => (ab) { ab = Exp(x) }>
                    a = Mul(i, s) },
                else_branch = e () => (b) { b = Sub(x, s) }>
            n = Not(c)
            z = If(n) <then_branch = t2 () => (a2) { a2 = Sqrt(x) }, else_branch = e2 () => (b2) { b2 = Abs(y) }>
        }""",
    # Conditions inside branches, three deep; the innermost depends on what a branch computes.
    "nested": """
        m (float[2, 40] x, bool c, bool d) => (float[2, 40] y) <float zero = {0}> {
            y = If(c) <
                then_branch = t () => (a) {
                    r = Relu(x)
                    a = If(d) <
                        then_branch = tt () => (aa) {
                            s = ReduceSum<keepdims = 0>(x)  g = Greater(s, zero)
                            aa = If(g) <then_branch = t3 () => (a3) { a3 = Mul(r, s) },
                                        else_branch = e3 () => (b3) { b3 = Sub(r, s) }> },
                        else_branch = te () => (ab) { ab = Identity(r) }> },
                else_branch = e () => (b) { b = If(d) <
                        then_branch = et () => (ba) { ba = Identity(x) },
                        else_branch = ee () => (bb) { bb = Cos(x) }> }>
        }""",
    # Integers that would divide by zero, and indices that would be out of range, on the other side's data.
    "guarded operands": """
        m (float[5, 8] x, int64[3] i, int32[3] n, int32[3] d, bool[1] c) => (float[3, 8] y, int32[3] q) {
            y, q = If(c) <
                then_branch = t () => (a, b) { a = Gather(x, i)  b = Div(n, d) },
                else_branch = e () => (a2, b2) { f = Cast<to = 1>(i)  axes = Constant<value_ints = [1]>()
                    g = Unsqueeze(f, axes)  eight = Constant<value_ints = [3, 8]>()
                    a2 = Expand(g, eight)  b2 = Add(n, d) }>
        }""",
    # One side stays: it has an operator whose result has as many elements as the data asks for.
    "half": """
        m (float[6, 9] x, bool c) => (float[6, 9] y, float[6, 9] z) {
            y0 = If(c) <
                then_branch = t () => (a) { e = Exp(x)  a = Tanh(e) },
                else_branch = e () => (b) { n = NonZero(x)  s = Shape<start = 1>(n)  f = Cast<to = 1>(s)
                    w = Constant<value_ints = [6, 9]>()  b = Expand(f, w) }>
            y = Neg(y0)  z = Add(y0, x)
        }""",
    # A large constant that is chosen, and that ONNX Runtime reads for a node of its own.
    "constant of both": """
        m (float[16, 32] x, bool c, bool[16] rows) => (float[16, 32] y, float[N, 32] z) <float[16, 32] w = {WEIGHTS}> {
            y = If(c) <then_branch = t () => (a) { a = Identity(w) }, else_branch = e () => (b) { b = Exp(x) }>
            z = Compress<axis = 0>(w, rows)
        }""".replace("WEIGHTS", ", ".join(map(str, range(512)))),
    # A condition that is chosen itself, twice; integers and bools are chosen like everything else.
    "chosen condition": """
        m (float[9] x, int32[9] k, bool c, bool d) => (float[9] y, int32[9] j, bool[9] b) <float zero = {0}> {
            e = If(c) <then_branch = t () => (ta) { ta = Not(d) }, else_branch = f () => (fa) { fa = And(c, d) }>
            y, j, b = If(e) <
                then_branch = t2 () => (p, q, r) { p = Sin(x)  q = Neg(k)  r = Less(x, zero) },
                else_branch = e2 () => (p2, q2, r2) { p2 = Neg(x)  q2 = Abs(k)  r2 = IsNaN(x) }>
        }""",
    # Large outputs, which a session writes where they stay.
    "large": """
        m (float[64, 128] x, bool c) => (float[64, 128] y, float[64, 128] z) {
            y, z = If(c) <then_branch = t () => (a, b) { a = Sin(x)  b = Identity(x) },
                          else_branch = e () => (a2, b2) { a2 = Cos(x)  b2 = Neg(x) }>
        }""",
}
NATIVE = [name for name in MODELS if name not in ("half", "constant of both")]


def model_of(name: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{MODELS[name]}')


def feeds_of(model: onnx.ModelProto, seed: int) -> list[dict[str, Any]]:
    """Every combination of conditions on numbers with NaN, infinities and denormals among them."""
    random = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    flags = []
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if dtype == np.bool_:
            flags.append((value.name, shape))
        elif dtype == np.float32:
            feeds[value.name] = array = random.standard_normal(shape).astype(np.float32)
            if array.size > 8:
                array.reshape(-1)[:5] = np.nan, np.inf, -np.inf, 1e-40, -0.0
        else:
            feeds[value.name] = random.integers(1, 5, shape, dtype)
    return [
        feeds | {name: np.full(shape, flag) for (name, shape), flag in zip(flags, chosen, strict=True)}
        for chosen in itertools.product([True, False], repeat=len(flags))
    ]


def agree(session: Any, model: onnx.ModelProto) -> None:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    reference = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for seed in range(3):
        for feeds in feeds_of(model, seed):
            for name, expected in zip((o.name for o in model.graph.output), reference.run(None, feeds), strict=True):
                np.testing.assert_allclose(session.run(feeds)[name], expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("name", MODELS)
def test_both_ways(name: str, tmp_path: Path) -> None:
    model = model_of(name)
    made = compile_model(model, verify="each")
    assert bool(made.fallbacks) == (name not in NATIVE)
    made.artifact.save(tmp_path / "m.gopt")
    session = graphopt.open(tmp_path / "m.gopt").session(threads=1)
    agree(session, model)
    feeds = feeds_of(model, 0)
    touched = session.measure_arena(feeds[0])
    assert all(high <= stage.arena_bytes for high, stage in zip(touched, made.artifact.program.stages, strict=True))


def test_operands_of_the_other_side_do_no_harm() -> None:
    """Indices and divisors that only the branch that is not taken would choke on."""
    model = model_of("guarded operands")
    made = compile_model(model, verify="each")
    feeds = feeds_of(model, 0)[0] | {"i": np.array([-9, 7, 5]), "d": np.zeros(3, np.int32), "c": np.array([False])}
    result = made.artifact.session().run(feeds)
    np.testing.assert_array_equal(result["y"][:, 0], np.array([-9, 7, 5], np.float32))
    np.testing.assert_array_equal(result["q"], feeds["n"])
    compile_model(model, verify="each", inputs=feeds)


def test_a_side_that_is_not_chosen_takes_no_time() -> None:
    model = model_of("shared")
    session = compile_model(model).artifact.session(threads=1)
    for feeds in feeds_of(model, 0):
        called = {node for call in session.profile(feeds) if call.seconds for node in call.origin}
        traced = {node for nodes, _ in session.trace(feeds) for node in nodes}
        assert called == traced
        assert ({"q", "a", "before"} <= called, "a_1" in called) == (bool(feeds["c"]), not feeds["c"])
        assert "p" in called


def test_sides_lie_where_their_output_does() -> None:
    stage = compile_model(model_of("large")).artifact.program.stages[0]
    values = {value.name: value for value in stage.values}
    (select,) = [segment for segment in stage.segments if isinstance(segment, SelectSegment)]
    assert select.outputs == ("y", "z")
    assert [values[name].of for name in (select.when_true[0], *select.when_false)] == ["y", "y", "z"]
    assert values[select.when_true[1]].place is Place.ARENA
    assert stage.arena_bytes < 4 * 64 * 128 * 4


def test_a_side_in_onnx_runtime_is_run_for_that_side_only() -> None:
    model = model_of("half")
    made = compile_model(model)
    fallback = [s for s in made.artifact.program.stages[0].segments if isinstance(s, FallbackSegment)]
    assert [segment.guard for segment in fallback] == [(("c", False),)]
    with pytest.raises(UnsupportedError, match="y0"):
        compile_model(model, fallback=False)


@pytest.mark.parametrize("ranks", [2, 3])
def test_guards_cross_ranks(ranks: int) -> None:
    for name in ("shared", "computed", "nested"):
        model = model_of(name)
        made = compile_model(model, ranks=ranks)
        assert len(made.artifact.program.stages) == ranks
        agree(made.artifact.session(threads=1), model)


def test_a_branch_that_the_sizes_do_not_fit_fails_only_if_it_is_taken() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        m (float[2, 3] x, float[3, 4] w, float[5, 4] v, bool c) => (float[2, 4] y) {
            y = If(c) <then_branch = t () => (a) { a = MatMul(x, w) }, else_branch = e () => (b) { b = MatMul(x, v) }>
        }""")
    made = compile_model(model)
    session = made.artifact.session()
    feeds: dict[str, Any] = {"x": np.ones((2, 3), "f"), "w": np.ones((3, 4), "f"), "v": np.ones((5, 4), "f")}
    np.testing.assert_array_equal(session.run(feeds | {"c": np.array(True)})["y"], np.full((2, 4), 3))
    with pytest.raises(GraphoptError, match="fallback"):
        session.run(feeds | {"c": np.array(False)})
    np.testing.assert_array_equal(session.run(feeds | {"c": np.array(True)})["y"], np.full((2, 4), 3))
