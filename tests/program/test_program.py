"""The Program as JSON, and what must hold of one."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from graphopt.errors import ArtifactError
from graphopt.program import json as program_json
from graphopt.program import schedule
from graphopt.program.check import file_name_problem, problems
from graphopt.program.program import (
    Action,
    FallbackSegment,
    KernelCall,
    Launch,
    NativeSegment,
    Place,
    Port,
    Program,
    SelectSegment,
    Stage,
    Value,
    Verb,
)


def sample(micro_batches: int = 2) -> Program:
    """Two stages with every kind of value and segment."""
    first = Stage(
        index=0,
        values=(
            Value("x", "float32", (2, 3), Place.ARENA, 0),
            Value("w", "float32", (3,), Place.WEIGHT),
            Value("h", "float32", (2, 3), Place.ARENA, 64),
            Value("flat", "float32", (6,), Place.VIEW, of="h"),
            Value("tmp", "bfloat16", (12,), Place.ARENA, 128),
        ),
        inputs=("x",),
        outputs=("flat",),
        segments=(NativeSegment((KernelCall("scale", ("x", "w"), ("h",), ("tmp",), ("Mul_0", "Add_1")),)),),
        arena_bytes=192,
        arena_lower_bound=152,
        library="stage_0.so",
        weights="weights_0.safetensors",
    )
    second = Stage(
        index=1,
        values=(
            Value("flat", "float32", (6,), Place.ARENA, 0),
            Value("free", "string", None, Place.HOST),
            Value("y", "int64", (1,), Place.ARENA, 64),
        ),
        inputs=("flat",),
        outputs=("y",),
        segments=(
            FallbackSegment("fallback/0.onnx", ("flat",), ("free",), (("Odd_0", "not known"),)),
            FallbackSegment("fallback/1.onnx", ("free",), ("y",), ()),
        ),
        arena_bytes=128,
        arena_lower_bound=128,
    )
    stages = (first, second)
    ports = (Port("x", "float32", (2, 3)),), (Port("y", "int64", (1,)),)
    return Program(stages, schedule.build(stages, ["x"], micro_batches), *ports, micro_batches)


def conditional() -> Program:
    """A stage that computes a condition, two sides and a choice, one of them below a second condition."""
    stage = Stage(
        index=0,
        values=(
            Value("x", "float32", (4,), Place.ARENA, 0),
            Value("c", "bool", (1,), Place.ARENA, 64),
            Value("d", "bool", (), Place.ARENA, 128),
            Value("y", "float32", (4,), Place.ARENA, 192),
            Value("a", "float32", (4,), Place.VIEW, of="y"),
            Value("n", "int64", (1,), Place.ARENA, 256),
        ),
        inputs=("x", "n"),
        outputs=("y",),
        segments=(
            NativeSegment((KernelCall("test", ("x",), ("c",)),)),
            NativeSegment((KernelCall("try", ("x",), ("d",)),), guard=(("c", True),)),
            NativeSegment((KernelCall("neg", ("x",), ("a",)),), guard=(("c", True), ("d", False))),
            SelectSegment("c", ("y",), ("a",), ("x",), ("If_0",)),
        ),
        arena_bytes=320,
        arena_lower_bound=320,
        library="stage_0.so",
    )
    ports = (Port("x", "float32", (4,)), Port("n", "int64", (1,))), (Port("y", "float32", (4,)),)
    return Program((stage,), schedule.build((stage,), ["x", "n"], 1), *ports, 1)


def document(program: Program) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(program_json.dumps(program))
    return loaded


def test_a_program_reads_back_equal() -> None:
    for micro_batches in (1, 3):
        program = sample(micro_batches)
        assert problems(program) == []
        text = program_json.dumps(program)
        assert program_json.loads(text) == program
        assert program_json.dumps(program_json.loads(text)) == text


def test_a_conditional_program_reads_back_equal() -> None:
    program = conditional()
    assert problems(program) == []
    assert program_json.loads(program_json.dumps(program)) == program


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda s: s[0].update(guard=[["absent", True]]), "the unknown value 'absent'"),
        (lambda s: s[0].update(guard=[["c", True]]), "'c', which is not computed before"),  # by itself
        (lambda s: s[1].update(guard=[["d", True]]), "'d', which is not computed before"),
        (lambda s: s[1].update(guard=[["x", True]]), "'x', which is not one bool"),
        (lambda s: s[1].update(guard=[["n", True]]), "'n', which is not one bool"),
        (lambda s: s[2].update(guard=[["d", False]]), "'d', which is not computed before"),  # where c is false
        (lambda s: s[2].update(guard=[["d", False], ["c", True]]), "'d', which is not computed before"),
        (lambda s: s[2].update(guard=[["c", False], ["d", False]]), "'d', which is not computed before"),
        (lambda s: s[2].update(guard=[["c", 1]]), "neither true nor false"),
        (lambda s: s[2].update(guard=[["c"]]), "not a value and what it must be"),
        (lambda s: s[2].update(guard={"c": True}), "not a list"),
        (lambda s: s[2].pop("guard"), "wrong keys, see 'guard'"),
        (lambda s: s[3].update(condition="d"), "'d', which is not computed before"),
        (lambda s: s[3].update(condition="x"), "'x', which is not one bool"),
        (lambda s: s[3].update(when_true=[]), "not as many values on both sides"),
        (lambda s: s[3].update(when_false=["n"]), "between values of other types"),
        (lambda s: s[3].update(when_false=["q"]), "unknown value 'q'"),
        (lambda s: s.insert(0, s.pop()), "'c', which is not computed before"),
    ],
)
def test_every_damage_of_a_condition_is_refused(edit: Callable[[list[Any]], object], reason: str) -> None:
    fields = document(conditional())
    edit(fields["stages"][0]["segments"])
    with pytest.raises(ArtifactError) as error:
        program_json.loads(json.dumps(fields).encode())
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def repeated() -> Program:
    """h = scale(x), which is computed again before its second reader; relu writes over what it reads."""
    names = {"x": 0, "h": 64, "y": 64, "h~1": 64, "z": 128}
    calls = (
        KernelCall("scale", ("x",), ("h",)),
        KernelCall("relu", ("h",), ("y",), in_place=((0, 0),)),
        KernelCall("scale", ("x",), ("h~1",), recompute_of="h"),
        KernelCall("relu", ("h~1",), ("z",)),
    )
    values = tuple(Value(name, "float32", (4,), Place.ARENA, offset) for name, offset in names.items())
    stage = Stage(0, values, ("x",), ("z",), (NativeSegment(calls),), 192, 128, library="stage_0.so")
    ports = (Port("x", "float32", (4,)),), (Port("z", "float32", (4,)),)
    return Program((stage,), ((Action(Verb.RUN, 0, 0),),), *ports)


def test_a_program_that_computes_a_value_again_reads_back_equal() -> None:
    assert problems(repeated()) == []
    assert program_json.loads(program_json.dumps(repeated())) == repeated()


@pytest.mark.parametrize(
    ("call", "change", "reason"),
    [
        (1, {"in_place": [[1, 0]]}, "may write input 1 as output 0"),
        (1, {"in_place": [[0, 1]]}, "may write input 0 as output 1"),
        (1, {"in_place": [[0]]}, "not an input and an output"),
        (2, {"recompute_of": "z"}, "repeats the call that makes 'z', and no such call precedes"),
        (2, {"recompute_of": "y"}, "repeats the call that makes 'y'"),
        (2, {"recompute_of": 1}, "not a text"),
    ],
)
def test_a_call_repeats_an_earlier_one(call: int, change: dict[str, Any], reason: str) -> None:
    fields = document(repeated())
    fields["stages"][0]["segments"][0]["calls"][call].update(change)
    with pytest.raises(ArtifactError, match=re.escape(reason)):
        program_json.loads(json.dumps(fields).encode())


def test_a_device_runs_everything() -> None:
    program = conditional()
    launched = KernelCall("test", ("x",), ("c",), launches=(Launch("test", (1, 1, 1), (1, 1, 1), (0, 1)),))
    stage = replace(program.stages[0], segments=(NativeSegment((launched,)), *program.stages[0].segments[3:]))
    assert any("depend on a condition" in reason for reason in problems(replace(program, stages=(stage,))))


def test_action_text() -> None:
    assert str(Action(Verb.RUN, 1, 0)) == "1F0"
    assert str(Action(Verb.SEND, 0, 2, 1, ("a",))) == "0SEND2>1"
    assert str(Action(Verb.RECV, 1, 2, 0, ("a",))) == "1RECV2<0"


Edit = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda d: d.update(format=1), "format 1"),
        (lambda d: d.update(format="2"), "format '2'"),
        (lambda d: d.pop("actions"), "wrong keys"),
        (lambda d: d.update(extra=1), "wrong keys, see 'extra'"),
        (lambda d: d.update(micro_batches=0), "0 micro-batches"),
        (lambda d: d.update(micro_batches=1 << 61), "runs 2 micro-batches"),
        (lambda d: d.update(micro_batches=True), "not a whole number"),
        (lambda d: d.update(stages={}), "not a list"),
        (lambda d: d.update(stages=[]), "no stage"),
        (lambda d: d["stages"][0].update(index=1), "stands at position 0"),
        (lambda d: d["stages"][0].update(arena_bytes=130, arena_lower_bound=0), "does not fit"),
        (lambda d: d["stages"][0].update(arena_bytes=1 << 60), "impossible"),
        (lambda d: d["stages"][0].update(arena_bytes=1.5), "not a whole number"),
        (lambda d: d["stages"][0].update(arena_lower_bound=1000), "impossible"),
        (lambda d: d["stages"][0].update(library="../evil.so"), "not allowed"),
        (lambda d: d["stages"][0].update(library="/etc/evil.so"), "not allowed"),
        (lambda d: d["stages"][0].update(library=""), "has no library"),
        (lambda d: d["stages"][0].update(weights=""), "has no weights file"),
        (lambda d: d["stages"][0].update(weights="a/../../b"), "not allowed"),
        (lambda d: d["stages"][0].update(inputs=["x", "x"]), "listed twice"),
        (lambda d: d["stages"][0].update(inputs=["nothing"]), "not a value"),
        (lambda d: d["stages"][0].update(inputs=["w"]), "cannot be fed"),
        (lambda d: d["stages"][0].update(inputs="x"), "not a list"),
        (lambda d: d["stages"][0]["values"][0].update(offset=-64), "not a whole number"),
        (lambda d: d["stages"][0]["values"][0].update(offset=32), "does not fit"),
        (lambda d: d["stages"][0]["values"][0].update(offset=192), "does not fit"),
        (lambda d: d["stages"][0]["values"][0].update(offset=1 << 61), "does not fit"),
        (lambda d: d["stages"][0]["values"][0].update(shape=[1 << 40, 1 << 40]), "impossible shape"),
        (lambda d: d["stages"][0]["values"][0].update(shape=[-1]), "not a whole number"),
        (lambda d: d["stages"][0]["values"][0].update(shape=[2, 4]), "input 'x' is float32"),
        (lambda d: d["stages"][0]["values"][0].update(shape=None), "has no shape"),
        (lambda d: d["stages"][0]["values"][0].update(dtype="complex64"), "unknown type"),
        (lambda d: d["stages"][0]["values"][0].update(place="disk"), "place is 'disk'"),
        (lambda d: d["stages"][0]["values"][0].update(place=[]), "place is []"),
        (lambda d: d["stages"][0]["values"][0].update(name="h"), "same name"),
        (lambda d: d["stages"][0]["values"][1].update(offset=0), "wrong keys"),
        (lambda d: d["stages"][0]["values"][3].update(of="flat"), "leads to no value"),
        (lambda d: d["stages"][0]["values"][3].update(of="absent"), "leads to no value"),
        (lambda d: d["stages"][0]["values"][3].update(of="w"), "into 'w' of 12 bytes"),
        (lambda d: d["stages"][0]["segments"][0]["calls"][0].update(symbol="a b"), "no function name"),
        (lambda d: d["stages"][0]["segments"][0]["calls"][0].update(inputs=["q"]), "unknown value 'q'"),
        (lambda d: d["stages"][0]["segments"][0]["calls"][0].update(outputs=["w"]), "writes the weight 'w'"),
        (lambda d: d["stages"][0]["segments"][0]["calls"][0].update(scratch=["w"]), "writes the weight 'w'"),
        (lambda d: d["stages"][1]["segments"][0].update(model="../0.onnx"), "not allowed"),
        (lambda d: d["stages"][1]["segments"][0].update(outputs=["q"]), "unknown value 'q'"),
        (lambda d: d["stages"][1]["segments"][0].update(reasons=[["one"]]), "not a node and its reason"),
        (lambda d: d["stages"][1]["segments"].append({"calls": [], "model": ""}), "wrong keys"),
        (lambda d: d["stages"][1]["values"][1].update(shape=[1]), "fixed shape"),
        (lambda d: d["stages"][1]["values"][0].update(shape=[2, 3]), "agree on"),
        (lambda d: d["inputs"].append(d["inputs"][0]), "same name"),
        (lambda d: d["inputs"][0].update(dtype="float64"), "input 'x' is float64"),
        (lambda d: d["inputs"][0].update(shape=[]), "no first axis"),
        (lambda d: d["outputs"][0].update(name="z"), "comes out of no stage"),
        (lambda d: d["actions"].pop(), "1 action lists for 2 stages"),
        (lambda d: d["actions"][0].pop(), "waits for rank 0"),
        (lambda d: d["actions"][0].pop(0), "before it ran"),
        (lambda d: d["actions"][1].pop(0), "without having received 'flat'"),
        (lambda d: d["actions"][0].reverse(), "before it ran"),
        (lambda d: d["actions"][0][0].update(stage=1), "cannot do 1F0"),
        (lambda d: d["actions"][0][0].update(micro_batch=7), "cannot do 0F7"),
        (lambda d: d["actions"][0][1].update(peer=5), "no such neighbour"),
        (lambda d: d["actions"][0][1].update(values=["h"]), "cannot go"),
        (lambda d: d["actions"][0][1].update(values=[]), "carries no value"),
        (lambda d: d["actions"][0][0].update(verb=["F"]), "verb is ['F']"),
        (lambda d: d["actions"][0][1].update(verb="JUMP"), "verb is 'JUMP'"),
    ],
)
def test_every_damage_is_refused_in_one_sentence(edit: Edit, reason: str) -> None:
    fields = document(sample())
    edit(fields)
    with pytest.raises(ArtifactError) as error:
        program_json.loads(json.dumps(fields).encode())
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format":1,"format":1}', b'{"format":NaN}', b"1e999"],
)
def test_what_is_no_such_json(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"program\.json|program"):
        program_json.loads(data)


def test_random_damage_never_gives_anything_but_an_artifact_error() -> None:
    """Every mutation is refused, or gives a program that satisfies all checks."""
    text = program_json.dumps(sample())
    chance = random.Random(4)
    refused = 0
    for _ in range(1500):
        damaged = bytearray(text)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(damaged))
            damaged[at] = chance.choice(b'0123456789"[]{},:-nulltruefalse' + bytes([chance.randrange(256)]))
        try:
            program = program_json.loads(bytes(damaged))
        except ArtifactError:
            refused += 1
        else:
            assert problems(program) == []
    assert refused > 700


def test_sent_values_must_agree_over_all_micro_batches() -> None:
    program = sample()
    first, second = program.actions
    odd = tuple(replace(a, values=("x",)) if a.verb is Verb.SEND and a.micro_batch else a for a in first)
    assert any("same values" in reason for reason in problems(replace(program, actions=(odd, second))))


def test_deadlock_is_a_problem() -> None:
    program = sample()
    first, second = program.actions
    crossed = (second[2], second[0], second[1], second[3])
    (reason,) = problems(replace(program, actions=(first, crossed)))
    assert reason.startswith("the schedule stops at step 1: rank 0 at 0SEND0>1 waits for rank 1")


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (Value("v", "int8", (64,), Place.VIEW, 64, "w"), ""),
        (Value("v", "int8", (65,), Place.VIEW, 64, "w"), "does not fit"),
        (Value("v", "int8", (1,), Place.VIEW, 32, "w"), "does not fit, aligned to 64"),
        (Value("v", "int8", (1,), Place.VIEW, -64, "w"), "does not fit"),
        (Value("v", "int8", (1,), Place.VIEW, 128, "w"), "at offset 192"),
    ],
)
def test_a_view_shows_a_part_of_another_value_and_nothing_beyond(view: Value, reason: str) -> None:
    values = (
        Value("x", "int8", (192,), Place.ARENA, 0),
        Value("w", "int8", (128,), Place.VIEW, 64, "x"),
        view,
    )
    stage = Stage(0, values, ("x",), ("v",), (), 192, 1)
    ports = (Port("x", "int8", (192,)),), (Port("v", "int8", view.shape),)
    program = Program((stage,), ((Action(Verb.RUN, 0, 0),),), *ports)
    assert [reason in problem for problem in problems(program)] == ([True] if reason else [])
    if not reason:
        assert program_json.loads(program_json.dumps(program)) == program


def test_a_long_chain_of_views_is_refused_quickly() -> None:
    values = [Value("v0", "int8", (1,), Place.ARENA, 0)]
    values += [Value(f"v{i}", "int8", (1,), Place.VIEW, of=f"v{i - 1}") for i in range(1, 3000)]
    stage = Stage(0, tuple(values), ("v0",), ("v1",), (), 64, 1)
    program = Program((stage,), ((Action(Verb.RUN, 0, 0),),), (Port("v0", "int8", (1,)),), (Port("v1", "int8", (1,)),))
    assert any("leads to no value" in reason for reason in problems(program))


@pytest.mark.parametrize("name", ["program.json", "fallback/segment_0.onnx", "a-b.so"])
def test_file_names_that_are_allowed(name: str) -> None:
    assert file_name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../a",
        "/a",
        "a/../b",
        "a//b",
        "a/",
        "C:\\a",
        "a\\b",
        ".hidden",
        "a/.b",
        "a\0",
        "ä",
        "a\n",
        "x" * 200,
    ],
)
def test_file_names_that_are_not(name: str) -> None:
    assert file_name_problem(name) is not None
