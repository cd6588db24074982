"""The account of bytes, and the pictures of memory over time and against time."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from graphopt.artifact import Artifact
from graphopt.lowering.memory.arena import placed
from graphopt.lowering.memory.stage_problem import stage_problem
from graphopt.program import schedule
from graphopt.program.program import KernelCall, NativeSegment, Place, Port, Program, Stage, Value
from graphopt.report.document import plain
from graphopt.report.memory import account as accounting
from graphopt.report.memory import front, timeline
from graphopt.report.memory.account import Kind
from tests.helpers import skips

TITLE = "{http://www.w3.org/2000/svg}title"


def texts(svg: str) -> list[str]:
    return [text.strip() for text in ElementTree.fromstring(svg).itertext() if text.strip()]


def small() -> Artifact:
    """x -> relu with scratch -> g, which is a gradient -> y; `relu` runs twice."""
    values = [Value(name, "float32", (16,), Place.ARENA) for name in ("x", "s0_0_t1", "s0_0_t1~1", "w.gradient", "y")]
    values.append(Value("s0_0_scratch", "float32", (64,), Place.ARENA))
    calls = (
        KernelCall("relu", ("x",), ("s0_0_t1",), ("s0_0_scratch",), ("Relu_0",)),
        KernelCall("sum", ("s0_0_t1",), ("w.gradient",), origin=("Sum_1",)),
        KernelCall("relu", ("x",), ("s0_0_t1~1",), origin=("Relu_0",), recompute_of="s0_0_t1"),
        KernelCall("add", ("w.gradient", "s0_0_t1~1"), ("y",), origin=("Add_2",)),
    )
    table = {value.name: value for value in values}
    segments = (NativeSegment(calls),)
    planned, arena = placed(stage_problem(segments, table, ("x",), ("y",)), table)
    made = (Stage(0, tuple(planned.values()), ("x",), ("y",), segments, arena.nbytes, arena.lower_bound, "stage_0.so"),)
    ports = (Port("x", "float32", (16,)),), (Port("y", "float32", (16,)),)
    return Artifact.create(Program(made, schedule.build(made, ["x"], 1), *ports), {"stage_0.so": b""}, {})


def test_bytes_by_kind_at_every_step() -> None:
    artifact = small()
    found = accounting.account(artifact.program.stages[0], artifact, {"w.gradient": Kind.GRADIENTS})
    assert {kind: series.tolist() for kind, series in found.live.items()} == {
        Kind.INPUTS: [64, 64, 64, 64, 0, 0],
        Kind.ACTIVATIONS: [0, 64, 64, 64, 64, 0],
        Kind.GRADIENTS: [0, 0, 64, 64, 64, 0],
        Kind.OUTPUTS: [0, 0, 0, 0, 64, 64],
        Kind.WORKSPACE: [0, 256, 0, 0, 0, 0],
    }
    assert (found.peak, found.titles[found.peak], found.arena, found.again) == (1, "Relu_0", 384, (3,))
    assert [(each.kind, each.size) for each in found.at_peak] == [
        (Kind.WORKSPACE, 256), (Kind.ACTIVATIONS, 64), (Kind.INPUTS, 64)
    ]  # fmt: skip


def test_what_is_live_adds_up_to_the_lower_bound(kernels: bytes, one_stage: Artifact) -> None:
    for artifact in (skips.artifact(kernels, 7), one_stage):
        stage = artifact.program.stages[0]
        found = accounting.account(stage, artifact)
        assert sum(int(series[found.peak]) for series in found.live.values()) == stage.arena_lower_bound
        assert sum(each.size for each in found.at_peak) == stage.arena_lower_bound
    assert found.held == {Kind.CONSTANTS: 4003}
    assert found.total == 4003 + stage.arena_bytes


def test_tables() -> None:
    artifact = small()
    text = plain(accounting.blocks(accounting.account(artifact.program.stages[0], artifact)))
    assert text == (
        "Bytes\n"
        "what         bytes  when\n"
        "inputs        64 B  at the peak\n"
        "activations   64 B  at the peak\n"
        "workspace    256 B  at the peak\n"
        "arena        384 B  1.000 times the lower bound 384 B\n"
        "total        384 B  what is held always, and the arena\n"
        "\n"
        "Live at the peak: step 1 of 5, Relu_0\n"
        "bytes  kind         value              computed by\n"
        "256 B  workspace    scratch of Relu_0\n"
        " 64 B  activations  Relu_0\n"
        " 64 B  inputs       x"
    )


def test_memory_over_time_names_the_peak_and_marks_what_runs_again() -> None:
    artifact = small()
    found = accounting.account(artifact.program.stages[0], artifact)
    drawn = timeline.svg([found, found], "<model> & more")
    seen = texts(drawn)
    assert "<model> & more, stage 0" in seen
    assert seen.count("peak: Relu_0") == 2
    assert seen.count("again: Relu_0") == 2
    assert "workspace: 256 B at the peak" in seen
    assert [each.text for each in ElementTree.fromstring(drawn).iter(TITLE)].count("workspace") == 2


def test_a_stage_without_an_arena_is_drawn() -> None:
    stage = Stage(0, (Value("s", "object", None, Place.HOST),), ("s",), ("s",), (), 0, 0)
    made = Program((stage,), (), (), ())
    found = accounting.account(stage, Artifact(made, {}, {}))
    assert (found.total, found.ratio, found.at_peak) == (0, 1.0, ())
    ElementTree.fromstring(timeline.svg([found], "nothing"))


def point(total: int, slowdown: float, gap: float = 0.0) -> front.Point:
    return front.Point(total, total // 2, slowdown, gap, 3)


def test_the_front_leaves_out_what_is_beaten() -> None:
    points = [point(100, 1.0), point(50, 1.5), point(60, 1.6), point(40, 2.0), point(100, 1.2)]
    assert front.pareto(points) == [points[0], points[1], points[3]]
    assert front.pareto([]) == []


def test_memory_against_time() -> None:
    points = [point(1 << 20, 1.0), point(1 << 19, 1.25, 0.1)]
    text = plain(front.blocks(points, "measured"))
    assert " 512 KiB           50%  256 KiB  +25.0%               3  10.0%" in text
    seen = texts(front.svg(points, "a & b"))
    assert "a & b" in seen
    assert "512 KiB: +25.0%, 3 repeated calls, gap 10.0%" in seen
    ElementTree.fromstring(front.svg([], "none"))


@pytest.mark.parametrize("again", [False, True])
def test_documents_are_json(again: bool, kernels: bytes) -> None:
    import json

    artifact = small() if again else skips.artifact(kernels, 3)
    found = accounting.document(accounting.account(artifact.program.stages[0], artifact))
    assert json.loads(json.dumps(found)) == found
    assert found["repeated_calls"] == int(again)
