"""Winograd convolutions along one axis, apart and in one pass, against the operator's body."""

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.cost.workload import TILE
from graphopt.ops.conv import pack_bias
from graphopt.ops.winograd import winograd_weight
from graphopt.targets.cpu.kernels.conv.winograd import Blocks, Tile
from graphopt.targets.cpu.kernels.conv.winograd_fused import tiles
from graphopt.targets.cpu.machine import detect
from graphopt.verify.oracle import Tolerance, run_onnxruntime
from tests.helpers.equal import require_equal

SIZES = [(2, 3), (4, 3), (6, 3), (2, 5), (4, 5), (6, 5), (2, 7), (4, 7)]


def numbers(*shape: int) -> Any:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def blocked(x: Any, b: int) -> Any:
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, -c % b), (0, 0), (0, 0)))
    return np.ascontiguousarray(padded.reshape(n, -1, b, h, w).transpose(0, 1, 3, 4, 2))


def model(lab: Any, tile: str, m: int, w: Any, pads: Any, feeds: Any, body: str = "y = Identity(c)") -> Any:
    """One convolution with `tile`, whose result c the body goes on with; x of `feeds` is blocked."""
    b, axis = feeds["x"].shape[4], 2 if w.shape[3] == 1 else 3
    constants = {"u": winograd_weight(w, m, b), "bias": pack_bias(numbers(len(w)).astype(w.dtype), b)}
    node = f"c = graphopt.Conv2dWinogradAxis<m={m}, axis={axis}, pads={list(pads)}>(x, u, bias)"
    made = lab.model(f"{node} {body}", feeds, constants)
    made.graph[0].metadata_props[TILE] = tile
    return made


def check(
    lab: Any,
    tile: str,
    size: tuple[int, int],
    channels: tuple[int, int],
    plane: tuple[int, int],
    pads: Any,
    batch: int = 1,
    axis: int = 3,
) -> Any:
    """Lower one convolution followed by a residual and a Relu with `tile`; the calls, after comparing the numbers."""
    b, (m, r) = lab.target.cpu.lanes(), size
    kernel = (r, 1) if axis == 2 else (1, r)
    out = [plane[i] + pads[i] + pads[i + 2] - kernel[i] + 1 for i in range(2)]
    c, o = channels
    feeds = {"x": blocked(numbers(batch, c, *plane), b), "r": blocked(numbers(batch, o, *out), b)}
    made = model(lab, tile, m, numbers(o, c, *kernel), pads, feeds, "a = Add(c, r) y = Relu(a)")
    lowered = lab.lower(made)
    assert lowered.notes == []
    tolerance = 1e-4 if m + r > 10 else 3e-5  # ten taps round more
    require_equal(
        run_onnxruntime(made, feeds), lab.execute(lowered, feeds), tile, {"float32": Tolerance(tolerance, tolerance)}
    )
    return lowered.calls


@pytest.mark.parametrize("size", SIZES)
def test_rows(any_lab: Any, size: tuple[int, int]) -> None:
    """Odd lengths, channels that fill no block, and a row that is shorter than a tile."""
    assert len(check(any_lab, "5x1", size, (20, 32), (1, 37), (0, 2, 0, 1), batch=2)) == 3
    assert len(check(any_lab, "3x2", size, (16, 32), (1, 1), (0, 3, 0, 3), batch=3)) == 3


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("axis", [2, 3])
def test_planes(lab: Any, size: tuple[int, int], axis: int) -> None:
    """Both axes of planes, padded on both, in three kernels and in one."""
    assert len(check(lab, "4x2", size, (16, 32), (11, 9), (1, 2, 3, 0), axis=axis)) == 3
    assert len(check(lab, "fused2:4x2", size, (16, 32), (11, 9), (1, 2, 3, 0), axis=axis)) == 1


@given(
    size=st.sampled_from(SIZES),
    axis=st.sampled_from([2, 3]),
    rows=st.integers(0, 3),
    columns=st.integers(1, 9),
    vectors=st.integers(1, 2),
    channels=st.tuples(st.integers(1, 40), st.sampled_from([32, 64])),
    plane=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    pads=st.tuples(*[st.integers(0, 3)] * 4),
    batch=st.integers(1, 3),
)
@settings(deadline=None, max_examples=15, suppress_health_check=list(HealthCheck))
def test_any_tile_of_any_shape(
    lab: Any, size: Any, axis: int, rows: int, columns: int, vectors: int, **case: Any
) -> None:
    if case["plane"][axis - 2] + case["pads"][axis - 2] + case["pads"][axis] >= size[1]:
        check(lab, str(Tile(columns, vectors, rows)), size, axis=axis, **case)


def test_in_double_precision(lab: Any) -> None:
    feeds = {"x": blocked(np.random.default_rng(0).standard_normal((2, 16, 1, 30)), 8)}
    made = model(lab, "5x1", 4, np.random.default_rng(1).standard_normal((16, 16, 1, 5)), (0, 2, 0, 2), feeds)
    lab.check(made, feeds)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_the_tiles_that_read_it(lab: Any, special: float) -> None:
    b, m, r = lab.target.cpu.lanes(), 4, 5
    feeds = {"x": blocked(numbers(2, 16, 1, 32), b)}
    made = model(lab, "5x1", m, numbers(16, 16, 1, r), (0, 2, 0, 2), feeds)
    lowered = lab.lower(made)
    before = lab.execute(lowered, feeds)["y"]
    x = feeds["x"].copy()
    x[1, 0, 0, 13, 3] = special
    after = lab.execute(lowered, {"x": x})["y"]
    reads = [place for place in range(32) if place // m * m - 2 <= 13 < place // m * m - 2 + m + r - 1]
    windows = [place for place in range(32) if place - 2 <= 13 < place - 2 + r]
    others = [place for place in range(32) if place not in reads]
    assert not np.isfinite(after[1, :, 0, windows]).any()
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[1][:, :, others], before[1][:, :, others])


def test_denormals_are_kept(lab: Any) -> None:
    b = lab.target.cpu.lanes()
    feeds = {"x": blocked(numbers(1, 16, 1, 21) * np.float32(1e-40), b)}
    w = numbers(16, 16, 1, 3)
    constants = {"u": winograd_weight(w, 2, b), "bias": pack_bias(np.zeros(16, np.float32), b)}
    made = lab.model("y = graphopt.Conv2dWinogradAxis<m=2, axis=3, pads=[0, 1, 0, 1]>(x, u, bias)", feeds, constants)
    actual = lab.execute(lab.lower(made), feeds)["y"]
    expected = run_onnxruntime(made, feeds)["y"]
    assert np.abs(expected).max() > 1e-40
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-43)


def test_taps_of_a_tile_do_not_share_a_cache_set(lab: Any) -> None:
    """Two images with 8 tiles of 512 channels: the place that is computed more has no image, and nothing reads it."""
    blocks = Blocks.of((1, 16), (1, 2), images=2)
    assert (blocks.places, blocks.apart(32 * 64).places) == (16, 17)
    check(lab, "8x2", (2, 3), (512, 64), (1, 16), (0, 1, 0, 1), batch=2)


@pytest.mark.parametrize(("plane", "batch"), [((1, 500), 1), ((1, 4), 300), ((17, 17), 1)])
@pytest.mark.parametrize(("m", "r"), [(6, 3), (4, 5), (4, 7)])
def test_every_tile_that_is_offered_fits(lab: Any, m: int, r: int, plane: tuple[int, int], batch: int) -> None:
    b, machine = lab.target.cpu.lanes(), detect(None, 2)
    feeds = {"x": numbers(batch, 1, *plane, b)}
    constants = {"u": numbers(m + r - 1, 4, 1, b, b), "bias": numbers(4, b)}
    for axis, tile in ((3, (1, m)), (2, (m, 1))):
        if plane[axis - 2] < r - 2:
            continue
        pads = [0, r // 2, 0, r // 2] if axis == 3 else [r // 2, 0, r // 2, 0]
        for each in tiles(plane, tile, m + r - 1, 1, 4, batch, machine):
            made = lab.model(
                f"y = graphopt.Conv2dWinogradAxis<m={m}, axis={axis}, pads={pads}>(x, u, bias)", feeds, constants
            )
            made.graph[0].metadata_props[TILE] = str(each)
            assert lab.lower(made).notes == [], each
