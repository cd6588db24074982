"""Attention on tensor cores: its numbers with emulated instructions, and what the assembler makes of the real ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm import te

from graphopt.targets.gpu import code, devices, nvrtc, rules
from graphopt.targets.gpu.kernels.attention import launch as attention_tiles
from graphopt.targets.gpu.kernels.attention import mma, mma_launch
from graphopt.targets.gpu.kernels.gemm.tensor_cores import TensorCores, Units
from tests.helpers.matrix_units import PRELUDE, MatrixUnits

Array = NDArray[Any]
Sizes = tuple[int, int, int, int, int, int]

TILES = (mma_launch.Tile(1, 32), mma_launch.Tile(2, 32), mma_launch.Tile(2, 64))


def build(
    sizes: Sizes,
    mask: tuple[int, ...] | None,
    tile: mma_launch.Tile,
    units: Units,
    scale: float = 0.3,
    causal_offset: int | None = None,
) -> Any:
    batch, heads, queries, keys, depth, width = sizes
    shapes = [(batch, heads, queries, depth), (batch, heads, keys, depth), (batch, heads, keys, width)]
    given = [te.placeholder(shape, units.dtype, name=f"x{i}") for i, shape in enumerate(shapes)]
    masks = [] if mask is None else [te.placeholder(mask, units.dtype, name="mask")]
    shape = attention_tiles.Shape(batch * heads, queries, keys, depth, width, "float32", causal_offset)
    y = mma.compute(*given, masks[0] if masks else None, scale, shape, tile, units)
    function = te.create_prim_func([*given, *masks, y])
    for key, value in attention_tiles.attributes(shape, tile, devices.DEVICES["a100"]).items():
        function = function.with_attr(key, value)
    return rules.apply(function, devices.DEVICES["a100"]).function


def check(
    execute: Any, sizes: Sizes, tile: mma_launch.Tile, mask: tuple[int, ...] | None = None, dead: int = 0
) -> None:
    """Args: dead: the first so many keys are forbidden by the mask."""
    batch, heads, queries, keys, depth, width = sizes
    rng = np.random.default_rng(sum(sizes))
    shapes = [(batch, heads, queries, depth), (batch, heads, keys, depth), (batch, heads, keys, width)]
    given = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    if mask is not None:
        given.append(rng.standard_normal(mask).astype(np.float32) * 3)
        if dead:
            given[-1][..., :dead] = -np.inf
    q, k, v, *added = (array.astype(np.float64) for array in given)
    scores = 0.3 * q @ k.swapaxes(2, 3) + (added[0] if added else 0)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True)) if not dead else np.exp(scores)
        expected = weights / weights.sum(-1, keepdims=True) @ v
    function = build(sizes, mask, tile, MatrixUnits("float16"))
    (y,) = execute(function, given, [np.empty(expected.shape, np.float32)], prelude=PRELUDE)
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 2, 64, 128, 32, 32),
        (2, 3, 37, 51, 24, 40),
        (1, 1, 1, 1, 8, 8),
        (1, 2, 70, 1, 16, 8),
        (1, 1, 20, 130, 40, 16),
    ],
    ids=str,
)
def test_sizes(execute: Any, sizes: Sizes) -> None:
    """Rows, keys and columns that no tile divides, and rows that are not a whole number of steps."""
    check(execute, sizes, TILES[0])


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("keys", [30, 64, 200])
def test_tiles(execute: Any, tile: mma_launch.Tile, keys: int) -> None:
    check(execute, (1, 2, tile.rows + 5, keys, 16, 24), tile)


@pytest.mark.parametrize("mask", [(40, 51), (1, 51), (2, 1, 1, 51), (2, 3, 40, 51), (1, 1, 40, 1), (1, 1), (3, 1, 51)])
def test_masks(execute: Any, mask: tuple[int, ...]) -> None:
    check(execute, (2, 3, 40, 51, 16, 16), TILES[0], mask)


@pytest.mark.parametrize("dead", [5, 40, 64])
def test_forbidden_keys(execute: Any, dead: int) -> None:
    """A whole tile of them before the first that counts; and no key at all is NaN, as a softmax of nothing is."""
    check(execute, (1, 2, 20, 64, 16, 16), TILES[0], (1, 64), dead)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("arch", ["a100", "h100"])
@pytest.mark.parametrize("depth", [64, 80, 128])
@pytest.mark.parametrize("mask", [None, (1, 1, 1, 384)])
def test_machine_code(arch: str, dtype: str, depth: int, mask: tuple[int, ...] | None) -> None:
    """The tile that is chosen spills nothing, fits, and uses the cores for both products."""
    device = devices.DEVICES[arch]
    shape = attention_tiles.Shape(8 * 12, 384, 384, depth, depth, "float32")
    tile = mma_launch.tiles(shape, device, dtype)[0]
    function = build((8, 12, 384, 384, depth, depth), mask, tile, TensorCores(dtype))
    made = code.generate("kernel", function, device)
    (launch,) = made.launches
    (resources,) = nvrtc.compile_cuda(made.bounded(made.resident), device.arch).resources.values()
    assert resources.spilled == 0
    assert launch.shared <= device.shared_per_block
    assert resources.blocks(tile.threads, launch.shared, device) >= 1
    assert "mma.sync.aligned.m16n8k16" in made.source
    assert "x4.trans.shared.b16" in made.source
    assert "__shfl_xor_sync" in made.source


def test_what_does_not_fit() -> None:
    """Rows of other than whole chunks, and rows beyond the registers."""
    for depth, width in ((20, 64), (64, 136), (64, 4)):
        shape = attention_tiles.Shape(12, 128, 128, depth, width, "float32")
        assert mma_launch.tiles(shape, devices.DEVICES["h100"], "float16") == []


def test_causal_masks(execute: Any) -> None:
    """Tiles that no query of a block sees are not read: they are NaN."""
    sizes = batch, heads, queries, keys, depth, width = 1, 2, 70, 200, 16, 16
    rng = np.random.default_rng(5)
    shapes = [(batch, heads, queries, depth), (batch, heads, keys, depth), (batch, heads, keys, width)]
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
    seen = np.arange(keys) <= np.arange(queries)[:, None] + 3
    mask = np.where(seen, 0, -np.inf).astype(np.float32)[None, None]
    weights = np.exp(0.3 * q.astype(np.float64) @ k.swapaxes(2, 3) + mask)
    expected = weights / weights.sum(-1, keepdims=True) @ v
    k[:, :, 128:] = v[:, :, 128:] = np.nan
    function = build(sizes, mask.shape, TILES[1], MatrixUnits("float16"), causal_offset=3)
    (y,) = execute(function, [q, k, v, mask], [np.empty(expected.shape, np.float32)], prelude=PRELUDE)
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-5)
