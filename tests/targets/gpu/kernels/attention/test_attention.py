"""Attention on a GPU: every tile, ragged sizes, masks of every shape, rows without keys, the assembler's report."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tvm import te

from graphopt import backend
from graphopt.targets.common.converters.base import Context
from graphopt.targets.gpu import code, devices, nvrtc, rules, target
from graphopt.targets.gpu.converters import attention as converters_attention
from graphopt.targets.gpu.kernels.attention import launch as attention_tiles
from graphopt.targets.gpu.kernels.attention import simt
from graphopt.verify.oracle import run_onnxruntime

Array = NDArray[Any]


def _function(
    device: devices.GpuSpec,
    given: list[Array],
    scale: float,
    tile: attention_tiles.Tile | None = None,
    causal_offset: int | None = None,
) -> Any:
    shape = dataclasses.replace(_shape(given), causal_offset=causal_offset)
    placeholders = [te.placeholder(array.shape, str(array.dtype), name=f"x{i}") for i, array in enumerate(given)]
    chosen = tile or attention_tiles.tiles(shape, device)[0]
    mask = placeholders[3] if len(given) > 3 else None
    y = simt.compute(*placeholders[:3], mask, scale, shape, chosen)
    function = te.create_prim_func([*placeholders, y])
    for key, value in attention_tiles.attributes(shape, chosen, device).items():
        function = function.with_attr(key, value)
    return function


def _shape(given: list[Array]) -> attention_tiles.Shape:
    q, k, v = (array.shape for array in given[:3])
    return attention_tiles.Shape(q[0] * q[1], q[2], k[2], q[3], v[3], str(given[0].dtype))


def _inputs(
    batch: int, heads: int, queries: int, keys: int, depth: int, width: int, mask: tuple[int, ...] | None = None
) -> list[Array]:
    rng = np.random.default_rng(queries * keys + depth)
    shapes = [(batch, heads, queries, depth), (batch, heads, keys, depth), (batch, heads, keys, width)]
    if mask is not None:
        shapes.append(mask)  # type: ignore[arg-type]
    return [rng.standard_normal(shape).astype(np.float32) * (3 if i == 3 else 1) for i, shape in enumerate(shapes)]


def _expected(given: list[Array], scale: float) -> Array:
    q, k, v, *mask = (array.astype(np.float64) for array in given)
    scores = scale * q @ k.swapaxes(2, 3) + (mask[0] if mask else 0)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        result: Array = weights / weights.sum(-1, keepdims=True) @ v
    return result


def _check(
    run: Any,
    device: devices.GpuSpec,
    given: list[Array],
    scale: float,
    tile: Any = None,
    causal_offset: int | None = None,
) -> None:
    expected = _expected(given, scale)
    function = _function(device, given, scale, tile, causal_offset)
    (y,) = run(function, given, [np.empty(expected.shape, given[0].dtype)])
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        (1, 2, 64, 128, 64, 64),
        (2, 3, 37, 51, 20, 24),
        (1, 1, 1, 1, 1, 1),
        (1, 2, 1, 300, 32, 48),
        (1, 2, 70, 1, 7, 5),
        (1, 1, 9, 33, 256, 256),
        (1, 1, 40, 130, 72, 18),
    ],
    ids=str,
)
def test_sizes(run: Any, device: devices.GpuSpec, sizes: tuple[int, ...]) -> None:
    _check(run, device, _inputs(*sizes), 0.3)


@pytest.mark.parametrize("tile", attention_tiles.TILES, ids=lambda tile: f"{tile.rows}x{tile.keys}/{tile.a}x{tile.b}")
def test_every_tile(run: Any, device: devices.GpuSpec, tile: attention_tiles.Tile) -> None:
    """With odd and even numbers of slices, and keys that end within a tile."""
    if tile.threads > device.threads_per_block:
        pytest.skip("more threads than the device has")
    given = _inputs(1, 2, tile.rows + 3, 3 * tile.keys - 5, 18, 9, (2, 1, 3 * tile.keys - 5))
    for split, limit in ((1, device.shared_per_block), (2, 48 << 10)):
        made = attention_tiles.sliced(tile, _shape(given), limit)
        if made is not None:
            _check(run, device, given, 0.3, dataclasses.replace(made, split=split))


def test_many_keys(run: Any, device: devices.GpuSpec) -> None:
    """Parts of a row come together."""
    given = _inputs(1, 1, 2, 4096, 16, 16)
    tile = attention_tiles.tiles(_shape(given), device)[0]
    assert tile.split > 1
    _check(run, device, given, 0.5)


@pytest.mark.parametrize(
    "mask", [(2, 3, 17, 70), (1, 1, 17, 70), (2, 1, 1, 70), (17, 70), (70,), (1,), (2, 1, 17, 1)], ids=str
)
def test_masks(run: Any, mask: tuple[int, ...]) -> None:
    _check(run, devices.OPENCL, _inputs(2, 3, 17, 70, 12, 12, mask), 0.3)


@pytest.mark.parametrize("split", [1, 3])
def test_forbidden_keys(run: Any, device: devices.GpuSpec, split: int) -> None:
    """Rows that see nothing in their first or last tiles are right; a row that sees nothing at all is NaN."""
    given = _inputs(1, 2, 9, 130, 8, 8, (9, 130))
    mask = given[3]
    mask[0, :100] = mask[1, 3:] = mask[2] = mask[3, ::2] = -np.inf
    mask[4, :70] = np.finfo(np.float32).min
    expected = _expected(given, 0.3)
    assert np.isnan(expected[:, :, 2]).all()
    assert np.isnan(expected).sum() == expected.size // 9
    shape = _shape(given)
    tile = next(t for t in attention_tiles.tiles(shape, device) if t.keys == 32 and t.split == 1)
    _check(run, device, given, 0.3, dataclasses.replace(tile, split=split))


def test_double_precision(run: Any, device: devices.GpuSpec) -> None:
    given = [array.astype(np.float64) for array in _inputs(1, 2, 30, 65, 20, 12, (65,))]
    expected = _expected(given, 0.3)
    (y,) = run(_function(device, given, 0.3), given, [np.empty(expected.shape)])
    np.testing.assert_allclose(y, expected, rtol=1e-12)


def test_large_scores_do_not_overflow(run: Any, device: devices.GpuSpec) -> None:
    given = _inputs(1, 1, 8, 200, 16, 16)
    _check(run, device, [given[0] * 30, *given[1:]], 10.0)


def test_what_does_not_fit() -> None:
    wide = attention_tiles.Shape(1, 64, 64, 2000, 2000, "float32")
    assert attention_tiles.tiles(wide, devices.OPENCL) == []
    assert attention_tiles.tiles(dataclasses.replace(wide, depth=256, width=256), devices.OPENCL)


@pytest.mark.parametrize("device", [devices.OPENCL, *devices.DEVICES.values()], ids=lambda device: device.name)
@pytest.mark.parametrize("depth", [1, 64, 80, 256])
def test_tiles_fit_the_device(device: devices.GpuSpec, depth: int) -> None:
    shape = attention_tiles.Shape(12, 128, 128, depth, depth, "float32")
    found = attention_tiles.tiles(shape, device)
    assert found
    for tile in found:
        assert tile.shared(shape) <= device.shared_per_block
        assert tile.threads <= device.threads_per_block
        assert tile.across % 4 == 0
        assert tile.keys % tile.v_slice == 0


@pytest.mark.parametrize("name", ["a100", "h100"])
@pytest.mark.parametrize(
    ("sizes", "mask"),
    [
        ((1, 12, 128, 128, 64, 64), (128,)),
        ((1, 12, 1024, 1024, 64, 64), (1024, 1024)),
        ((1, 12, 1, 1024, 64, 64), None),
    ],
    ids=["bert", "gpt2", "gpt2 decoding"],
)
def test_machine_code(name: str, sizes: tuple[int, ...], mask: tuple[int, ...] | None) -> None:
    """Nothing is spilled, and the blocks that were planned fit on a multiprocessor."""
    device = devices.DEVICES[name]
    given = _inputs(*sizes, mask)
    shape = _shape(given)
    tile = attention_tiles.tiles(shape, device)[0]
    made = code.generate("kernel", rules.apply(_function(device, given, 0.125), device).function, device)
    resident = tile.resident(shape, device)
    assert made.resident == resident
    compiled = nvrtc.compile_cuda(made.bounded(resident), device.arch)
    for launch in made.launches:
        found = compiled.resources[launch.entry]
        assert found.spilled == 0
        assert found.shared + launch.shared <= device.shared_per_block
    first = made.launches[0]
    assert compiled.resources[first.entry].blocks(tile.threads, first.shared, device) >= resident


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_machine_code_of_other_types(dtype: str) -> None:
    device = devices.DEVICES["a100"]
    shape = attention_tiles.Shape(12, 128, 128, 64, 64, "float64" if dtype == "float64" else "float32")
    tile = attention_tiles.tiles(shape, device)[0]
    tensors = [te.placeholder((1, 12, 128, 64), dtype, name=name) for name in "qkv"]
    y = simt.compute(*tensors, None, 0.125, shape, tile)
    function = te.create_prim_func([*tensors, y])
    for key, value in attention_tiles.attributes(shape, tile, device).items():
        function = function.with_attr(key, value)
    made = code.generate("kernel", rules.apply(function, device).function, device)
    assert nvrtc.compile_cuda(made.source, device.arch).resources["kernel_kernel"].spilled == 0


@pytest.mark.parametrize(("k_slice", "v_slice"), [(4, 32), (8, 16), (12, 8), (20, 4)])
def test_slices(run: Any, device: devices.GpuSpec, k_slice: int, v_slice: int) -> None:
    """Their number decides which half of the shared memory a tile of keys begins with."""
    tile = attention_tiles.Tile(4, 32, 1, 2, k_slice, v_slice)
    _check(run, device, _inputs(1, 2, 6, 100, 18, 24), 0.3, tile)


def _causal(queries: int, keys: int, causal_offset: int, low: float = -np.inf) -> Array:
    """A mask that lets query s see keys up to s + causal_offset."""
    return np.where(np.arange(keys) <= np.arange(queries)[:, None] + causal_offset, 0, low).astype(np.float32)[
        None, None
    ]


@pytest.mark.parametrize("split", [1, 2])
@pytest.mark.parametrize(("queries", "keys", "causal_offset"), [(70, 70, 0), (40, 130, 90), (9, 200, 3), (130, 100, 1)])
def test_causal_masks(
    run: Any, device: devices.GpuSpec, queries: int, keys: int, causal_offset: int, split: int
) -> None:
    """Tiles that no query of a block sees are not looked at."""
    given = [*_inputs(1, 2, queries, keys, 16, 24), _causal(queries, keys, causal_offset)]
    tile = attention_tiles.Tile(16, 32, 2, 2, 16, 32, split)
    if tile.threads > device.threads_per_block:
        pytest.skip("more threads than the device has")
    _check(run, device, given, 0.3, tile, causal_offset)


def test_what_is_skipped_is_not_read(run: Any, device: devices.GpuSpec) -> None:
    given = [*_inputs(1, 2, 9, 200, 16, 24), _causal(9, 200, 3)]
    expected = _expected(given, 0.3)
    given[1][:, :, 64:] = given[2][:, :, 64:] = np.nan
    function = _function(device, given, 0.3, attention_tiles.Tile(4, 32, 1, 2, 16, 32), 3)
    (y,) = run(function, given, [np.empty(expected.shape, np.float32)])
    np.testing.assert_allclose(y, expected, rtol=2e-4, atol=2e-5)


def test_half_of_a_causal_square_is_half_the_work() -> None:
    shape = attention_tiles.Shape(12, 1024, 1024, 64, 64, "float32")
    causal = dataclasses.replace(shape, causal_offset=0)
    assert shape.visible(64, 64) == 1
    assert 0.5 < causal.visible(64, 64) < 0.6
    tile = attention_tiles.tiles(shape, devices.DEVICES["h100"])[0]
    both = [attention_tiles.seconds(each, tile, devices.DEVICES["h100"]) for each in (causal, shape)]
    assert both[0] < 0.75 * both[1]


@pytest.mark.parametrize(
    ("mask", "dtype", "causal_offset"),
    [
        (_causal(20, 33, 0), np.float32, 0),
        (_causal(20, 33, 5, -3.4e38), np.float32, 5),
        (_causal(20, 33, 5, -6e4), np.float16, 5),
        (_causal(20, 33, 0, -1e4), np.float32, None),  # a score may make up for that
        (_causal(20, 33, -1), np.float32, None),  # the first query sees nothing
        (_causal(20, 33, 32), np.float32, None),  # all of them see everything
        (_causal(20, 33, 0)[..., :1], np.float32, None),
    ],
    ids=["causal", "lowest numbers", "lowest halves", "low numbers", "a blind query", "nothing masked", "broadcast"],
)
def test_what_a_constant_mask_says(lab: Any, mask: Array, dtype: Any, causal_offset: int | None) -> None:
    feeds = dict(zip(("q", "k", "v"), _inputs(2, 3, 20, 33, 16, 8), strict=True))
    node = lab.model("y = graphopt.AttentionMasked <scale = 0.25> (q, k, v, m)", feeds, {"m": mask}).graph[0]
    node.inputs[3].const_value = ir.tensor(mask.astype(dtype))
    assert converters_attention._causal_offset(Context(None, None, node, None), 20, 33) == causal_offset  # type: ignore[arg-type]


def test_a_causal_node(lab: Any, opencl: Any) -> None:
    """Against the body of the function in ONNX Runtime; what cannot be seen is NaN, and so never read."""
    feeds = dict(zip(("q", "k", "v"), _inputs(2, 3, 20, 400, 16, 8), strict=True))
    model = lab.model("y = graphopt.AttentionMasked <scale = 0.25> (q, k, v, m)", feeds, {"m": _causal(20, 400, 3)})
    prepared = backend.prepare(ir.to_proto(model), "OPENCL", fallback=False)
    expected = run_onnxruntime(model, feeds)["y"]
    for hidden in (False, True):
        if hidden:
            feeds["k"][:, :, 200:] = feeds["v"][:, :, 200:] = np.nan
        (y,) = prepared.run(list(feeds.values()))
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mask", [None, (2, 1, 1, 33)])
def test_node(lab: Any, opencl: Any, mask: tuple[int, ...] | None) -> None:
    """The converter, against the body of the function in ONNX Runtime."""
    feeds = dict(zip(("q", "k", "v", "m"), _inputs(2, 3, 20, 33, 16, 8, mask), strict=False))
    name = "Attention" if mask is None else "AttentionMasked"
    model = lab.model(f"y = graphopt.{name} <scale = 0.25> ({', '.join(feeds)})", feeds)
    prepared = backend.prepare(ir.to_proto(model), "OPENCL", fallback=False)
    (y,) = prepared.run(list(feeds.values()))
    np.testing.assert_allclose(y, run_onnxruntime(model, feeds)["y"], rtol=1e-4, atol=1e-5)
    ((compiled, _),) = prepared._programs.values()
    (stage,) = compiled.artifact.program.stages
    (segment,) = stage.segments
    assert len(segment.calls) == 1


@pytest.mark.parametrize(
    ("dtype", "width", "reason"),
    [(np.int32, 8, "does not compute in int32"), (np.float32, 4000, "too many for opencl")],
)
def test_refusals(lab: Any, dtype: Any, width: int, reason: str) -> None:
    shape = (1, 1, 2, width)
    feeds = {name: np.ones(shape, np.float32) for name in "qkv"}
    model = lab.model("y = graphopt.Attention <scale = 1.0> (q, k, v)", feeds)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    found = target.OpenClTarget().supports(model.graph[0], model.opset_imports)
    assert found is not None
    assert reason in found
