"""Products on a GPU: every tile, ragged sizes, operands that are computed where they are read, fused epilogues."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tvm import te

from graphopt.targets.gpu import code, devices, nvrtc
from graphopt.targets.gpu.kernels.gemm import product, simt
from tests.helpers.gemm import Sizes, matmul, normal_form


def operands(sizes: Sizes, transposed: tuple[bool, bool] = (False, False), dtype: str = "float32") -> Any:
    batch, m, n, k = sizes
    rng = np.random.default_rng(0)
    a = rng.standard_normal((batch, m, k)).astype(dtype)
    b = rng.standard_normal((batch, k, n)).astype(dtype)
    bias = rng.standard_normal(n).astype(dtype)
    expected = np.maximum(a.astype(np.float64) @ b.astype(np.float64) + bias, 0)
    return (a.swapaxes(1, 2) if transposed[0] else a, b.swapaxes(1, 2) if transposed[1] else b, bias), expected


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(
    "sizes", [(1, 64, 128, 32), (2, 33, 17, 5), (1, 1, 1000, 70), (3, 130, 1, 9), (1, 200, 136, 40)]
)
def test_product_and_epilogue(run: Any, sizes: Sizes, transposed: tuple[bool, bool]) -> None:
    given, expected = operands(sizes, transposed)
    (y,) = run(matmul(sizes, transposed), given, [np.empty(expected.shape, np.float32)])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("split", [1, 2, 4])
@pytest.mark.parametrize("tile", simt.TILES, ids=str)
def test_every_tile(execute: Any, tile: simt.Tile, split: int) -> None:
    """Neither m, n nor k is a multiple of any tile; with a split, the last part of k is shorter or empty."""
    sizes = (2, 2 * tile.m - 3, tile.n + 5, 4 * tile.k + 3)
    given, expected = operands(sizes)
    function = simt.emit(normal_form(matmul(sizes)), dataclasses.replace(tile, split=split))
    (y,) = execute(function, given, [np.empty(expected.shape, np.float32)])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_doubles_are_summed_in_doubles(run: Any) -> None:
    sizes = (1, 40, 30, 200)
    given, expected = operands(sizes, dtype="float64")
    (y,) = run(matmul(sizes, dtype="float64"), given, [np.empty(expected.shape)])
    np.testing.assert_allclose(y, expected, rtol=1e-13, atol=1e-13)


def test_a_product_with_few_results_is_split() -> None:
    found = normal_form(matmul((1, 16, 16, 4096)))
    device = devices.DEVICES["h100"]
    assert simt.tiles(found, device)[0].split > 1
    large = normal_form(matmul((1, 4096, 4096, 64)))
    assert simt.tiles(large, device)[0] == simt.TILES[0]


def test_tiles_fit_the_device() -> None:
    small = dataclasses.replace(devices.OPENCL, threads_per_block=64, shared_per_block=8 << 10)
    found = simt.tiles(normal_form(matmul((1, 512, 512, 512))), small)
    assert found
    assert all(tile.threads <= 64 for tile in found)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("device", [devices.DEVICES["a100"], devices.DEVICES["h100"]], ids=str)
@pytest.mark.parametrize("tile", simt.TILES, ids=str)
def test_cuda_code_spills_no_registers(tile: simt.Tile, device: devices.GpuSpec, dtype: str) -> None:
    made = code.generate("kernel", simt.emit(normal_form(matmul((1, 256, 256, 256), dtype=dtype)), tile), device)
    (launch,) = made.launches
    (found,) = nvrtc.compile_cuda(made.bounded(1), device.arch).resources.values()
    assert (found.spilled, found.stack) == (0, 0)
    assert found.shared + launch.shared <= device.shared_per_block
    assert found.blocks(tile.threads, launch.shared, device) >= 2


def test_loads_are_vectors_where_memory_is_aligned() -> None:
    def source(sizes: Sizes) -> str:
        found = normal_form(matmul(sizes))
        return code.generate("kernel", simt.emit(found, simt.TILES[3]), devices.DEVICES["h100"]).source

    assert "*(float4*)(operand" in source((1, 64, 64, 64)).replace("a_ptr", "operand").replace("b_ptr", "operand")
    assert "*(float4*)(b_ptr" not in source((1, 64, 65, 64))  # rows of 65 elements start anywhere


def test_what_is_no_product_is_refused() -> None:
    a = te.placeholder((8, 8), name="a")
    r = te.reduce_axis((0, 8), "r")
    sums = te.compute(
        (1, 8, 8),
        lambda b, i, j: te.max(a[i, r] * a[r, j], axis=[r]),
        name="product",
        attrs={"graphopt.rule": product.NAME, "graphopt.axes": "b1 m8 n8"},
    )
    last = te.compute((1, 8, 8), lambda *i: sums(*i) + 1, name="finish")
    with pytest.raises(ValueError, match="no sum of products"):
        normal_form(te.create_prim_func([a, last]))


def test_more_products_than_a_grid_holds(run: Any) -> None:
    sizes = (70_000, 2, 3, 2)
    given, expected = operands(sizes)
    note = "the schedule rule gpu.product does not fit its shape (70000 products of 2 rows are more than a grid holds)"
    (y,) = run(matmul(sizes), given, [np.empty(expected.shape, np.float32)], note)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
