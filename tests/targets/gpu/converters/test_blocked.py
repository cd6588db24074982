"""Operators on blocked tensors on a GPU against their functions' bodies in ONNX Runtime: ragged channels, windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import pytest
from numpy.typing import NDArray
from tvm import s_tir, te, tirx

from graphopt.compiler import compile_model, rewrite
from graphopt.options import Options
from graphopt.runtime.devices.opencl import OpenClDevice
from graphopt.targets.common.kernels.blocks import blocks_of
from graphopt.targets.gpu import code, devices, nvrtc, rules
from graphopt.targets.gpu.code import SYNCHRONIZED
from graphopt.targets.gpu.kernels import conv_blocked, transposes, window, winograd
from graphopt.targets.gpu.kernels.gemm import mma, mma_tile, product
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.matrix_units import PRELUDE, MatrixUnits

Array = NDArray[Any]

BLOCKED = "select-conv{algorithms=blocked+depthwise},layout"
"""Everything that can be blocked is, because the convolutions are."""

CONV = """g (float[{n},{c},{h},{w}] x, float[{o},{deep},{kh},{kw}] w, float[{o}] b) => (y)
{{ y = Conv<pads = {pads}, strides = {strides}, dilations = {dilations}, group = {group}>(x, w, b) }}"""


def model(text: str, weights: Mapping[str, Sequence[int]]) -> ir.Model:
    found = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["": 20]>\n{text}')
    rng = np.random.default_rng(0)
    for value in list(found.graph.inputs):
        if value.name in weights:
            array = rng.standard_normal(tuple(weights[value.name])).astype(np.float32)
            value.const_value = ir.Tensor(array, name=value.name)
            value.shape = ir.Shape(array.shape)
            found.graph.inputs.remove(value)
            found.graph.register_initializer(value)
    for number, node in enumerate(found.graph):
        node.name = f"{node.op_type.lower()}{number}"
    onnx_ir.passes.common.ShapeInferencePass()(found)
    return found


def check(text: str, weights: Mapping[str, Sequence[int]], passes: str, error: float = 1e-5) -> list[str]:
    """Compile, run on poisoned memory, compare with the bodies; the operators that the passes made."""
    given = model(text, weights)
    feeds = random_inputs(given, 0)
    compiled = compile_model(given, target="opencl", passes=passes, fallback=False)
    assert not [note for note in compiled.notes if note.startswith("kernel")]
    expected = run_onnxruntime(compiled.pipeline.model, feeds)
    session = compiled.artifact.session()
    session.measure_arena(feeds)
    scale = max(float(np.abs(array).max()) for array in expected.values())
    require_equal(expected, session.run(feeds), "on PoCL", {"float32": Tolerance(0.0, error * scale)})
    return [node.op_type for node in compiled.pipeline.model.graph]


def conv(passes: str, error: float = 1e-5, **given: Any) -> list[str]:
    values = {"n": 1, "c": 20, "o": 24, "h": 9, "w": 9, "kh": 3, "kw": 3, "group": 1}
    values |= {"pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], **given}
    values["deep"] = values["c"] // values["group"]
    weights = {"w": (values["o"], values["deep"], values["kh"], values["kw"]), "b": (values["o"],)}
    return check(CONV.format(**values), weights, passes, error)


CONVOLUTIONS: Mapping[str, Mapping[str, Any]] = {
    "ragged channels": {},
    "several images": {"n": 3, "c": 33, "o": 17, "h": 7, "w": 12},
    "strides": {"strides": [2, 3], "h": 14, "w": 13, "pads": [0, 1, 2, 1]},
    "dilations": {"dilations": [2, 1], "pads": [2, 1, 1, 0], "n": 2},
    "groups": {"c": 64, "o": 32, "group": 2, "n": 2},
    "1x1": {"kh": 1, "kw": 1, "pads": [0, 0, 0, 0], "c": 48},
    "a single pixel": {"kh": 1, "kw": 1, "pads": [0, 0, 0, 0], "h": 1, "w": 1},
    "few channels": {"c": 3, "o": 40, "kh": 7, "kw": 7, "strides": [2, 2], "pads": [3, 3, 2, 2], "h": 20, "w": 20},
    "deep": {"c": 300, "o": 16, "h": 4, "w": 4},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(opencl: OpenClDevice, name: str) -> None:
    assert "Conv2dBlocked" in conv(BLOCKED, **CONVOLUTIONS[name])


@pytest.mark.parametrize(
    "given",
    [
        {"c": 40, "o": 40, "group": 40, "kh": 5, "kw": 3, "strides": [2, 1], "n": 2},
        {"c": 16, "o": 16, "group": 16, "dilations": [2, 2], "pads": [2, 2, 2, 2], "h": 12},
        {"c": 33, "o": 33, "group": 33, "kh": 9, "kw": 9, "pads": [4, 4, 4, 4]},
    ],
)
def test_depthwise(opencl: OpenClDevice, given: Mapping[str, Any]) -> None:
    assert "DepthwiseConv2dBlocked" in conv(BLOCKED, **given)


@pytest.mark.parametrize("m", [2, 4, 6])
@pytest.mark.parametrize(
    "given", [{}, {"n": 2, "c": 33, "o": 17, "h": 14, "w": 7}, {"c": 16, "o": 16, "h": 7, "w": 8, "pads": [0, 2, 1, 0]}]
)
def test_winograd(opencl: OpenClDevice, m: int, given: Mapping[str, Any]) -> None:
    passes = f"select-conv{{algorithms=winograd{m},max-error=1}},layout"
    assert "Conv2dWinograd" in conv(passes, 1e-6 * 4**m, **given)


def test_lines_are_rows(opencl: OpenClDevice) -> None:
    """One-dimensional convolutions stay blocked in between."""
    text = """g (float[2,20,37] x, float[24,20,5] w, float[24,24,3] v) => (y)
    { a = Conv<strides = [2]>(x, w) r = Relu(a) y = Conv<pads = [1, 1]>(r, v) }"""
    made = check(text, {"w": (24, 20, 5), "v": (24, 24, 3)}, f"lift-rows,{BLOCKED}")
    assert made == ["Reshape", "ToBlocked", "Conv2dBlocked", "Relu", "Conv2dBlocked", "FromBlocked", "Reshape"]


def test_what_cpus_chose(opencl: OpenClDevice) -> None:
    """A graph that was rewritten for CPUs."""
    weights = {"w": (24, 20, 3, 3), "b": (24,)}
    values = {"n": 2, "c": 20, "o": 24, "h": 9, "w": 9, "kh": 3, "kw": 3, "deep": 20, "group": 1}
    values |= {"pads": [1, 0, 2, 1], "strides": [2, 1], "dilations": [1, 1]}
    given = model(CONV.format(**values), weights)
    made = rewrite(given, Options(passes="select-conv{algorithms=im2col}", costs="roofline")).model
    assert [node.op_type for node in made.graph] == ["Conv2dIm2col"]
    feeds = random_inputs(made, 0)
    compiled = compile_model(made, target="opencl", passes="", fallback=False)
    require_equal(run_onnxruntime(made, feeds), compiled.artifact.session().run(feeds), "on PoCL")


SURROUNDED = """g (float[2,20,11,12] x, float[24,20,3,3] w, float[24,24,3,3] v) => (y)
{{ a = Conv<pads = [1, 1, 1, 1]>(x, w) z = {node} r = Relu(z) y = Conv<pads = [1, 1, 1, 1]>(r, v) }}"""

BETWEEN = {
    "MaxPoolBlocked": "MaxPool<kernel_shape = [3, 2], strides = [1, 2], dilations = [2, 1], pads = [1, 0, 1, 1]>(a)",
    "MaxPoolBlocked up": "MaxPool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(a)",
    "AveragePoolBlocked": "AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 0, 1, 1]>(a)",
    "AveragePoolBlocked all": "AveragePool<kernel_shape = [3, 3], pads = [1, 0, 1, 1], count_include_pad = 1>(a)",
    "AveragePoolBlocked up": "AveragePool<kernel_shape = [4, 4], strides = [3, 3], ceil_mode = 1>(a)",
    "GlobalAveragePoolBlocked": "GlobalAveragePool(a)",
    "LRNBlocked": "LRN<size = 5, alpha = 0.1>(a)",
    "LRNBlocked half": "LRN<size = 3, beta = 0.5, bias = 2.0>(a)",
    "Add": "Add(a, a)",
}


@pytest.mark.parametrize("name", BETWEEN)
def test_between_convolutions(opencl: OpenClDevice, name: str) -> None:
    weights = {"w": (24, 20, 3, 3), "v": (24, 24, 3, 3)}
    made = check(SURROUNDED.format(node=BETWEEN[name]), weights, BLOCKED)
    assert name.partition(" ")[0] in made
    assert made.count("FromBlocked") == 1


@pytest.mark.parametrize("algorithm", ["blocked", "winograd4"])
def test_epilogues(opencl: OpenClDevice, algorithm: str) -> None:
    """Bias, residual and activation in the kernel that computes the sums; parts of a Concat in their place."""
    text = """g (float[2,32,11,12] x, float[32,32,3,3] w, float[32,32,3,3] v, float[32] c) => (y)
    { a = Conv<pads = [1, 1, 1, 1]>(x, w, c) r = Relu(a) b = Conv<pads = [1, 1, 1, 1]>(r, v)
      s = Add(b, r) t = Relu(s) y = Concat<axis = 1>(t, r) }"""
    weights = {"w": (32, 32, 3, 3), "v": (32, 32, 3, 3), "c": (32,)}
    made = check(text, weights, f"select-conv{{algorithms={algorithm}}},layout", 1e-4)
    assert made.count("ToBlocked") == made.count("FromBlocked") == 1


def blocked(array: Array, b: int) -> Array:
    n, c, h, w = array.shape
    padded = np.zeros((n, -(-c // b) * b, h, w), array.dtype)
    padded[:, :c] = array
    return np.ascontiguousarray(padded.reshape(n, -1, b, h, w).transpose(0, 1, 3, 4, 2))


@pytest.mark.parametrize("shape", [(2, 20, 9, 11), (1, 16, 8, 8), (3, 5, 1, 70)])
@pytest.mark.parametrize("b", [8, 16])
def test_changes_of_layout(run: Any, device: devices.GpuSpec, shape: tuple[int, ...], b: int) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = blocked(x, b)
    for given, expected, tile in (
        (x, y, transposes.to_blocked(shape, b, "float32")),
        (y, x, transposes.from_blocked(shape, b, "float32")),
    ):
        source = te.placeholder(given.shape, "float32", name="x")
        made = transposes.compute(source, tile, expected.shape, device.threads_per_block)
        function = te.create_prim_func([source, made]).with_attr(SYNCHRONIZED, 1)
        (found,) = run(function, [given], [np.empty(expected.shape, np.float32)])
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("b", [4, 6, 16])
def test_windows_with_few_threads(run: Any, b: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((2, 3, 9, 10, b)), rng.standard_normal((3, 3, 3, b))
    seen = window.Window((3, 3), (2, 1), (1, 2), (1, 1))
    out = (2, 3, 5, 8, b)
    a, u = (te.placeholder(each.shape, "float64", name=name) for each, name in ((x, "x"), (w, "w")))
    sums = window.reduced(a, seen, out, te.sum, 0.0, "float64", lambda v, c, y, z, lane: v * u[c, y, z, lane])
    result = te.compute(out, lambda *i: tirx.max(sums(*i), tirx.const(0, "float64")), name="relu")
    (found,) = run(te.create_prim_func([a, u, result]), [x, w], [np.empty(out)])
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros(out)
    for i in range(3):
        for j in range(3):
            expected += padded[:, :, i : i + 9 : 2, 2 * j : 2 * j + 8] * w[:, i, j][:, None, None]
    np.testing.assert_allclose(found, np.maximum(expected, 0), rtol=1e-12, atol=1e-12)


def test_large_windows_are_shared(device: devices.GpuSpec) -> None:
    """A few means over whole planes: not a thread for each."""
    a = te.placeholder((1, 1, 64, 64, 16), "float32", name="x")
    out = (1, 1, 1, 1, 16)
    sums = window.reduced(a, window.Window((64, 64), (1, 1), (1, 1), (0, 0)), out, te.sum, 0.0, "float32")
    scheduled = rules.apply(te.create_prim_func([a, sums]), device)
    assert "few and large" in scheduled.note
    assert scheduled.plan.algorithm != "window"


@pytest.mark.parametrize("m", [2, 4, 6])
def test_transforms_with_few_threads(run: Any, device: devices.GpuSpec, m: int) -> None:
    """Both transforms with the identity between them: A^T (B^T d B) A."""
    x = np.random.default_rng(0).standard_normal((2, 2, 7, 9, 8))
    tiles = winograd.Tiles(m, 2, (8, 8))
    a = te.placeholder(x.shape, "float64", name="x")
    v = winograd.transform_input(a, tiles, (2, 1), device.threads_per_block)
    function = te.create_prim_func([a, v])
    for key, value in winograd.attributes(tiles).items():
        function = function.with_attr(key, value)
    (taps,) = run(function, [x], [np.empty((tiles.taps, tiles.count, 16))])
    out = (2, 2, 8, 8, 8)
    t = te.placeholder(taps.shape, "float64", name="t")
    y = winograd.transform_output(t, tiles, out)
    result = te.compute(out, lambda *i: y(*i) + a[i[0], i[1], 0, 0, i[4]], name="added")
    (found,) = run(te.create_prim_func([t, a, result]), [taps, x], [np.empty(out)])
    at, _, bt = winograd.matrices(m)
    size = m + 2
    padded = np.pad(x, ((0, 0), (0, 0), (2, m + 6), (1, m + 6), (0, 0)))
    expected = np.zeros((2, 2, tiles.rows * m, tiles.columns * m, 8))
    for i in range(tiles.rows):
        for j in range(tiles.columns):
            d = padded[:, :, i * m : i * m + size, j * m : j * m + size]
            once = np.einsum("ua,ncabl,vb->ncuvl", at @ bt, d, at @ bt)
            expected[:, :, i * m : (i + 1) * m, j * m : (j + 1) * m] = once
    expected = expected[:, :, :8, :8] + x[:, :, :1, :1]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["float16", "tf32"])
@pytest.mark.parametrize(("groups", "lanes"), [(1, 16), (2, 16), (1, 1)])
@pytest.mark.parametrize("along", [False, True])
def test_convolutions_on_emulated_tensor_cores(execute: Any, kind: str, groups: int, lanes: int, along: bool) -> None:
    """Copies of 16 bytes under the window's condition; the first layer's planes one by one; neighbours in the store.

    Args: along: weights lie along k.
    """
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 2 * groups, 7, 9, lanes)).astype(np.float32)
    w = rng.standard_normal((2 * groups, 2, 3, 3, lanes, 16)).astype(np.float32)
    bias = rng.standard_normal((2 * groups, 16)).astype(np.float32)
    seen = window.Window((3, 3), (2, 1), (1, 2), (1, 2))
    out = (2, 2 * groups, 4, 9, 16)
    weights = w.reshape(2 * groups, -1, 16)
    given = x, weights.swapaxes(1, 2).reshape(32 * groups, -1) if along else weights, bias
    a, u, s = (te.placeholder(each.shape, "float32", name=name) for each, name in zip(given, "awb", strict=True))
    y = conv_blocked.compute(a, u, s, seen, groups, out, "float32")
    result = te.compute(out, lambda *i: tirx.max(y(*i), tirx.const(0, "float32")), name="relu")
    sch = s_tir.Schedule(te.create_prim_func([a, u, s, result]))
    found = product.read(sch, next(block for block in blocks_of(sch) if block.rule == product.NAME))
    tile = mma_tile.Tile(32, 32, 32 if kind == "float16" else 16, 16, 16, 3, 1)
    units = MatrixUnits(kind)
    template = mma.Template(found, tile, units)
    copied = units.chunk if lanes > 1 else 1  # the first layer's sums are of 18 numbers, which are no whole chunks
    assert [side.vector for side in template.sides] == [copied, copied if along else units.chunk]
    (computed,) = execute(mma.emit(found, tile, units), given, [np.empty(out, np.float32)], prelude=PRELUDE)
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2), (0, 0)))
    expected = np.zeros(out, np.float32) + bias[None, :, None, None]
    for g in range(groups):
        own = slice(2 * g, 2 * g + 2)
        for i in range(3):
            for j in range(3):
                part = padded[:, own, i : i + 8 : 2, 2 * j : 2 * j + 9]
                expected[:, own] += np.einsum("nchwi,ocib->nohwb", part, w[own, :, i, j])
    np.testing.assert_allclose(computed, np.maximum(expected, 0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("arch", ["a100", "h100"])
def test_machine_code_of_windows(arch: str, dtype: str) -> None:
    device = devices.DEVICES[arch]
    a, u = te.placeholder((1, 4, 28, 28, 16), dtype, name="x"), te.placeholder((4, 3, 3, 16), dtype, name="w")
    sums = window.reduced(
        a,
        window.Window((3, 3), (1, 1), (1, 1), (1, 1)),
        (1, 4, 28, 28, 16),
        te.sum,
        0.0,
        "float32",
        lambda v, c, y, z, lane: v * u[c, y, z, lane].astype("float32"),
    )
    result = te.compute((1, 4, 28, 28, 16), lambda *i: sums(*i).astype(dtype), name="narrowed")
    scheduled = rules.apply(te.create_prim_func([a, u, result]), device)
    assert not scheduled.note
    made = code.generate("kernel", scheduled.function, device)
    found = nvrtc.compile_cuda(made.bounded(made.resident), device.arch)
    assert [used.spilled for used in found.resources.values()] == [0]
    assert {"float32": "*(float4*)(", "float16": "*(half4*)("}.get(dtype, "4*)(") in made.source
