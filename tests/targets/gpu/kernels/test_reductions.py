"""Reductions on GPUs: any axes against numpy, cuts that fit and fill the device, shuffles and registers on CUDA."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import s_tir, te, tirx

from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.gpu import code, devices, nvrtc, rules
from graphopt.targets.gpu.kernels import reductions

Array = NDArray[Any]
Shape = tuple[int, ...]

CASES: list[tuple[Shape, tuple[int, ...]]] = [
    ((3, 5000), (1,)),
    ((1, 37, 7, 7), (2, 3)),
    ((40, 6), (0,)),
    ((5000, 70), (0,)),
    ((4, 100, 33), (1,)),
    ((17, 16), (1,)),
    ((1000, 100), (0, 1)),
    ((100_003,), (0,)),
    ((2, 9, 8, 5), (1, 3)),
    ((300, 3), (1,)),
    ((5,), ()),
]


def numbers(*shape: int) -> Array:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


def reduced(shape: Shape, over: tuple[int, ...], kind: str, dtype: str = "float32", tail: bool = True) -> Any:
    """y = 2 * reduce(x * x) + w of the kept axes, as a PrimFunc of (x, w, y); without `tail` the reduction alone."""
    x = te.placeholder(shape, dtype, name="x")
    kept = tuple(extent for axis, extent in enumerate(shape) if axis not in over)
    w = te.placeholder(kept, dtype, name="w")
    axes = {axis: te.reduce_axis((0, shape[axis]), f"r{axis}") for axis in over}
    lowest = te.comm_reducer(lambda a, b: tirx.max(a, b), lambda t: tirx.const(-math.inf, t), name="extreme")
    reduce = {"sum": te.sum, "max": te.max, "min": te.min, "extreme": lowest}[kind]
    squares = te.compute(shape, lambda *i: x(*i) * x(*i), name="squares")

    def element(*i: Any) -> Any:
        outer = iter(i)
        value = squares(*(axes[axis] if axis in over else next(outer) for axis in range(len(shape))))
        return reduce(value, axis=list(axes.values()))

    total = te.compute(kept, element, name="total")
    if not tail:
        return te.create_prim_func([x, total])
    y = te.compute(kept, lambda *i: total(*i) * const(2, dtype) + w(*i), name="y")
    return te.create_prim_func([x, w, y])


@pytest.mark.parametrize("kind", ["sum", "max", "min", "extreme"])
@pytest.mark.parametrize(("shape", "over"), [case for case in CASES if case[1]])
def test_reductions(execute: Any, device: devices.GpuSpec, shape: Shape, over: tuple[int, ...], kind: str) -> None:
    x = numbers(*shape)
    squares = x.astype(np.float64) ** 2
    expected = {"sum": squares.sum, "max": squares.max, "min": squares.min, "extreme": squares.max}[kind](over)
    w = numbers(*expected.shape, 2)[..., 0]
    scheduled = rules.apply(reduced(shape, over, kind), device)
    assert scheduled.plan.algorithm == "sums"
    (found,) = execute(scheduled.function, [x, w], [np.empty(expected.shape, np.float32)], device)
    np.testing.assert_allclose(found, 2 * expected + w, rtol=1e-5, atol=1e-5)
    scheduled = rules.apply(reduced(shape, over, kind, tail=False), device)
    (found,) = execute(scheduled.function, [x], [np.empty(expected.shape, np.float32)], device)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_result_that_is_spread_over_the_row_is_no_such_reduction(execute: Any) -> None:
    x = te.placeholder((7, 300), name="x")
    r = te.reduce_axis((0, 300), "r")
    total = te.compute((7,), lambda i: te.sum(x[i, r], axis=[r]), name="total")
    function = te.create_prim_func([x, te.compute((7, 300), lambda i, j: x[i, j] - total[i], name="y")])
    scheduled = rules.apply(function, devices.OPENCL)
    assert scheduled.plan.algorithm == "elements"
    given = numbers(7, 300)
    (found,) = execute(scheduled.function, [given], [np.empty((7, 300), np.float32)])
    np.testing.assert_allclose(found, given - given.sum(1, keepdims=True), rtol=1e-4, atol=1e-4)


def test_results_that_move_are_no_such_reduction() -> None:
    x = te.placeholder((7, 7, 300), name="x")
    r = te.reduce_axis((0, 300), "r")
    total = te.compute((7, 7), lambda i, j: te.sum(x[i, j, r], axis=[r]), name="total")
    function = te.create_prim_func([x, te.compute((7, 7), lambda i, j: total[j, i], name="y")])
    sch = s_tir.Schedule(function)
    anchor = next(block for block in rules.blocks_of(sch) if block.reduce)
    with pytest.raises(ValueError, match="its results move"):
        reductions.emit(sch, anchor, devices.OPENCL)


WORKS = [
    reductions.Sums(1, 1_000_000, 4, 4, True),
    reductions.Sums(2048, 49, 4, 1, True),
    reductions.Sums(768, 1000, 4, 1, False),
    reductions.Sums(1, 1, 4, 1, True),
    reductions.Sums(100_000, 10, 4, 2, True),
    reductions.Sums(64 * 256, 3136, 2, 1, False),
]


@pytest.mark.parametrize("device", [devices.OPENCL, *devices.DEVICES.values()], ids=lambda device: device.name)
@pytest.mark.parametrize("work", WORKS, ids=str)
def test_cuts_fit_the_device(device: devices.GpuSpec, work: reductions.Sums) -> None:
    made = reductions.launch_config(work, device)
    assert made.threads % device.warp == 0, "shuffles take whole warps"
    assert made.threads <= device.threads_per_block
    assert made.down != work.along
    assert made.results == 1 or made.down or made.lanes <= device.warp
    assert reductions.seconds(work, made, device) > 0


def test_few_results_fill_the_device() -> None:
    device = devices.DEVICES["h100"]

    def threads(work: reductions.Sums) -> int:
        made = reductions.launch_config(work, device)
        return math.ceil(work.results / made.results) * made.parts * made.threads

    assert threads(WORKS[0]) >= device.multiprocessors * 128
    assert threads(WORKS[1]) > 2048 * 4
    assert reductions.launch_config(WORKS[2], device).down


@pytest.mark.parametrize("name", ["a100", "h100"])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("shape", "over"), [((64, 1000), (1,)), ((1000, 1000), (0, 1)), ((1, 2048, 7, 7), (2, 3)), ((1000, 768), (0,))]
)
def test_machine_code(name: str, dtype: str, shape: Shape, over: tuple[int, ...]) -> None:
    """Shuffles where steps are neighbours, sums of halves in single precision, nothing spilled."""
    device = devices.DEVICES[name]
    scheduled = rules.apply(reduced(shape, over, "sum", dtype), device)
    assert scheduled.plan.algorithm == "sums"
    assert scheduled.plan.seconds
    generated = code.generate("kernel", scheduled.function, device)
    assert ("__shfl_down_sync" in generated.source) == ("down" not in scheduled.plan.tile)
    assert "__activemask" not in generated.source
    assert {kind for kind, _ in generated.scratch} <= {"float64" if dtype == "float64" else "float32"}
    for used in nvrtc.compile_cuda(generated.bounded(generated.resident), device.arch).resources.values():
        assert used.spilled == 0
        assert used.stack == 0
