"""Products with square blocks of weights: numbers on PoCL, on emulated tensor cores, and what the assembler says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tvm import s_tir, te, tirx

from graphopt.targets.common.kernels.blocks import blocks_of
from graphopt.targets.gpu import code, devices, nvrtc, rules
from graphopt.targets.gpu.kernels.gemm import mma, mma_tile, ragged, simt, sparse, templates
from graphopt.targets.gpu.kernels.gemm.axes import Axes
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.tensor_cores import KINDS, TensorCores
from tests.helpers.matrix_units import PRELUDE, MatrixUnits

UNITS = (
    mma_tile.Tile(32, 32, 32, 16, 16, 3),
    mma_tile.Tile(64, 32, 16, 32, 16, 2),
    mma_tile.Tile(16, 64, 32, 16, 32, 4),
)
"""Tiles of the same make as `mma.TILES`, as far as a small device's shared memory goes."""


@dataclass(frozen=True)
class Sparse:
    """2 (x @ w + bias), where w has only some of its blocks: the function, its operands, and the result."""

    function: Any
    given: list[NDArray[Any]]
    expected: NDArray[np.float64]

    @property
    def normal_form(self) -> Gemm:
        sch = s_tir.Schedule(self.function)
        return sparse.read(sch, next(block for block in blocks_of(sch) if block.rule == sparse.NAME))


def product(
    m: int,
    n: int,
    k: int,
    side: int,
    kept: NDArray[np.bool_],
    turned: bool = False,
    dtype: str = "float32",
    **more: Any,
) -> Sparse:
    """Blocks of `side` x `side`; `kept` [groups, k / side] says which there are."""
    groups = len(kept)
    rng = np.random.default_rng(0)
    rows, columns = np.nonzero(kept)
    blocks = rng.standard_normal((len(rows), side, side))
    dense = np.zeros((groups, k // side, side, side))
    dense[rows, columns] = blocks
    weights = dense.transpose(1, 2, 0, 3).reshape(k, groups * side)[:, :n]
    x, bias = rng.standard_normal((m, k)), rng.standard_normal(n)
    order = ragged.order(rows, groups)
    longest = max(1, int(kept.sum(axis=1).max()))
    places = te.placeholder((len(rows),), "int32", name="columns")
    bounds = te.placeholder(order.shape, "int32", name="order")
    v = te.placeholder((m, k), dtype, name="x")
    u = te.placeholder(blocks.shape, dtype, name="blocks")
    b = te.placeholder((n,), dtype, name="bias")
    y = sparse.compute(
        lambda row, block, i: v[row, places[block] * side + i],
        u,
        bounds,
        (m, n, groups, longest),
        Axes.plain((m, n), (0, 1, 1), m),
        dtype,
        accumulate="float32",
        turned=turned,
        **more,
    )
    added = te.compute((m, n), lambda i, j: y[i, j] + b[j], name="added")
    result = te.compute((m, n), lambda *i: added(*i) * tirx.const(2, dtype), name="twice")
    given = [
        x.astype(np.float32),
        (blocks.transpose(0, 2, 1) if turned else blocks).astype(np.float32),
        columns.astype(np.int32),
        order,
        bias.astype(np.float32),
    ]
    return Sparse(te.create_prim_func([v, u, places, bounds, b, result]), given, 2 * (x @ weights + bias))


def some(groups: int, columns: int, density: float) -> NDArray[np.bool_]:
    """A pattern with a group that has no block, and one that has all."""
    kept = np.random.default_rng(1).random((groups, columns)) < density
    kept[0], kept[-1] = False, True
    if groups > 2:
        kept[1], kept[-1] = True, False  # the last blocks of all are not those of the last group
    return kept


def check(execute: Any, case: Sparse, function: Any, prelude: str = "") -> None:
    (y,) = execute(function, case.given, [np.empty(case.expected.shape, np.float32)], prelude=prelude)
    np.testing.assert_allclose(y, case.expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("m", "n", "side"), [(70, 96, 32), (1, 100, 32), (33, 128, 64), (16, 150, 64)])
def test_on_cuda_cores(execute: Any, device: devices.GpuSpec, m: int, n: int, side: int, turned: bool) -> None:
    """Columns that fill no group, groups without a block, in every tile that fits."""
    case = product(m, n, 3 * side, side, some(-(-n // side), 3, 0.4), turned)
    fitting = [tile for tile in simt.tiles(case.normal_form, device) if side % tile.n == 0]
    assert {tile.n for tile in fitting} == {width for width in (32, 64) if side % width == 0}
    for tile in fitting[:3]:
        check(execute, case, simt.emit(case.normal_form, tile))


@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("tile", UNITS, ids=str)
def test_on_tensor_cores(execute: Any, tile: mma_tile.Tile, kind: str, turned: bool) -> None:
    """Blocks that are copied asynchronously, whichever way they lie; more slices than stages, and fewer."""
    for side in (32, 64):
        if side % tile.n == 0:
            case = product(40, 3 * side - 8, 4 * side, side, some(3, 4, 0.5), turned)
            check(execute, case, mma.emit(case.normal_form, tile, MatrixUnits(kind)), PRELUDE)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 80), st.integers(1, 130), st.integers(1, 4), st.floats(0, 1))
def test_any_shape(execute: Any, m: int, n: int, columns: int, density: float) -> None:
    kept = np.random.default_rng(2).random((-(-n // 32), columns)) < density
    kept[-1, -1] = True
    case = product(m, n, columns * 32, 32, kept)
    check(execute, case, rules.apply(case.function, devices.OPENCL).function)


def test_without_its_rule(execute: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generic schedule gives the same numbers: a rule costs speed alone."""
    monkeypatch.setattr(rules, "RULES", {})
    case = product(5, 40, 64, 32, some(2, 2, 0.5))
    scheduled = rules.apply(case.function, devices.OPENCL)
    assert scheduled.plan.algorithm != "product"
    check(execute, case, scheduled.function)


def test_nan_stays_in_its_blocks(execute: Any) -> None:
    """What no block reads reaches no output."""
    kept = np.array([[True, False], [False, True]])
    case = product(4, 64, 64, 32, kept)
    case.given[0][:, 40] = np.nan
    (y,) = execute(rules.apply(case.function, devices.OPENCL).function, case.given, [np.empty((4, 64), np.float32)])
    np.testing.assert_allclose(y[:, :32], case.expected[:, :32], rtol=1e-4, atol=1e-4)
    assert np.isnan(y[:, 32:]).all()


def test_the_longest_group_comes_first() -> None:
    order = ragged.order(np.array([0, 2, 2, 2, 3, 3]), 4)
    assert order.tolist() == [0, 1, 1, 4, 6, *(2, 3, 0, 1)]


@pytest.mark.parametrize("arch", ["a100", "h100"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [32, 64])
def test_machine_code(side: int, kind: str, arch: str) -> None:
    """The template that is chosen multiplies on tensor cores, copies asynchronously, and spills nothing."""
    device = devices.DEVICES[arch]
    case = product(256, 512, 512, side, some(512 // side, 512 // side, 0.2), True, KINDS[kind], tf32=kind == "tf32")
    assert case.normal_form.kind == kind
    for tile in [timed.tile for timed in mma.tiles(case.normal_form, device, TensorCores(kind))]:
        assert side % tile.n == 0
        assert (tile.split, tile.stream) == (1, 0)
    chosen = templates.best(case.normal_form, device)
    assert "mma" in chosen.units
    made = code.generate("kernel", chosen.emit(), device)
    assert "cp.async.cg.shared.global" in made.source
    (resources,) = nvrtc.compile_cuda(made.bounded(made.resident), device.arch).resources.values()
    assert resources.spilled == 0


@pytest.mark.parametrize("arch", ["a100", "h100"])
def test_machine_code_of_cuda_cores(arch: str) -> None:
    device = devices.DEVICES[arch]
    case = product(256, 512, 512, 64, some(8, 8, 0.2))
    made = code.generate("kernel", rules.apply(case.function, device).function, device)
    assert "float4" in made.source
    (resources,) = nvrtc.compile_cuda(made.bounded(made.resident), device.arch).resources.values()
    assert resources.spilled == 0
