"""Products by four warps together: their numbers with emulated instructions, and what the assembler makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tvm import te

from graphopt.targets.gpu import code, devices, nvrtc, rules
from graphopt.targets.gpu.kernels import conv_blocked
from graphopt.targets.gpu.kernels.gemm import product, wgmma
from graphopt.targets.gpu.kernels.gemm.axes import Axes
from graphopt.targets.gpu.kernels.gemm.warpgroups import WarpGroups
from graphopt.targets.gpu.kernels.window import Window
from tests.helpers.gemm import matmul, normal_form, operands
from tests.helpers.matrix_units import PRELUDE, MatrixGroups

Sizes = tuple[int, int, int, int]
ALONG = (False, True)
"""Both operands along k: a[m, k], b[n, k]."""

HOPPER = replace(devices.DEVICES["h100"], arch="sm_90a")


def check(execute: Any, sizes: Sizes, tile: wgmma.Tile, units: Any) -> None:
    given, expected = operands(sizes, ALONG)
    function = wgmma.emit(normal_form(matmul(sizes, ALONG)), tile, units, HOPPER)
    (y,) = execute(function, given, [np.empty(expected.shape, np.float32)], prelude=PRELUDE)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tile", [wgmma.Tile(64, 32, 4), wgmma.Tile(128, 16, 4), wgmma.Tile(64, 16, 3)], ids=str)
@pytest.mark.parametrize("sizes", [(1, 64, 32, 64), (1, 128, 64, 512), (2, 75, 90, 200), (1, 5, 8, 8)])
def test_sizes(execute: Any, sizes: Sizes, tile: wgmma.Tile) -> None:
    """Fewer slices than stages and more, sizes that no tile divides, one batch and two."""
    check(execute, sizes, tile, MatrixGroups("float16"))


@pytest.mark.parametrize("split", [2, 4])
def test_parts(execute: Any, split: int) -> None:
    check(execute, (1, 70, 40, 64 * 9 + 8), wgmma.Tile(64, 32, 3, split), MatrixGroups("float16"))


@pytest.mark.parametrize("blocks", [2, 5, 7, 40])
def test_streams(execute: Any, blocks: int) -> None:
    """Twelve tiles of four slices: in whole rounds, left over from them, and fewer than blocks."""
    check(execute, (2, 70, 90, 200), wgmma.Tile(64, 32, 4, stream=blocks), MatrixGroups("float16"))


def test_an_early_reader_is_noticed(execute: Any) -> None:
    class Hasty(MatrixGroups):
        def wait(self, pending: int) -> None:
            super().wait(pending + 1)

    with pytest.raises(AssertionError, match="Not equal"):
        check(execute, (1, 64, 32, 512), wgmma.Tile(64, 32, 4), Hasty("float16"))


def test_a_stage_that_is_still_read_is_noticed(execute: Any) -> None:
    """Products that are waited for one group later read what was overwritten in the meantime."""

    class Late(MatrixGroups):
        def settle(self, sums: Any, pending: int) -> None:
            super().settle(sums, pending and pending + 2)

    with pytest.raises(AssertionError, match="Not equal"):
        check(execute, (1, 64, 32, 512), wgmma.Tile(64, 32, 4), Late("float16"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("tile", wgmma.TILES, ids=str)
def test_machine_code(tile: wgmma.Tile, dtype: str) -> None:
    """Nothing spills with as many blocks as the estimate counts on, and shared memory begins where swizzles count."""
    found = normal_form(matmul((1, 512, 512, 512), ALONG, dtype))
    made = code.generate("kernel", wgmma.emit(found, tile, WarpGroups(dtype), HOPPER), HOPPER)
    (launch,) = made.launches
    (resources,) = nvrtc.compile_cuda(made.bounded(made.resident), HOPPER.arch).resources.values()
    assert resources.spilled == 0
    assert launch.shared <= HOPPER.shared_per_block
    assert resources.blocks(tile.threads, launch.shared, HOPPER) >= tile.resident(HOPPER)
    assert f"wgmma.mma_async.sync.aligned.m64n{tile.n}k16.f32" in made.source
    assert "extern __shared__ __align__(1024)" in made.source
    assert made.source.index("fence.proxy.async") > 0


def test_kernels_of_one_function() -> None:
    """Whole rounds, streamed tiles, and what adds them up become machine code together; none spills."""
    found = normal_form(matmul((1, 1000, 1000, 512), ALONG, "float16"))
    tile = replace(wgmma.TILES[3], stream=40)
    made = code.generate("kernel", wgmma.emit(found, tile, WarpGroups("float16"), HOPPER), HOPPER)
    compiled = nvrtc.compile_cuda(made.bounded(made.resident), HOPPER.arch)
    assert set(compiled.resources) == {launch.entry for launch in made.launches}
    assert len(made.launches) == 3
    assert not any(each.spilled for each in compiled.resources.values())


def test_order_in_a_slice() -> None:
    """Copies are there, the cores may see them, all warps are past the stage that is filled next; then products."""
    found = normal_form(matmul((1, 512, 512, 1024), ALONG, "float16"))
    source = code.generate("kernel", wgmma.emit(found, wgmma.TILES[3], WarpGroups("float16"), HOPPER), HOPPER).source
    loop = source[source.index("#pragma unroll 1") :]
    places = [
        loop.index(text)
        for text in (
            "wait_group_0()",
            "fence_proxy",
            "__syncthreads()",
            "wgmma_fence",
            "mma_async",
            "wgmma_commit_group",
            "cp_async_cg",
            "wgmma_wait_group",
        )
    ]
    assert places == sorted(places)


def test_what_whole_rounds_leave_over_is_streamed() -> None:
    """A few tiles more than the device takes at a time, and deep ones: not a round for them alone."""
    function = matmul((1, 128 * 70, 512, 16384), ALONG, "float16")
    plan = rules.apply(function, HOPPER).plan
    assert plan.tile.endswith(f"~{HOPPER.multiprocessors}")
    even = rules.apply(matmul((1, 128 * 66, 512, 16384), ALONG, "float16"), HOPPER).plan
    assert "~" not in even.tile


def test_what_is_possible() -> None:
    """Halves along k in chunks; not floats, not operands across k, not sums of 12."""
    assert wgmma.possible(normal_form(matmul((1, 64, 64, 64), ALONG, "float16")))
    assert wgmma.possible(normal_form(matmul((1, 64, 64, 64), ALONG, "bfloat16")))
    assert not wgmma.possible(normal_form(matmul((1, 64, 64, 64), ALONG)))
    assert not wgmma.possible(normal_form(matmul((1, 64, 64, 64), (False, False), "float16")))
    assert not wgmma.possible(normal_form(matmul((1, 64, 64, 12), ALONG, "float16")))
    a, b = (te.placeholder((64, 64), "float16", name=name) for name in "ab")
    doubled = product.compute(
        lambda _, i, r: a[i, r] + a[i, r],
        lambda _, r, j: b[j, r],
        (1, 64, 64, 64),
        Axes.plain((64, 64), (0, 1, 1), 64),
        "float16",
        accumulate="float32",
    )
    assert not wgmma.possible(normal_form(te.create_prim_func([a, b, doubled])))


@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(execute: Any, groups: int) -> None:
    """Pixels times weights that lie along k: chunks outside the image are zeros, results lie in blocks of channels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 2 * groups, 7, 9, 16)).astype(np.float32)
    w = rng.standard_normal((32 * groups, 2 * 9 * 16)).astype(np.float32)
    bias = rng.standard_normal((2 * groups, 16)).astype(np.float32)
    out = (2, 2 * groups, 4, 9, 16)
    seen = Window((3, 3), (2, 1), (1, 1), (1, 1))
    given = x, w, bias
    a, u, s = (te.placeholder(each.shape, "float32", name=name) for each, name in zip(given, "awb", strict=True))
    y = conv_blocked.compute(a, u, s, seen, groups, out, "float32")
    found = normal_form(te.create_prim_func([a, u, s, y]))
    function = wgmma.emit(found, wgmma.Tile(64, 32, 4), MatrixGroups("float16"), HOPPER)
    (computed,) = execute(function, given, [np.empty(out, np.float32)], prelude=PRELUDE)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = w.reshape(2 * groups, 16, 2, 3, 3, 16)  # [block, lane, input block, row, column, input lane]
    expected = np.zeros(out) + bias[None, :, None, None]
    for g in range(groups):
        own = slice(2 * g, 2 * g + 2)
        for i in range(3):
            for j in range(3):
                part = padded[:, own, i : i + 8 : 2, j : j + 9]
                expected[:, own] += np.einsum("nchwi,obci->nohwb", part, kernel[own, :, :, i, j])
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-4)
