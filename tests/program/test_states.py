"""A stage's state: memory of its own, one writer, no reader of what was replaced; strict in JSON and in sessions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import ArtifactError, FeedError
from graphopt.graph import state
from graphopt.program import json as program_json
from graphopt.program.check import problems
from graphopt.program.program import KernelCall, NativeSegment, Place, Port, Program, Stage, State, Value
from graphopt.program.schedule import build

W, NEW = Value("w", "float32", (16,), Place.STATE), Value("w1", "float32", (16,), Place.VIEW, of="w")
X = Value("x", "float32", (16,), Place.ARENA)
UPDATE = KernelCall("update", ("w", "x"), ("w1",), in_place=((0, 0),))


def _program(*calls: KernelCall, values: tuple[Value, ...] = (), **changed: object) -> Program:
    stage = Stage(
        0,
        (X, W, NEW, Value("y", "float32", (16,), Place.ARENA, 64), *values),
        ("x",),
        ("y",),
        (NativeSegment(calls),),
        128,
        128,
        "stage_0.so",
        states=(State("w", "parameter", "w1"),),
        state_bytes=64,
        initial="state_0.safetensors",
    )
    stage = replace(stage, **changed)  # type: ignore[arg-type]
    port = Port("x", "float32", (16,)), Port("y", "float32", (16,))
    return Program((stage,), build((stage,), ["x"], 1), (port[0],), (port[1],))


def test_a_step_that_reads_and_then_replaces_its_state() -> None:
    program = _program(KernelCall("use", ("x", "w"), ("y",)), UPDATE)
    assert problems(program) == []
    assert program_json.loads(program_json.dumps(program)) == program


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        (_program(UPDATE, KernelCall("use", ("x", "w"), ("y",))), "reads 'w' after the run has replaced the state 'w'"),
        (_program(replace(UPDATE, in_place=())), "replaces the state 'w' while it reads 'w'"),
        (_program(replace(UPDATE, in_place=((1, 0),))), "replaces the state 'w' while it reads 'w'"),
        (_program(replace(UPDATE, in_place=((7, 9),))), "replaces the state 'w' while it reads 'w'"),
        (_program(UPDATE, UPDATE), "for the second time"),
        (_program(KernelCall("use", ("x",), ("w",))), "which is not said to become 'w'"),
        (
            _program(
                KernelCall("use", ("x",), ("part",)), values=(Value("part", "float32", (8,), Place.VIEW, of="w"),)
            ),
            "writes a part of the state 'w'",
        ),
        (_program(UPDATE, states=()), "its list of states and its state values are not the same"),
        (_program(UPDATE, states=(State("w", "parameter"),)), "which is not said to become 'w1'"),
        (_program(UPDATE, states=(State("w", "parameter", "y"),)), "which is not a view of all its bytes"),
        (_program(UPDATE, states=(State("w", "parameter", "nothing"),)), "which is not a view of all its bytes"),
        (_program(UPDATE, states=(State("w", "weather", "w1"),)), "unknown role 'weather'"),
        (_program(UPDATE, state_bytes=60), "has not, aligned to 64, a place of its own in 60 bytes"),
        (_program(UPDATE, initial=""), "is impossible"),
        (
            _program(
                UPDATE,
                values=(Value("v", "float32", (4,), Place.STATE),),
                states=(State("w", "parameter", "w1"), State("v", "optimizer")),
            ),
            "a place of its own",
        ),
        (_program(UPDATE, initial="../state"), "is not allowed"),
    ],
)
def test_state_that_cannot_be_kept_is_refused(program: Program, reason: str) -> None:
    assert any(reason in problem for problem in problems(program)), problems(program)
    with pytest.raises(ArtifactError):
        program_json.loads(program_json.dumps(program))


@pytest.fixture(scope="module")
def counter() -> graphopt.Artifact:
    model = ir.from_onnx_text("""<ir_version: 11, opset_import: ["": 20]>
        g (float[2] x) => (float[2] y, float[2] s1) <float[2] s = {0, 0}> { s1 = Add(s, x)  y = Neg(x) }""")
    value = model.graph.initializers["s"]
    state.mark(value, state.Role.COUNTER)
    value.metadata_props[state.NEXT] = "s1"
    return graphopt.compile(model, costs="roofline", verify="off")


def test_sessions_keep_state_of_their_own(counter: graphopt.Artifact) -> None:
    one, other = counter.session(), counter.session()
    x = np.array([1, 2], np.float32)
    for _ in range(3):
        one.run({"x": x})
    np.testing.assert_array_equal(one.state()["s"], [3, 6])
    np.testing.assert_array_equal(other.state()["s"], [0, 0])
    other.load_state(one.state())
    other.run({"x": x})
    np.testing.assert_array_equal(other.state()["s"], [4, 8])
    np.testing.assert_array_equal(one.state()["s"], [3, 6])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"t": np.zeros(2, np.float32)}, "no state 't'; it has s"),
        ({"s": np.zeros(3, np.float32)}, r"state 's' is float32 \(2,\), not float32 \(3,\)"),
        ({"s": np.zeros(2)}, r"state 's' is float32 \(2,\), not float64 \(2,\)"),
    ],
)
def test_state_of_another_kind_is_refused_and_nothing_is_set(
    counter: graphopt.Artifact, given: dict[str, np.ndarray], message: str
) -> None:
    session = counter.session()
    with pytest.raises(FeedError, match=message):
        session.load_state({"s": np.ones(2, np.float32), **given} if "t" in given else given)
    np.testing.assert_array_equal(session.state()["s"], [0, 0])


def test_state_survives_a_file(counter: graphopt.Artifact, tmp_path: object) -> None:
    path = counter.save(f"{tmp_path}/counter.gopt")
    np.testing.assert_array_equal(graphopt.open(path).session().state()["s"], [0, 0])
