"""Winograd convolutions with a chosen tile, apart and in one pass, against the operator's body."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from graphopt.cost.workload import TILE
from graphopt.ops.conv import pack_bias
from graphopt.ops.winograd import winograd_weight
from graphopt.targets.cpu.kernels.conv.winograd import Blocks, Tile
from graphopt.targets.cpu.kernels.conv.winograd_fused import SPACE, every_tile, tiles
from graphopt.targets.cpu.machine import detect
from graphopt.verify.oracle import Tolerance, run_onnxruntime
from tests.helpers.equal import require_equal


def numbers(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def blocked(x: Any, b: int) -> Any:
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, -c % b), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, b, h, w).transpose(0, 1, 3, 4, 2))


def check(
    lab: Any, tile: str, m: int, channels: tuple[int, int], plane: tuple[int, int], pads: Any, batch: int = 1
) -> Any:
    """Lower one convolution followed by a residual and a Relu with `tile`; the calls, after comparing the numbers."""
    b = lab.target.cpu.lanes()
    c, o = channels
    out = [plane[axis] + pads[axis] + pads[axis + 2] - 2 for axis in range(2)]
    feeds = {"x": blocked(numbers(batch, c, *plane), b), "r": blocked(numbers(batch, o, *out), b)}
    constants = {"u": winograd_weight(numbers(o, c, 3, 3), m, b), "bias": pack_bias(numbers(o), b)}
    body = f"c = graphopt.Conv2dWinograd<m={m}, pads={list(pads)}>(x, u, bias) a = Add(c, r) y = Relu(a)"
    model = lab.model(body, feeds, constants)
    model.graph[0].metadata_props[TILE] = tile
    lowered = lab.lower(model)
    assert lowered.notes == []
    tolerance = {2: 2e-5, 4: 1e-4, 6: 4e-4}[m]
    require_equal(
        run_onnxruntime(model, feeds), lab.execute(lowered, feeds), tile, {"float32": Tolerance(tolerance, tolerance)}
    )
    return lowered.calls


SHAPES = [
    ((16, 32), (12, 12), (1, 1, 1, 1)),
    ((32, 64), (13, 9), (1, 1, 1, 1)),
    ((20, 32), (9, 23), (0, 2, 1, 0)),
    ((16, 32), (4, 4), (1, 1, 1, 1)),
]


@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize(("channels", "plane", "pads"), SHAPES)
def test_in_one_pass(lab: Any, m: int, channels: tuple[int, int], plane: tuple[int, int], pads: Any) -> None:
    for tile in ("fused1:4x2", "fused2:3x1"):
        assert len(check(lab, tile, m, channels, plane, pads)) == 1


@pytest.mark.parametrize(("m", "tile"), [(2, "fused2:3x1"), (4, "fused1:4x2"), (6, "fused2:3x1")])
def test_in_one_pass_on_every_level(any_lab: Any, m: int, tile: str) -> None:
    assert len(check(any_lab, tile, m, *SHAPES[2])) == 1


@pytest.mark.parametrize("m", [2, 4, 6])
def test_in_three(any_lab: Any, m: int) -> None:
    for tile in ("5x1", "4x2"):
        assert len(check(any_lab, tile, m, *SHAPES[1])) == 3


@given(
    m=st.sampled_from([2, 4, 6]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 9),
    vectors=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 40), st.sampled_from([32, 64])),
    plane=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    pads=st.tuples(*[st.integers(0, 2)] * 4),
    batch=st.integers(1, 2),
)
@settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
def test_any_tile_of_any_shape(lab: Any, m: int, rows: int, columns: int, vectors: int, **case: Any) -> None:
    assume(all(case["plane"][i] + case["pads"][i] + case["pads"][i + 2] >= 3 for i in range(2)))
    check(lab, str(Tile(columns, vectors, rows)), m, **case)


@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize("plane", [(56, 56), (28, 28), (14, 14), (13, 27)])
def test_every_tile_that_is_offered_fits(lab: Any, m: int, plane: tuple[int, int]) -> None:
    """Rows of tiles that do not divide into blocks, blocks whose tiles do not divide into products."""
    b = lab.target.cpu.lanes()
    feeds = {"x": numbers(1, 1, *plane, b)}
    constants = {"u": numbers((m + 2) ** 2, 4, 1, b, b), "bias": numbers(4, b)}
    rows = range(1, 8)
    offered = tiles(plane, (m, m), (m + 2) ** 2, 1, 4, 1, lab.target.cpu)
    for tile in {*offered, *(Tile(shape.columns, shape.vectors, height) for height in rows for shape in offered[:1])}:
        model = lab.model(f"y = graphopt.Conv2dWinograd<m={m}, pads=[1, 1, 1, 1]>(x, u, bias)", feeds, constants)
        model.graph[0].metadata_props[TILE] = str(tile)
        assert lab.lower(model).notes == [], tile


def test_tiles_are_spelled() -> None:
    for tile in (Tile(14, 2), Tile(28, 1, 3)):
        assert Tile.parse(str(tile)) == tile
    for text in ("", "14", "fused:14x2", "0x2", "14x2x1", "fused0:1x1"):
        with pytest.raises(ValueError, match="is no tile of a Winograd convolution"):
            Tile.parse(text)


def test_the_space_fits_registers_and_channels() -> None:
    machine = detect("avx512", 2)
    for out, ci, co in (((224, 224), 4, 4), ((56, 56), 16, 16), ((7, 7), 32, 32), ((3, 3), 1, 3)):
        space = tiles(out, (4, 4), 36, ci, co, 1, machine)
        assert 1 <= len(space) <= SPACE
        assert len(set(space)) == len(space)
        assert set(space) <= set(every_tile(out, (4, 4), co, machine))
        for tile in every_tile(out, (4, 4), co, machine):
            assert co % tile.vectors == 0
            assert (tile.columns + 1) * tile.vectors + 1 <= machine.level.registers


def test_large_maps_with_small_weights_go_in_one_pass_by_default() -> None:
    machine = detect("avx512", 2)
    assert tiles((224, 224), (4, 4), 36, 4, 4, 1, machine)[0].rows > 0
    assert tiles((7, 7), (4, 4), 36, 32, 32, 1, machine)[0].rows == 0


def test_taps_of_a_tile_do_not_share_a_cache_set(lab: Any) -> None:
    """16 tiles of 512 channels: taps 32 KiB apart; a place more is computed, and nothing else changes."""
    check(lab, "8x2", 2, (512, 64), (7, 7), (1, 1, 1, 1))
    blocks = Blocks.of((7, 7), (2, 2))
    assert (blocks.places, blocks.apart(32 * 64).places, blocks.apart(33 * 64).places) == (16, 17, 16)
