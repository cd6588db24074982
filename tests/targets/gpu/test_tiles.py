"""The tiles that a product may have: what is offered can be written, and what is wanted is written."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt.cost.workload import Operand, Workload
from graphopt.targets.common.measured_node import node_of
from graphopt.targets.gpu import tiles
from graphopt.targets.gpu.target import CudaTarget, GpuTarget, OpenClTarget


def product(dtype: str = "float32", units: str = "") -> Workload:
    operands = (Operand((300, 512), dtype), Operand((512, 256), dtype, constant=True))
    return Workload("MatMul", operands, (300, 256), domain="", units=units)


def blocked(dtype: str = "float32", units: str = "") -> Workload:
    w = Operand((4, 4, 3, 3, 16, 16), dtype, constant=True)
    operands = (Operand((2, 4, 14, 14, 16), dtype), w, Operand((4, 16), dtype, constant=True))
    window = (("strides", (1, 1)), ("pads", (1, 1, 1, 1)), ("dilations", (1, 1)), ("group", 1))
    return Workload("Conv2dBlocked", operands, (2, 4, 14, 14, 16), window, units=units)


PLANAR = Workload(
    "Conv",
    (Operand((1, 32, 14, 14)), Operand((64, 32, 3, 3), constant=True)),
    (1, 64, 12, 12),
    domain="",
)
WINOGRAD = Workload(
    "Conv2dWinograd",
    (Operand((1, 2, 9, 9, 16)), Operand((16, 2, 2, 16, 16), constant=True), Operand((2, 16), constant=True)),
    (1, 2, 9, 9, 16),
    (("m", 2), ("pads", (1, 1, 1, 1))),
)


def plan(target: GpuTarget, workload: Workload, tile: str) -> tuple[str, Any]:
    """Symbol and plan of the product of `workload`."""
    node = node_of(workload, tile)
    inputs = [value for value in node.inputs if value is not None and value.const_value is None]
    lowered = target.lower([node], inputs, list(node.outputs), {"": 20, "graphopt": 1}, "t_")
    ((symbol, found),) = [(s, each) for s, each in lowered.plans.items() if each.algorithm == "product"]
    return symbol, found


@pytest.mark.parametrize("workload", [product(), blocked(), PLANAR, WINOGRAD], ids=lambda workload: workload.op_type)
def test_every_tile_that_is_offered_is_written(workload: Workload) -> None:
    target = OpenClTarget()
    offered = target.tiles(workload)
    assert offered[0] == ""
    assert 1 < len(offered) <= tiles.FEW
    plans = [plan(target, workload, tile) for tile in offered]
    assert [found.tile for _, found in plans[1:]] == list(offered[1:])
    assert len({symbol for symbol, _ in plans}) == len({found.tile for _, found in plans}) == len(offered)
    seconds = [found.seconds for _, found in plans]
    assert seconds == sorted(seconds)
    assert seconds[-1] <= tiles.WORTH * seconds[0]
    assert set(offered) < set(target.wide_tiles(workload))


@pytest.mark.parametrize(
    "workload", [product("float16"), product(units="tf32"), blocked("float16"), blocked("bfloat16")]
)
def test_tensor_cores_and_ordinary_units_compete(workload: Workload) -> None:
    target = CudaTarget("h100")
    every = target.wide_tiles(workload)
    assert len(set(every)) == len(every)
    written = {plan(target, workload, tile)[1].precision for tile in (every[0], every[1], every[-1])}
    assert any("mma" in units for units in written)
    assert "" in written  # the slowest by estimate
    for tile in target.tiles(workload)[1:]:
        assert plan(target, workload, tile)[1].tile == tile


def test_tf32_is_other_work() -> None:
    assert product().key != product(units="tf32").key
    assert CudaTarget("a100").tiles(product()) != CudaTarget("a100").tiles(product(units="tf32"))


def test_a_tile_that_the_device_does_not_have_leaves_the_default() -> None:
    target = OpenClTarget()
    _, default = plan(target, product(), "")
    for tile in ("128x128x32/64x64^4", "1x1x1/1x1", "nonsense"):
        assert plan(target, product(), tile)[1] == default


def test_nothing_to_choose() -> None:
    target = OpenClTarget()
    to_blocked = Workload("ToBlocked", (Operand((1, 20, 8, 8)),), (1, 2, 8, 8, 16), (("block", 16),))
    integers = Workload("MatMul", (Operand((4, 4), "int64"), Operand((4, 4), "int64")), (4, 4), domain="")
    broken = Workload("Conv2dBlocked", (Operand((1,)),), (1,))
    for workload in (to_blocked, integers, broken):
        assert target.tiles(workload) == ("",)
        assert target.wide_tiles(workload) == ()
