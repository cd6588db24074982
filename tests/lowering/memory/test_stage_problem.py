"""A stage as a problem of recomputation."""

from __future__ import annotations

from graphopt.lowering.memory.arena import place, placed
from graphopt.lowering.memory.stage_problem import stage_problem
from graphopt.program.program import (
    FallbackSegment,
    KernelCall,
    NativeSegment,
    Place,
    Segment,
    SelectSegment,
    Value,
)
from graphopt.solve.recompute.problem import check


def arena(name: str, elements: int = 16, dtype: str = "float32") -> Value:
    return Value(name, dtype, (elements,), Place.ARENA)


def table(*values: Value) -> dict[str, Value]:
    return {value.name: value for value in values}


def test_kernels_read_and_write_the_values_that_own_the_bytes() -> None:
    values = table(
        arena("x"), arena("h", 32), Value("v", "float32", (16,), Place.VIEW, 64, "h"), arena("s", 3), arena("y"),
        Value("w", "float32", (16,), Place.WEIGHT),
    )  # fmt: skip
    calls = (KernelCall("a", ("x", "w"), ("h",), ("s",)), KernelCall("b", ("v",), ("y",)))
    staged = stage_problem((NativeSegment(calls),), values, ("x",), ("y",), (3.0, 4.0))
    problem = staged.problem
    assert staged.tensors == ("x", "h", "y")
    assert problem.sizes == (64, 128, 64)
    assert [(each.inputs, each.outputs, each.seconds, each.scratch) for each in problem.operations] == [
        ((0,), (1,), 3.0, 64),
        ((1,), (2,), 4.0, 0),
    ]
    assert (problem.given, problem.wanted) == ({0}, {2})
    assert all(each.recomputable for each in problem.operations)


def test_only_kernels_under_no_condition_run_again_and_not_what_others_take_from_them() -> None:
    """a feeds a fallback model; c and d run under a condition; e reads what d wrote; f stands alone."""
    values = table(*(arena(name) for name in "xabdey"), arena("c", 1, "bool"), arena("f"))
    segments: tuple[Segment, ...] = (
        NativeSegment((KernelCall("a", ("x",), ("a",)), KernelCall("test", ("x",), ("c",)))),
        FallbackSegment("fallback/0.onnx", ("a",), ("b",), ()),
        NativeSegment((KernelCall("d", ("b",), ("d",)),), (("c", True),)),
        SelectSegment("c", ("e",), ("d",), ("b",)),
        NativeSegment((KernelCall("f", ("x",), ("f",)), KernelCall("y", ("e", "f"), ("y",)))),
    )
    staged = stage_problem(segments, values, ("x",), ("y",))
    check(staged.problem)
    assert [each.recomputable for each in staged.problem.operations] == [False, False, False, False, False, True, True]
    assert [step.free for step in staged.steps] == [True, True, False, False, False, True, True]


def test_what_writes_over_its_input_or_over_another_runs_once() -> None:
    values = table(arena("x"), arena("a"), arena("b"), arena("y"))
    calls = (
        KernelCall("a", ("x",), ("a",)),
        KernelCall("more", ("a",), ("a",)),  # adds to what it reads
        KernelCall("b", ("x",), ("b",)),
        KernelCall("y", ("a", "b"), ("y",)),
    )
    problem = stage_problem((NativeSegment(calls),), values, ("x",), ("y",)).problem
    assert [each.recomputable for each in problem.operations] == [False, False, True, True]


def test_parts_of_a_tensor_have_several_writers_and_readers_of_a_part_come_before_its_writer() -> None:
    halves = [Value(f"h{i}", "float32", (16,), Place.VIEW, 64 * i, "h") for i in range(2)]
    values = table(arena("x"), arena("h", 32), *halves, arena("y"))
    calls = (
        KernelCall("a", ("x",), ("h0",)),
        KernelCall("b", ("h0",), ("h1",)),
        KernelCall("c", ("h",), ("y",)),
        KernelCall("over", ("y",), ("h1",)),
    )
    problem = stage_problem((NativeSegment(calls),), values, ("x",), ("y",)).problem
    assert problem.before == ((2, 3),)  # b reads another half than the last one writes
    assert [each.recomputable for each in problem.operations] == [True, False, True, False]


def test_operands_in_place_are_whole_values_of_one_size() -> None:
    values = table(arena("x"), arena("a"), arena("b"), arena("y", 8), Value("v", "int32", (16,), Place.VIEW, 0, "b"))
    calls = (
        KernelCall("a", ("x",), ("a",)),
        KernelCall("b", ("a",), ("b",), in_place=((0, 0),)),
        KernelCall("y", ("v",), ("y",), in_place=((0, 0),)),
    )
    staged = stage_problem((NativeSegment(calls),), values, ("x",), ("y",))
    assert [each.in_place for each in staged.problem.operations] == [(), ((1, 2),), ()]
    planned, found = placed(staged, values)
    assert planned["a"].offset == planned["b"].offset
    assert found.nbytes == found.lower_bound == 128


def test_an_operand_that_is_read_in_another_way_too_is_not_written_over() -> None:
    values = table(arena("x"), arena("a"), arena("y"), Value("v", "float32", (4, 4), Place.VIEW, 0, "a"))
    calls = (KernelCall("a", ("x",), ("a",)), KernelCall("y", ("a", "v"), ("y",), in_place=((0, 0),)))
    assert stage_problem((NativeSegment(calls),), values, ("x",), ("y",)).problem.operations[1].in_place == ()


def test_every_version_and_every_scratch_has_a_place_of_its_own() -> None:
    values = table(arena("x"), arena("a"), arena("b"), arena("y"), arena("s", 64))
    calls = (
        KernelCall("a", ("x",), ("a",), ("s",)),
        KernelCall("b", ("a",), ("b",)),
        KernelCall("y", ("a", "b"), ("y",)),
    )
    staged = stage_problem((NativeSegment(calls),), values, ("x",), ("y",))
    found = place(staged, (0, 1, 0, 2), values)
    assert len(found.offsets["a"]) == 2
    assert [sorted(each) for each in found.scratch] == [["s"], [], ["s"], []]
    assert found.nbytes == 64 * 3 + 256  # x, b, a and the scratch, when a is made again


def test_scratch_that_two_calls_share_keeps_one_place() -> None:
    values = table(arena("x"), arena("a"), arena("y"), arena("s", 64))
    calls = (KernelCall("a", ("x",), ("a",), ("s",)), KernelCall("y", ("a",), ("y",), ("s",)))
    staged = stage_problem((NativeSegment(calls),), values, ("x",), ("y",))
    assert staged.tensors == ("x", "a", "s", "y")
    assert not any(each.recomputable for each in staged.problem.operations)
