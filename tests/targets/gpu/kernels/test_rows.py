"""Softmax and layer normalization on GPUs: ragged rows against numpy, cuts that fit, shuffles and registers on CUDA."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tvm import te

from graphopt import backend
from graphopt.targets.gpu import code, devices, nvrtc, rules, target
from graphopt.targets.gpu.kernels import rows, rows_launch
from graphopt.verify.oracle import run_onnxruntime

Array = NDArray[Any]

SIZES = [(1, 1), (5, 7), (3, 1000), (70, 64), (2, 30000), (1030, 10), (300, 48), (1, 4097), (129, 33)]


def numbers(*shape: int) -> Array:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


def written(
    kind: str, count: int, n: int, device: devices.GpuSpec, dtype: str = "float32"
) -> tuple[Any, rows_launch.LaunchConfig]:
    """The function of `kind`, as the converter marks it."""
    work = rows_launch.Rows(count, n, dtype, "float32" if dtype in ("float16", "bfloat16") else dtype)
    made = rows_launch.launch_config(work, device)
    x = te.placeholder((count, n), dtype, name="x")
    names = {"layer_norm": ("weight", "bias"), "rms_norm": ("weight",)}.get(kind, ())
    others = [te.placeholder((n,), dtype, name=name) for name in names]
    if kind == "layer_norm":
        y = rows.layer_norm(x, *others, 1e-5, work, made)
    elif kind == "rms_norm":
        y = rows.rms_norm(x, *others, 1e-5, work, made)
    else:
        y = rows.softmax(x, work, made, kind == "log_softmax")
    function = te.create_prim_func([x, *others, y])
    for key, value in rows.ATTRIBUTES.items():
        function = function.with_attr(key, value)
    return rules.apply(function, device).function, made


def softmax(x: Array) -> Array:
    powers = np.exp(x.astype(np.float64) - x.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


@pytest.mark.parametrize(("count", "n"), SIZES)
def test_softmax(execute: Any, device: devices.GpuSpec, count: int, n: int) -> None:
    x = numbers(count, n) * 5
    for kind, expected in (("softmax", softmax(x)), ("log_softmax", np.log(softmax(x)))):
        function, _ = written(kind, count, n, device)
        (found,) = execute(function, [x], [np.empty((count, n), np.float32)], device)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("count", "n"), SIZES)
def test_layer_norm(execute: Any, device: devices.GpuSpec, count: int, n: int) -> None:
    x, weight, bias = numbers(count, n) + 100, numbers(n), numbers(n + 1)[:n]
    wide = x.astype(np.float64)
    expected = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * weight + bias
    function, _ = written("layer_norm", count, n, device)
    (found,) = execute(function, [x, weight, bias], [np.empty((count, n), np.float32)], device)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("count", "n"), SIZES)
def test_rms_norm(execute: Any, device: devices.GpuSpec, count: int, n: int) -> None:
    x, weight = numbers(count, n) + 100, numbers(n)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt(np.square(wide).mean(1, keepdims=True) + 1e-5) * weight
    function, _ = written("rms_norm", count, n, device)
    (found,) = execute(function, [x, weight], [np.empty((count, n), np.float32)], device)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_infinities_are_what_they_are_in_numpy(execute: Any) -> None:
    x = numbers(4, 100)
    x[0, 3] = -np.inf
    x[1] = -np.inf
    x[2, 5] = np.nan
    with np.errstate(invalid="ignore"):
        expected = softmax(x)
    function, _ = written("softmax", 4, 100, devices.OPENCL)
    (found,) = execute(function, [x], [np.empty((4, 100), np.float32)])
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", [devices.OPENCL, *devices.DEVICES.values()], ids=lambda device: device.name)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("count", "n"), [*SIZES, (16384, 1024), (4, 50257), (100_000, 3)])
def test_cuts_fit_the_device(device: devices.GpuSpec, dtype: str, count: int, n: int) -> None:
    work = rows_launch.Rows(count, n, dtype, "float64" if dtype == "float64" else "float32")
    made = rows_launch.launch_config(work, device)
    assert n % made.vector == 0
    assert made.lanes * made.vector * made.turns >= n
    assert made.lanes * made.vector * (made.turns - 1) < n
    assert made.threads % device.warp == 0, "shuffles take whole warps"
    assert made.threads <= min(1024, device.threads_per_block)
    assert made.rows == 1 or made.lanes <= device.warp
    assert rows_launch.seconds(work, made, device) > 0


def test_rows_are_dealt_out_before_they_share_blocks() -> None:
    device = devices.DEVICES["h100"]

    def blocks(count: int, n: int) -> int:
        return -(-count // rows_launch.launch_config(rows_launch.Rows(count, n, "float32", "float32"), device).rows)

    assert blocks(128, 768) == 128
    assert device.multiprocessors < blocks(12 * 512, 64) < 12 * 512
    assert device.multiprocessors < blocks(16384, 1024) < 16384


def test_longer_rows_take_longer() -> None:
    device = devices.DEVICES["h100"]
    made = [rows_launch.Rows(4096, n, "float32", "float32") for n in (64, 1024, 16384)]
    found = [rows_launch.seconds(work, rows_launch.launch_config(work, device), device) for work in made]
    assert found == sorted(found)
    assert found[-1] >= 2 * 4096 * 16384 * 4 / device.bandwidth


@pytest.mark.parametrize("name", ["a100", "h100"])
@pytest.mark.parametrize("kind", ["softmax", "log_softmax", "layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(("count", "n"), [(128, 768), (64, 1001), (1030, 10), (4, 30000)])
def test_machine_code(name: str, kind: str, dtype: str, count: int, n: int) -> None:
    """One kernel, whose threads tell each other by shuffles, and keep their row in registers."""
    device = devices.DEVICES[name]
    function, made = written(kind, count, n, device, dtype)
    generated = code.generate("kernel", function, device)
    assert len(generated.launches) == 1
    assert not generated.scratch
    assert ("__shfl_down_sync" in generated.source) == (made.lanes > 1)
    assert "__activemask" not in generated.source
    if made.vector > 1 and dtype == "float32":
        assert f"*(float{made.vector}*)" in generated.source
    (used,) = nvrtc.compile_cuda(generated.bounded(generated.resident), device.arch).resources.values()
    assert used.spilled == 0
    assert used.shared <= 1024
    assert used.stack == 0, "the row is in registers"


@pytest.mark.parametrize(
    ("body", "operands"),
    [
        ("y = Softmax(x)", 1),
        ("y = LogSoftmax(x)", 1),
        ("y = LayerNormalization(x, w, b)", 3),
        ("y = RMSNormalization(x, w)", 2),
    ],
)
def test_halves_need_no_casts(lab: Any, body: str, operands: int) -> None:
    """One kernel, on CUDA, that reads and writes halves and computes in single precision."""
    feeds = {"x": numbers(12, 40).astype(np.float16)}
    constants = {"w": numbers(40).astype(np.float16), "b": numbers(41)[:40].astype(np.float16)}
    constants = dict(list(constants.items())[: operands - 1])
    model = lab.model(body, feeds, constants, opset=23)
    backend = target.CudaTarget("sm_90")
    graph = model.graph
    assert backend.supports(graph[0], model.opset_imports) is None
    found = backend.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
    (call,) = found.calls
    (plan,) = found.plans.values()
    assert plan.algorithm == "rows"
    assert plan.seconds
    assert len(call.inputs) == operands
    assert {found.values[name].dtype for name in (*call.inputs, *call.outputs)} == {"float16"}


@pytest.mark.parametrize(
    ("body", "shape"),
    [
        ("y = InstanceNormalization(x, w, b)", (2, 6, 9, 9)),
        ("y = InstanceNormalization <epsilon = 0.1> (x, w, b)", (1, 6, 40)),
        ("y = GroupNormalization <num_groups = 3> (x, w, b)", (2, 6, 5, 7)),
        ("y = GroupNormalization <num_groups = 1> (x, w, b)", (3, 6, 40, 40)),
        ("y = GroupNormalization <num_groups = 6> (x, w, b)", (2, 6, 4)),
        ("y = RMSNormalization (x, w)", (2, 5, 6)),
        ("y = RMSNormalization <axis = 1, epsilon = 0.1> (x, v)", (3, 4, 6)),
    ],
)
def test_normalization_of_channels_and_by_squares(lab: Any, opencl: Any, body: str, shape: tuple[int, ...]) -> None:
    """One kernel, against ONNX Runtime."""
    feeds = {"x": numbers(*shape) + 3}
    weights = {"w": numbers(6), "b": numbers(7)[:6], "v": numbers(4, 6)}
    model = lab.model(body, feeds, {name: each for name, each in weights.items() if f", {name}" in body}, opset=23)
    prepared = backend.prepare(ir.to_proto(model), "OPENCL", fallback=False)
    (y,) = prepared.run([feeds["x"]])
    np.testing.assert_allclose(y, run_onnxruntime(model, feeds)["y"], rtol=1e-4, atol=1e-4)
    ((compiled, _),) = prepared._programs.values()
    (segment,) = compiled.artifact.program.stages[0].segments
    assert len(segment.calls) == 1
    (plan,) = compiled.artifact.manifest["kernels"].values()
    assert plan["algorithm"] == "rows"
