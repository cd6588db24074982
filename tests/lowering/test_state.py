"""State is replaced in place where a kernel allows it and after its readers, and copied where not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

import graphopt
from graphopt.artifact import Artifact
from graphopt.errors import UnsupportedError
from graphopt.graph import state
from graphopt.program.check import problems
from graphopt.program.program import NativeSegment, Place
from graphopt.program.views import located

HEAD = '<ir_version: 11, opset_import: ["": 20]>'


def _model(text: str, states: Mapping[str, str], update: tuple[str, ...] = ()) -> ir.Model:
    """A model whose initializers `states` become the outputs they map to; nodes that give `update` are the update."""
    model = ir.from_onnx_text(f"{HEAD} {text}")
    for name, becomes in states.items():
        value = model.graph.initializers[name]
        state.mark(value, state.Role.PARAMETER)
        if becomes:
            value.metadata_props[state.NEXT] = becomes
    for node in model.graph:
        if node.outputs[0].name in update:
            node.metadata_props[state.PHASE] = state.Phase.UPDATE
    return model


def _agrees(model: ir.Model, runs: int = 3, target: str = "llvm") -> Artifact:
    """Compile the model; several runs give the results of ONNX Runtime, which is given the state of the run before."""
    artifact = graphopt.compile(model, target=target, costs="roofline", verify="ends")
    assert problems(artifact.program) == []
    reference = onnxruntime.InferenceSession(ir.to_proto(state.exposed(model)).SerializeToString())
    names = [output.name for output in reference.get_outputs()]
    session, kept = artifact.session(), artifact.session().state()
    draw = np.random.default_rng(0)
    for _ in range(runs):
        feeds = {port.name: draw.normal(size=port.shape).astype(port.dtype) for port in artifact.program.inputs}
        expected = dict(zip(names, reference.run(None, {**feeds, **kept}), strict=True))
        actual = session.run(feeds)
        kept = {name: expected[new] for name, new in state.successors(model.graph)} | {
            name: array for name, array in kept.items() if name not in dict(state.successors(model.graph))
        }
        for name, array in actual.items():
            np.testing.assert_allclose(array, expected[name], rtol=1e-5, atol=1e-5)
        for name, array in session.state().items():
            np.testing.assert_allclose(array, kept[name], rtol=1e-5, atol=1e-5)
    return artifact


def _copies(artifact: Artifact) -> int:
    segments = [segment for segment in artifact.program.stages[0].segments if isinstance(segment, NativeSegment)]
    return sum(call.symbol.startswith("copy") for segment in segments for call in segment.calls)


STEP = """g (float[4, 3] x, float lr) => (float[4, 2] y, float[3, 2] w1, float[3, 2] m1, int64 c1)
    <float[3, 2] w = {1, 2, 3, 4, 5, 6}, float[3, 2] m = {0, 0, 0, 0, 0, 0},
     int64 c = {0}, int64 one = {1}, float mu = {0.9}>
    { y = MatMul(x, w)  t = Transpose<perm = [1, 0]>(x)  g = MatMul(t, y)  k = Mul(m, mu)  m1 = Add(k, g)
      d = Mul(m1, lr)  w1 = Sub(w, d)  z = MatMul(x, w)  c1 = Add(c, one) }"""


def test_a_step_of_momentum_replaces_its_state_in_place() -> None:
    model = _model(STEP, {"w": "w1", "m": "m1", "c": "c1"}, ("k", "m1", "d", "w1", "c1"))
    artifact = _agrees(model)
    assert _copies(artifact) == 0
    stage = artifact.program.stages[0]
    values = {value.name: value for value in stage.values}
    for each in stage.states:
        location = located(values[each.becomes], values)
        assert location is not None
        assert location[0].name == each.value
        assert values[each.value].place is Place.STATE
    assert [port.name for port in artifact.program.outputs] == ["y"]


@pytest.mark.usefixtures("opencl")
def test_a_device_keeps_the_state_in_its_own_memory() -> None:
    model = _model(STEP, {"w": "w1", "m": "m1", "c": "c1"}, ("k", "m1", "d", "w1", "c1"))
    artifact = _agrees(model, target="opencl")
    assert _copies(artifact) == 0
    session = artifact.session()
    assert session.device is not None
    given = {"w": np.full((3, 2), 7, np.float32), "c": np.array(5)}
    session.load_state(given)
    assert {name: session.state()[name].tolist() for name in given} == {"w": [[7, 7]] * 3, "c": 5}
    assert session.device_bytes >= artifact.program.stages[0].state_bytes


def test_a_kernel_that_computes_the_gradient_does_not_write_over_the_state() -> None:
    model = _model(STEP, {"w": "w1", "m": "m1", "c": "c1"})  # nothing says where the update begins
    assert _copies(_agrees(model)) == 1


def test_the_old_value_is_read_before_it_is_replaced() -> None:
    """The update stands first in the graph, and two readers after it."""
    text = """g (float[3, 3] x) => (float[3, 3] y, float[3, 3] z, float[3, 3] w1)
        <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
        { w1 = Mul(w, x)  y = MatMul(x, w)  r = MatMul(w1, x)  z = MatMul(y, w) }"""
    assert _copies(_agrees(_model(text, {"w": "w1"}, ("w1",)))) == 0


def test_a_reader_that_needs_the_new_value_too_gets_the_old_one() -> None:
    text = """g (float[3, 3] x) => (float[3, 3] y, float[3, 3] w1) <float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9}>
        { w1 = Add(w, x)  t = Transpose<perm = [1, 0]>(w1)  y = Mul(t, w) }"""
    assert _copies(_agrees(_model(text, {"w": "w1"}, ("w1",)))) == 1


@pytest.mark.parametrize(
    ("body", "copies"),
    [
        ("w1 = Transpose<perm = [1, 0]>(w)", 1),
        ("w1 = Identity(v)", 2),  # what it was at the beginning, for the other may change too
        ("s = Softmax<axis = 0>(w)  w1 = Add(s, x)", 1),
        ("r = ReduceSum<keepdims = 1>(w)  w1 = Sub(w, r)", 0),  # the sum is a kernel of its own, before
        ("w1 = Identity(w)", 0),
        ("w1 = Identity(x)", 1),
    ],
    ids=["transposed", "another-state", "softmax", "its-own-sum", "itself", "an-input"],
)
def test_what_no_kernel_writes_in_place_is_copied(body: str, copies: int) -> None:
    text = f"""g (float[3, 3] x) => (float[3, 3] y, float[3, 3] w1)
        <float[3, 3] w = {{1, 2, 3, 4, 5, 6, 7, 8, 9}}, float[3, 3] v = {{9, 8, 7, 6, 5, 4, 3, 2, 1}}>
        {{ {body}  y = MatMul(x, w) }}"""
    assert _copies(_agrees(_model(text, {"w": "w1", "v": ""}))) == copies


def test_two_states_change_places() -> None:
    text = """g (float[4] x) => (float[4] y, float[4] a1, float[4] b1)
        <float[4] a = {1, 2, 3, 4}, float[4] b = {5, 6, 7, 8}>
        { y = Add(x, a)  a1 = Identity(b)  b1 = Identity(a) }"""
    assert _copies(_agrees(_model(text, {"a": "a1", "b": "b1"}))) == 4


def test_a_state_that_is_a_program_output_too() -> None:
    text = """g (float[4] x) => (float[4] y, float[4] a1) <float[4] a = {1, 2, 3, 4}>
        { a1 = Add(a, x)  y = Identity(a1) }"""
    assert _copies(_agrees(_model(text, {"a": "a1"}, ("a1",)))) == 0


def test_an_update_under_a_condition_replaces_the_state_in_place() -> None:
    text = """g (float[4] x, bool apply) => (float[4] y, float[4] a1) <float[4] a = {1, 2, 3, 4}>
        { y = Mul(x, a)
          a1 = If(apply) <then_branch = t () => (float[4] u) { u = Add(a, x) },
                          else_branch = e () => (float[4] v) { v = Identity(a) }> }"""
    model = _model(text, {"a": "a1"})
    artifact = graphopt.compile(model, costs="roofline", verify="ends")
    session = artifact.session()
    x = np.arange(4, dtype=np.float32)
    for apply, expected in ((False, [1, 2, 3, 4]), (True, [1, 3, 5, 7]), (False, [1, 3, 5, 7]), (True, [1, 4, 7, 10])):
        session.run({"x": x, "apply": np.array(apply)})
        np.testing.assert_array_equal(session.state()["a"], expected)
    assert _copies(artifact) == 0


@pytest.mark.parametrize("dtype", ["float16", "float", "double", "int32", "int64", "uint8", "bool"])
def test_states_of_every_type(dtype: str) -> None:
    operator = "Or" if dtype == "bool" else "Add"
    text = f"""g ({dtype}[2, 3] x) => ({dtype}[2, 3] y, {dtype}[2, 3] a1) <{dtype}[2, 3] a = {{1, 0, 1, 0, 1, 1}}>
        {{ y = {operator}(x, a)  a1 = Identity(y) }}"""
    model = _model(text, {"a": "a1"})
    artifact = graphopt.compile(model, costs="roofline", verify="ends")
    session = artifact.session()
    (port,) = artifact.program.inputs
    x = np.ones((2, 3), port.dtype)
    before = session.state()["a"]
    output = session.run({"x": x})["y"]
    np.testing.assert_array_equal(session.state()["a"], output)
    assert (output != before).any()


@pytest.mark.parametrize(
    ("option", "message"), [("ranks", "--ranks 2 would divide"), ("micro_batches", "the pass micro")]
)
def test_a_run_that_replaces_state_is_not_divided(option: str, message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        graphopt.compile(_model(STEP, {"w": "w1", "m": "m1", "c": "c1"}), costs="roofline", **{option: 2})
