"""Programs planned anew within a budget: valid, within it, the same bits, and undone again."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.artifact import Artifact
from graphopt.lowering.memory.replan import BudgetError, least_budget, persistent_bytes, replan
from graphopt.lowering.memory.rewrite import with_sequence
from graphopt.lowering.memory.stage_problem import stage_problem
from graphopt.lowering.memory.sweep import sweep
from graphopt.lowering.memory.undo import without_repetitions
from graphopt.program import json as program_json
from graphopt.program.check import problems
from graphopt.program.program import FallbackSegment, KernelCall, NativeSegment, Place, Stage, Value
from tests.helpers import skips
from tests.helpers.compiled import parse, run


def calls(stage: Stage) -> list[str]:
    return [
        f"{call.outputs[0]} = {call.symbol}({', '.join(call.inputs)})"
        for segment in stage.segments
        if isinstance(segment, NativeSegment)
        for call in segment.calls
    ]


def outputs(artifact: Artifact) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal(skips.N).astype(np.float32)
    (y,) = artifact.session(threads=1).run({"x": x}).values()
    return np.asarray(y)


def test_a_repeated_call_writes_a_value_of_its_own_that_later_readers_read() -> None:
    stage = skips.stage(3, views=True)
    values = {value.name: value for value in stage.values}
    staged = stage_problem(stage.segments, values, stage.inputs, stage.outputs)
    again = with_sequence(stage, staged, (0, 1, 2, 3, 0, 4))
    assert calls(again) == [
        "s0_0_t1 = double(x)",
        "s0_0_t2 = double(s0_0_t1)",
        "s0_0_t3 = double(s0_0_t2)",
        "s0_0_sum2 = add(s0_0_t3, s0_0_view2)",
        "s0_0_t1~1 = double(x)",
        "y = add(s0_0_sum2, s0_0_view1~1)",
    ]
    (segment,) = again.segments
    assert isinstance(segment, NativeSegment)
    assert [call.recompute_of for call in segment.calls] == ["", "", "", "", "s0_0_t1", ""]
    assert {value.name: value.of for value in again.values}["s0_0_view1~1"] == "s0_0_t1~1"
    assert calls(without_repetitions(again)) == [line.replace("view1", "view1~1") for line in calls(stage)]


def test_a_sequence_with_repetitions_is_undone_exactly() -> None:
    stage = skips.stage(4)
    staged = stage_problem(stage.segments, {value.name: value for value in stage.values}, stage.inputs, stage.outputs)
    undone = without_repetitions(with_sequence(stage, staged, (0, 1, 2, 3, 4, 0, 1, 5, 0, 6)))
    assert undone.segments == stage.segments
    assert {value.name for value in undone.values} == {value.name for value in stage.values}
    assert without_repetitions(undone) is undone


def test_an_output_that_is_made_twice_keeps_its_name_in_the_end() -> None:
    values = tuple(Value(name, "float32", (16,), Place.ARENA) for name in ("x", "y", "z"))
    listed = (KernelCall("a", ("x",), ("y",)), KernelCall("b", ("y",), ("z",)))
    stage = Stage(0, values, ("x",), ("y", "z"), (NativeSegment(listed),), 192, 192, "stage_0.so")
    staged = stage_problem(stage.segments, {value.name: value for value in values}, ("x",), ("y", "z"))
    again = with_sequence(stage, staged, (0, 1, 0))
    assert calls(again) == ["y~1 = a(x)", "z = b(y~1)", "y = a(x)"]
    assert calls(without_repetitions(again)) == ["y = a(x)", "z = b(y)"]


@pytest.mark.parametrize("views", [False, True])
@pytest.mark.parametrize("share", [0.8, 0.6])
def test_a_program_within_a_budget_gives_the_same_bits(kernels: bytes, share: float, views: bool) -> None:
    artifact = skips.artifact(kernels, 9, views)
    budget = int(artifact.program.stages[0].arena_bytes * share)
    planned, (plan,) = replan(artifact, budget, effort=20_000)
    assert plan.stage.arena_bytes <= budget
    assert plan.overhead > 0
    assert problems(planned.program) == []
    assert program_json.loads(program_json.dumps(planned.program)) == planned.program
    assert np.array_equal(outputs(planned), outputs(artifact))
    undone, _ = replan(planned, None)
    assert undone.program.stages[0].arena_bytes == artifact.program.stages[0].arena_bytes
    assert sorted(calls(undone.program.stages[0])) == sorted(calls(artifact.program.stages[0])) or views
    tighter, _ = replan(planned, int(budget * 0.95), effort=20_000)
    assert np.array_equal(outputs(tighter), outputs(artifact))


def test_seconds_decide_what_is_repeated(kernels: bytes) -> None:
    """Doubling is slow but for the third: that one is made again."""
    artifact = skips.artifact(kernels, 5)
    seconds = [9.0, 9.0, 1.0, 9.0, 9.0, *[1.0] * 4]
    budget = artifact.program.stages[0].arena_bytes - 1
    _, (plan,) = replan(artifact, budget, {0: seconds}, effort=20_000)
    repeated = [call for call in _calls(plan.stage) if call.recompute_of]
    assert [call.origin for call in repeated] == [("double3",)]


def _calls(stage: Stage) -> list[KernelCall]:
    return [call for segment in stage.segments if isinstance(segment, NativeSegment) for call in segment.calls]


def test_a_budget_that_is_too_small_names_the_least_and_what_dominates_it(kernels: bytes) -> None:
    artifact = skips.artifact(kernels, 6)
    with pytest.raises(
        BudgetError, match=r"the least found is \d+ bytes, dominated by .*live together at add"
    ) as caught:
        replan(artifact, 2 * skips.SIZE, effort=20_000)
    assert 3 * skips.SIZE <= caught.value.least < artifact.program.stages[0].arena_bytes
    replan(artifact, caught.value.least, effort=20_000)
    with pytest.raises(BudgetError, match="a budget of 1 bytes is too small"):
        replan(artifact, 1, effort=1000)


def test_weights_count_and_fallback_segments_stay_where_they_are(mixed: Artifact) -> None:
    planned, plans = replan(mixed, 1 << 20, effort=1000)
    for before, after in zip(mixed.program.stages, planned.program.stages, strict=True):
        assert [type(each) for each in before.segments] == [type(each) for each in after.segments]
        assert [s for s in before.segments if isinstance(s, FallbackSegment)] == [
            s for s in after.segments if isinstance(s, FallbackSegment)
        ]
    assert all(plan.total == plan.persistent + plan.stage.arena_bytes for plan in plans)


def test_a_sweep_falls_in_bytes_and_rises_in_seconds(kernels: bytes) -> None:
    artifact = skips.artifact(kernels, 8)
    swept = [plans[0] for plans in sweep(artifact, points=3, effort=20_000)]
    assert [plan.total for plan in swept] == sorted((plan.total for plan in swept), reverse=True)
    assert swept[0].overhead == 0.0 < swept[-1].overhead
    assert swept[-1].total == least_budget(artifact.program.stages[0], artifact, 20_000)


def test_a_compiled_model_within_a_budget_gives_the_same_bits() -> None:
    """Convolutions whose results are read again in the end, so that they wait."""
    layers = 8
    numbers = ", ".join(["0.1", "-0.2", "0.3"] * 192)
    lines = [
        f"c{i} = Conv <pads = [1, 1, 1, 1]> ({f't{i - 1}' if i else 'x'}, w)\n t{i} = Tanh (c{i})"
        for i in range(layers)
    ]
    lines += [
        f"m{i} = Mul ({f'n{i + 1}' if i < layers - 2 else f't{layers - 1}'}, t{i})\n"
        f"{f'n{i}' if i else 'y'} = Conv <pads = [1, 1, 1, 1]> (m{i}, w)"
        for i in range(layers - 2, -1, -1)
    ]
    body = "\n".join(lines)
    shape = "float[1, 8, 24, 24]"
    graph = f"g ({shape} x) => ({shape} y) <float[8, 8, 3, 3] w = {{{numbers}}}> {{ {body} }}"
    artifact = run(parse(graph), threads=2).artifact
    (stage,) = artifact.program.stages
    budget = int((persistent_bytes(stage, artifact) + stage.arena_bytes) * 0.75)
    planned, (plan,) = replan(artifact, budget, effort=20_000)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 8, 24, 24)).astype(np.float32)}
    expected, found = (each.session(threads=2).run(feeds)["y"] for each in (artifact, planned))
    assert plan.total <= budget
    assert plan.overhead > 0
    assert np.asarray(expected).tobytes() == np.asarray(found).tobytes()
