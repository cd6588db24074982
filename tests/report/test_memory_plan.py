"""The memory plan as a picture."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from graphopt.program.program import FallbackSegment, KernelCall, NativeSegment, Place, Stage, Value
from graphopt.report import memory_plan


def _stage(calls: int = 2) -> Stage:
    """x (64 bytes at 0) -> a (64 at 64) -> view v of a -> ... -> y (64 at 0)."""
    names = ["a", *(f"t{index}" for index in range(calls - 2)), "y"]
    places = [64, 0]
    values = [Value("x", "float32", (16,), Place.ARENA, 0), Value("v", "float32", (4, 4), Place.VIEW, of="a")]
    values += [Value(name, "float32", (16,), Place.ARENA, places[index % 2]) for index, name in enumerate(names)]
    reads = ["x", "v", *names[1:]]
    listed = tuple(KernelCall(f"k{index}", (reads[index],), (name,)) for index, name in enumerate(names))
    return Stage(0, tuple(values), ("x",), ("y",), (NativeSegment(listed),), 128, 128)


def test_a_value_lives_from_its_maker_to_its_last_reader_through_views() -> None:
    plan = memory_plan.plan(_stage())
    assert plan.steps == ("inputs", "k0", "k1", "outputs")
    lives = {each.name: (each.first, each.last, each.offset) for each in plan.rectangles}
    assert lives == {"x": (0, 1, 0), "a": (1, 2, 64), "y": (2, 3, 0)}


def test_text() -> None:
    assert memory_plan.text(memory_plan.plan(_stage()), width=4) == (
        "stage 0: arena 128 B, lower bound 128 B, # is in use, one column is 32 B\n"
        "0 ##..     64 B  inputs\n"
        "1 ####    128 B  k0\n"
        "2 ####    128 B  k1\n"
        "3 ##..     64 B  outputs"
    )


def test_long_stages_are_shown_in_few_lines() -> None:
    assert len(memory_plan.text(memory_plan.plan(_stage(400))).splitlines()) <= memory_plan.LINES + 1


def test_a_stage_without_an_arena() -> None:
    stage = Stage(1, (Value("s", "object", None, Place.HOST),), ("s",), ("s",), (), 0, 0)
    assert memory_plan.text(memory_plan.plan(stage)) == "stage 1: arena 0 B, lower bound 0 B"
    ElementTree.fromstring(memory_plan.svg([memory_plan.plan(stage)]))


def test_svg_escapes_names_and_draws_every_value() -> None:
    value = Value("<a&b>", "float32", (16,), Place.ARENA, 0)
    segment = FallbackSegment("fallback/0.onnx", ("<a&b>",), ("<a&b>",), ())
    plan = memory_plan.plan(Stage(0, (value,), ("<a&b>",), ("<a&b>",), (segment,), 64, 64))
    root = ElementTree.fromstring(memory_plan.svg([plan, plan]))
    titles = [each.text for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["<a&b>: 64 B at 0, steps 0 to 2"] * 2


def test_values_carry_the_names_of_the_nodes_that_compute_them() -> None:
    """x -> two kernels of one node, into parts of a joined tensor, with scratch -> y."""
    internal = ["s0_0_t0", "s0_0_scratch1_0", "s0_0_t2"]
    values = [Value("x", "float32", (16,), Place.ARENA, 0), Value("y", "float32", (16,), Place.ARENA, 0)]
    values += [Value(name, "float32", (16,), Place.ARENA, 64 * (i + 1)) for i, name in enumerate(internal)]
    values += [Value(f"s0_0_part{i}", "float32", (8,), Place.VIEW, 32 * i, "s0_0_t0") for i in range(2)]
    calls = (
        KernelCall("k0", ("x",), ("s0_0_part0",), origin=("conv", "relu", "add")),
        KernelCall("k1", ("x",), ("s0_0_part1",), ("s0_0_scratch1_0",), origin=("pool",)),
        KernelCall("k2", ("s0_0_t0",), ("s0_0_t2",), origin=("pool",)),
        KernelCall("k3", ("s0_0_t2",), ("y",), origin=("gemm",)),
    )
    plan = memory_plan.plan(Stage(0, tuple(values), ("x",), ("y",), (NativeSegment(calls),), 256, 256))
    assert [box.name for box in plan.rectangles] == ["x", "conv, relu +1", "pool, scratch", "pool", "y"]
    assert plan.steps == ("inputs", "conv, relu +1", "pool", "pool", "gemm", "outputs")


def test_a_long_name_is_shown_as_far_as_it_fits() -> None:
    value = Value("a_value_with_a_name_that_is_longer_than_its_place", "float32", (16,), Place.ARENA, 0)
    calls = tuple(KernelCall(f"k{i}", (value.name,), (value.name,)) for i in range(4))
    steps = (NativeSegment(calls), *(FallbackSegment(f"fallback/{i}.onnx", (), (), ()) for i in range(20)))
    drawn = memory_plan.svg([memory_plan.plan(Stage(0, (value,), (value.name,), (), steps, 64, 64))])
    (label,) = [text for text in ElementTree.fromstring(drawn).itertext() if text.endswith("\N{HORIZONTAL ELLIPSIS}")]
    assert value.name.startswith(label[:-1])
    assert len(label) >= 5
