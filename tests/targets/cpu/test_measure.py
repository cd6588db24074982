"""Measuring is tested for what it returns and runs, never for how long that takes."""

import math

import pytest

from graphopt.cost.workload import TILE, Operand, Workload
from graphopt.targets.common.measured_node import node_of
from graphopt.targets.cpu.target import CpuTarget

X, W, BIAS = Operand((1, 2, 9, 9, 16)), Operand((2, 2, 3, 3, 16, 16), constant=True), Operand((2, 16), constant=True)
WINDOW = (("strides", (1, 1)), ("pads", (1, 1, 1, 1)), ("dilations", (1, 1)), ("group", 1))
DIRECT = Workload("Conv2dBlocked", (X, W, BIAS), (1, 2, 9, 9, 16), WINDOW)
WINOGRAD = Workload(
    "Conv2dWinograd",
    (X, Operand((16, 2, 2, 16, 16), constant=True), BIAS),
    (1, 2, 9, 9, 16),
    (("m", 2), ("pads", (1, 1, 1, 1))),
)
TO_BLOCKED = Workload("ToBlocked", (Operand((1, 20, 5, 5)),), (1, 2, 5, 5, 16), (("block", 16),))
PLANAR = Workload(
    "Conv",
    (Operand((1, 4, 8, 8)), Operand((6, 4, 3, 3), constant=True), Operand((6,), constant=True)),
    (1, 6, 6, 6),
    domain="",
)
UNKNOWN = Workload("NoSuchOperator", (X,), (1, 2, 9, 9, 16))


@pytest.fixture(scope="module")
def target() -> CpuTarget:
    return CpuTarget("avx512" if CpuTarget("avx512").cannot_measure() is None else None, 1)


def test_every_work_gets_its_seconds(target: CpuTarget) -> None:
    groups = [[(DIRECT, ""), (WINOGRAD, ""), (UNKNOWN, "")], [(TO_BLOCKED, "")], [(PLANAR, "")], []]
    found = target.measure(groups)
    assert [len(group) for group in found] == [3, 1, 1, 0]
    assert found[0][2] is None
    for timing in (*found[0][:2], *found[1], *found[2]):
        assert timing is not None
        assert 0 < timing.low <= timing.seconds <= timing.high < math.inf
        assert timing.tile == ""


def test_nothing_is_timed_where_nothing_can_be_built(target: CpuTarget) -> None:
    assert target.measure([[(UNKNOWN, ""), (UNKNOWN, "")], []]) == [[None, None], []]


def test_the_node_is_what_the_work_says() -> None:
    node = node_of(DIRECT, "14x2")
    assert (node.domain, node.op_type) == ("graphopt", "Conv2dBlocked")
    assert node.metadata_props[TILE] == "14x2"
    assert [value.const_value is not None for value in node.inputs if value is not None] == [False, True, True]
    assert list(node.attributes["pads"].as_ints()) == [1, 1, 1, 1]
    shape = node.outputs[0].shape
    assert shape is not None
    assert tuple(shape.numpy()) == DIRECT.shape


def test_a_level_that_this_processor_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.runtime.devices.host.features", lambda: frozenset({"sse2"}))
    assert CpuTarget("avx2").cannot_measure() == "this processor lacks features of avx2"


def test_facts_tell_machines_apart(target: CpuTarget) -> None:
    facts = target.cost_facts()
    assert set(facts) == {"processor", "threads", "level", "tvm", "kernels"}
    assert all(facts.values())
