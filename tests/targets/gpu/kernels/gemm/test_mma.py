"""Products on tensor cores: their numbers with emulated instructions, and what the assembler makes of the real ones."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tvm import te, tirx

from graphopt.targets.gpu import code, devices, nvrtc, rules
from graphopt.targets.gpu.kernels.gemm import mma, mma_tile, product
from graphopt.targets.gpu.kernels.gemm.axes import Axes
from graphopt.targets.gpu.kernels.gemm.tensor_cores import KINDS, TensorCores
from tests.helpers.gemm import Sizes, matmul, normal_form, operands
from tests.helpers.matrix_units import PRELUDE, MatrixUnits

SMALL = (
    mma_tile.Tile(64, 64, 32, 32, 32, 3),
    mma_tile.Tile(32, 32, 32, 16, 16, 2, 2),
    mma_tile.Tile(16, 64, 32, 16, 32, 4),
    mma_tile.Tile(64, 16, 64, 16, 16, 2, 4),
)
"""Tiles of the same make as `mma.TILES`, as far as a small device's shared memory goes."""


def scaled(tile: mma_tile.Tile, kind: str) -> mma_tile.Tile:
    return replace(tile, k=tile.k // 2) if kind == "tf32" else tile


def check(
    execute: Any, tile: mma_tile.Tile, kind: str, sizes: Sizes, transposed: tuple[bool, bool], units: Any
) -> None:
    given, expected = operands(sizes, transposed)
    function = mma.emit(normal_form(matmul(sizes, transposed)), scaled(tile, kind), units)
    (y,) = execute(function, given, [np.empty(expected.shape, np.float32)], prelude=PRELUDE)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("sizes", [(1, 64, 128, 96), (2, 75, 90, 100), (1, 72, 40, 77), (3, 1, 200, 8)])
def test_every_way_that_operands_lie(execute: Any, sizes: Sizes, transposed: tuple[bool, bool], kind: str) -> None:
    """Copied 16 bytes at a time along k or across it, or fetched one by one; neither size fits a tile."""
    check(execute, SMALL[0], kind, sizes, transposed, MatrixUnits(kind))


@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize("tile", SMALL, ids=str)
def test_tiles_stages_and_parts(execute: Any, tile: mma_tile.Tile, kind: str) -> None:
    """More slices than stages, and fewer; with a split, the last part of k is shorter or empty."""
    for k in (40, 8 * tile.k + 8):
        check(execute, tile, kind, (2, 2 * tile.m - 3, tile.n + 8, k), (False, False), MatrixUnits(kind))


@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize("blocks", [2, 5, 7, 40])
def test_streams(execute: Any, kind: str, blocks: int) -> None:
    """Six tiles: in whole rounds, left over from them, fewer than blocks; a block ends one tile and begins the next."""
    tile = replace(SMALL[0], stream=blocks)
    check(execute, tile, kind, (2, 70, 150, 200), (False, True), MatrixUnits(kind))
    check(execute, replace(SMALL[1], split=1, stream=blocks), kind, (1, 40, 90, 77), (True, False), MatrixUnits(kind))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.tuples(st.integers(1, 2), st.integers(1, 80), st.integers(1, 80), st.integers(1, 130)),
    st.tuples(st.booleans(), st.booleans()),
    st.sampled_from(SMALL),
    st.sampled_from(["float16", "tf32"]),
)
def test_any_shape(execute: Any, sizes: Sizes, transposed: tuple[bool, bool], tile: mma_tile.Tile, kind: str) -> None:
    check(execute, tile, kind, sizes, transposed, MatrixUnits(kind))


def test_an_early_reader_is_noticed(execute: Any) -> None:
    """The emulated copies arrive when they are waited for: waiting for one group less reads what is not there."""

    class Hasty(MatrixUnits):
        def wait(self, pending: int) -> None:
            super().wait(pending + 1)

    with pytest.raises(AssertionError, match="Not equal"):
        check(execute, SMALL[0], "float16", (1, 64, 64, 256), (False, False), Hasty("float16"))


def test_a_barrier_before_every_slice() -> None:
    """Emulated instructions have barriers of their own, which would hide a missing one: so it is looked for here."""
    source = cuda(mma_tile.TILES[2], "float16", devices.DEVICES["a100"]).source
    loop = source[source.index("#pragma unroll 1") : source.index("ldmatrix_sync", source.index("#pragma unroll 1"))]
    assert loop.index("wait_group_2()") < loop.index("__syncthreads()") < loop.index("cp_async_cg")


def cuda(
    tile: mma_tile.Tile, kind: str, device: devices.GpuSpec, transposed: tuple[bool, bool] = (False, False)
) -> Any:
    function = matmul((1, 512, 512, 512), transposed, KINDS[kind], tf32=kind == "tf32")
    found = normal_form(function)
    assert found.kind == kind
    return code.generate("kernel", mma.emit(found, scaled(tile, kind), TensorCores(kind)), device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", mma_tile.TILES, ids=str)
def test_registers_and_shared_memory(tile: mma_tile.Tile, kind: str) -> None:
    """No tile spills with as many blocks on a multiprocessor as its estimate counts on; shared memory fits sm_80."""
    device = devices.DEVICES["a100"]
    for transposed in ((False, True), (True, False)):
        made = cuda(tile, kind, device, transposed)
        (launch,) = made.launches
        (resources,) = nvrtc.compile_cuda(made.bounded(made.resident), device.arch).resources.values()
        assert resources.spilled == 0
        assert launch.shared <= device.shared_per_block
        assert resources.blocks(tile.threads, launch.shared, device) >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_instructions(kind: str) -> None:
    """The source asks for tensor cores, pieces of shared memory, and copies past the registers."""
    source = cuda(mma_tile.TILES[2], kind, devices.DEVICES["h100"]).source
    shape, name = ("m16n8k8", "tf32") if kind == "tf32" else ("m16n8k16", {"float16": "f16"}.get(kind, "bf16"))
    assert f"mma.sync.aligned.{shape}.row.col.f32.{name}.{name}.f32" in source
    assert "ldmatrix.sync.aligned.m8n8.x4" in source
    assert "cp.async.cg.shared.global" in source
    assert ("cvt.rna.tf32.f32" in source) == (kind == "tf32")


@pytest.mark.parametrize("more", [{"split": 2}, {"stream": 5}])
def test_kernels_of_one_function(more: dict[str, int]) -> None:
    """All of them become machine code together, though what they keep in shared memory is of different types."""
    made = cuda(replace(mma_tile.TILES[4], **more), "float16", devices.DEVICES["a100"])
    assert len(made.launches) == (2 if "split" in more else 3)
    compiled = nvrtc.compile_cuda(made.bounded(made.resident), "sm_80")
    assert set(compiled.resources) == {launch.entry for launch in made.launches}


def test_halves_and_marked_floats_go_there_and_nothing_else() -> None:
    device = devices.DEVICES["h100"]
    sizes = (1, 512, 512, 512)

    def precision(function: Any, on: devices.GpuSpec = device) -> str:
        return rules.apply(function, on).plan.precision

    assert precision(matmul(sizes, dtype="float16")) == "fp16 mma"
    assert precision(matmul(sizes, dtype="bfloat16")) == "bf16 mma"
    assert precision(matmul(sizes, tf32=True)) == "tf32 mma"
    assert precision(matmul(sizes)) == ""
    assert precision(matmul(sizes, tf32=True), devices.OPENCL) == ""


def test_estimates_follow_the_device() -> None:
    """No tile is expected to beat the cores' peak, and a large product comes near what this instruction reaches."""
    for name, device in devices.DEVICES.items():
        function = normal_form(matmul((1, 4096, 4096, 4096), dtype="float16"))
        best = mma.tiles(function, device, TensorCores("float16"))[0]
        rate = 2 * 4096**3 / best.seconds
        assert 0.3 * device.rates["float16"] < rate < device.rates["float16"], name


def test_conditions_are_copied_along(execute: Any) -> None:
    """An operand that is zero in places, by whole chunks: the copy writes zeros there."""
    m, n, k = 40, 48, 64
    a = te.placeholder((m, k), "float32", name="a")
    b = te.placeholder((n, k), "float32", name="b")
    y = product.compute(
        lambda _, i, r: tirx.if_then_else(
            tirx.all(tirx.floordiv(r, 16) != 1, i > 3), a[i, r], tirx.const(0, "float32")
        ),
        lambda _, r, j: b[j, r],
        (1, m, n, k),
        Axes.plain((m, n), (0, 1, 1), m),
        "float32",
    )
    found = normal_form(te.create_prim_func([a, b, y]))
    template = mma.Template(found, SMALL[0], MatrixUnits("float16"))
    assert [side.asynchronous for side in template.sides] == [True, True]
    rng = np.random.default_rng(1)
    given = [rng.standard_normal(shape).astype(np.float32) for shape in ((m, k), (n, k))]
    masked = given[0].copy()
    masked[:, 16:32] = 0
    masked[:4] = 0
    function = mma.emit(found, SMALL[0], MatrixUnits("float16"))
    (out,) = execute(function, given, [np.empty((m, n), np.float32)], prelude=PRELUDE)
    np.testing.assert_allclose(out, masked @ given[1].T, rtol=1e-4, atol=1e-4)


def test_numbers_of_stored_neighbours() -> None:
    """Results are stored four at a time where they are neighbours in memory; columns here are rows there."""
    found = normal_form(matmul((1, 64, 64, 64), dtype="float16"))
    source = code.generate(
        "kernel", mma.emit(found, mma_tile.TILES[6], TensorCores("float16")), devices.DEVICES["a100"]
    ).source
    assert re.search(r"\*\(half4\*\)\(relu_ptr", source)


def test_functions_in_the_epilogue(execute: Any) -> None:
    """erf is called for one number at a time; results are stored together all the same."""

    def gelu(dtype: str) -> Any:
        m, n, k = 40, 48, 64
        a, b = te.placeholder((m, k), dtype, name="a"), te.placeholder((n, k), dtype, name="b")
        axes = Axes.plain((m, n), (0, 1, 1), m)
        y = product.compute(
            lambda _, i, r: a[i, r], lambda _, r, j: b[j, r], (1, m, n, k), axes, dtype, accumulate="float32"
        )
        half = tirx.const(0.5, "float32")

        def element(*index: Any) -> Any:
            value = y(*index).astype("float32")
            return (half * value * (1 + tirx.erf(value * tirx.const(0.5**0.5, "float32")))).astype(dtype)

        return te.create_prim_func([a, b, te.compute((m, n), element, name="gelu")])

    rng = np.random.default_rng(2)
    given = [rng.standard_normal(shape).astype(np.float32) for shape in ((40, 64), (48, 64))]
    function = mma.emit(normal_form(gelu("float32")), SMALL[0], MatrixUnits("float16"))
    (out,) = execute(function, given, [np.empty((40, 48), np.float32)], prelude=PRELUDE)
    sums = given[0].astype(np.float64) @ given[1].T
    np.testing.assert_allclose(out, 0.5 * sums * (1 + np.vectorize(math.erf)(sums * 0.5**0.5)), rtol=1e-4, atol=1e-4)
    emitted = mma.emit(normal_form(gelu("float16")), mma_tile.TILES[6], TensorCores("float16"))
    source = code.generate("kernel", emitted, devices.DEVICES["a100"]).source
    assert re.search(r"\*\(half4\*\)\(gelu_ptr", source)
