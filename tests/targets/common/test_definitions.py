"""Nodes that are alike are converted alike, and their kernels are defined once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.cost.workload import TILE
from graphopt.targets.common import definitions
from graphopt.targets.common.definitions import Definitions, signature
from graphopt.targets.cpu.target import CpuTarget


def numbers(*shape: int) -> Any:
    return np.random.default_rng([8, *shape]).standard_normal(shape).astype(np.float32)


@pytest.fixture
def defined(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A mark for every TE definition that was made."""
    marks: list[str] = []
    real = definitions.gen_call_tir_inputs

    def generate(function: Any, *args: Any, **kwargs: Any) -> Any:
        marks.append(str(args[0].ty))
        return real(function, *args, **kwargs)

    monkeypatch.setattr(definitions, "gen_call_tir_inputs", generate)
    return marks


def test_equal_layers_are_defined_once(lab: Any, defined: list[str]) -> None:
    """Weights of their own do not make another kernel; probing and lowering share the definitions."""
    fresh = type(lab)(CpuTarget())
    body = "a = MatMul(x, v) b = MatMul(a, w) c = MatMul(b, u) y = Softmax(c)"
    weights = {"v": numbers(8, 8), "w": numbers(8, 8) + 1, "u": numbers(8, 8) + 2}
    fresh.check(fresh.model(body, {"x": numbers(4, 8)}, weights), {"x": numbers(4, 8)})
    once = len(defined)
    single = type(lab)(CpuTarget())
    single.same("a = MatMul(x, v) y = Softmax(a)", {"x": numbers(4, 8)}, {"v": numbers(8, 8)})
    assert once == len(defined) - once > 0


def node(lab: Any, body: str, constants: dict[str, Any], tile: str = "") -> Any:
    (found,) = lab.model(body, {"x": numbers(4, 40)}, constants).graph
    if tile:
        found.metadata_props[TILE] = tile
    return found


def test_constants_that_are_weights_do_not_matter_and_small_ones_do(lab: Any) -> None:
    assert signature(node(lab, "y = Add(x, c)", {"c": numbers(40)})) == signature(
        node(lab, "y = Add(x, c)", {"c": numbers(40) + 1})
    )
    assert signature(node(lab, "y = Add(x, c)", {"c": numbers(1)})) != signature(
        node(lab, "y = Add(x, c)", {"c": numbers(1) + 1})
    )
    shapes = [node(lab, "y = Reshape(x, s)", {"s": np.array(s)}) for s in ([5, 32], [32, 5])]
    assert signature(shapes[0]) != signature(shapes[1])


def test_a_tile_makes_another_definition(lab: Any) -> None:
    made = Definitions()
    plain, tiled = (node(lab, "y = MatMul(x, w)", {"w": numbers(40, 8)}, tile) for tile in ("", "4x16"))
    assert made.of(plain).key != made.of(tiled).key
    assert signature(plain) == signature(tiled), "the answer whether it is supported is the same"


def test_long_lists_of_integers_share_nothing(lab: Any) -> None:
    """A converter may read them, and the signature does not hold them."""
    many = np.zeros(definitions.SMALL_INTEGERS + 1, np.int64)
    assert Definitions().of(node(lab, "y = Gather<axis=1>(x, i)", {"i": many})).key is None
    assert Definitions().of(node(lab, "y = Gather<axis=1>(x, i)", {"i": many[:-1]})).key is not None


def test_attributes_and_types_make_other_definitions(lab: Any) -> None:
    bodies = ["y = Softmax<axis=0>(x)", "y = Softmax<axis=1>(x)", "y = LogSoftmax<axis=1>(x)"]
    assert len({signature(node(lab, body, {})) for body in bodies}) == 3


def test_attributes_have_names(lab: Any) -> None:
    """Nodes that differ in which attribute has which value are not alike, and do not share kernels."""
    feeds, weights = {"x": numbers(1, 4, 9)}, {"w": numbers(4, 3, 3)}
    node = 'ConvTranspose <auto_pad = "SAME_UPPER", strides = [3], output_padding = [{}], dilations = [{}]> (x, w)'
    body = f"y = {node.format(1, 2)} z = {node.format(2, 1)}"
    first, second = lab.model(body, feeds, weights, ("y", "z")).graph
    assert signature(first) != signature(second)
    lab.check(lab.model(body, feeds, weights, ("y", "z")), feeds)
