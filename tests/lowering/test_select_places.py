"""Where the sides of a choice lie."""

import pytest

from graphopt.lowering.select_places import place_sides
from graphopt.program.program import Guard, KernelCall, NativeSegment, Place, SelectSegment, Value


def write(name: str, *guard: tuple[str, bool]) -> NativeSegment:
    return NativeSegment((KernelCall("k", ("x",), (name,)),), guard)


def value(name: str, *shape: int, of: str = "") -> Value:
    return Value(name, "float32", shape or (8,), Place.VIEW if of else Place.ARENA, of=of)


@pytest.mark.parametrize(
    ("segments", "views"),
    [
        ([write("a", ("c", True)), write("b", ("c", False))], {"a": "y", "b": "y"}),
        ([write("a"), write("b", ("c", False))], {"b": "y"}),  # needed elsewhere too
        ([write("a", ("c", False)), write("b", ("c", True))], {}),
        ([write("a", ("c", True)), write("a", ("d", True)), write("b")], {}),
        ([write("p", ("c", True)), write("b", ("c", False))], {"p": "y", "a": "y", "b": "y"}),
    ],
)
def test_a_side_that_is_computed_alone_lies_in_the_output(segments: list[NativeSegment], views: dict[str, str]) -> None:
    values = {each.name: each for each in map(value, "xyab")}
    if segments[0].calls[0].outputs == ("p",):
        values |= {"p": value("p", 2, 4), "a": value("a", of="p")}
    place_sides([*segments, SelectSegment("c", ("y",), ("a",), ("b",))], values, {"x", "y"})
    assert {each.name: each.of for each in values.values() if each.place is Place.VIEW} == views


def test_choices_below_choices_lie_in_the_last_output() -> None:
    values = {each.name: each for each in map(value, "xyzab")}
    below: Guard = (("d", True),)
    segments = [
        write("a", *below, ("c", True)),
        write("b", *below, ("c", False)),
        SelectSegment("c", ("z",), ("a",), ("b",), guard=below),
        SelectSegment("d", ("y",), ("z",), ("x",)),
    ]
    place_sides(segments, values, {"x", "y"})
    assert [values[name].of for name in "abz"] == ["y", "y", "y"]


def test_a_side_that_is_the_output_stays() -> None:
    values = {each.name: each for each in map(value, "xya")}
    guard: Guard = (("c", False),)  # a choice by a condition below the same one
    place_sides([write("y", *guard), SelectSegment("c", ("y",), ("a",), ("y",), guard=guard)], values, {"x"})
    assert values["y"].place is Place.ARENA
