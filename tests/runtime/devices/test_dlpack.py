"""Tensors shared with other libraries: on a CUDA driver of paper that does late what is enqueued, and on PoCL."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx.parser
import pytest

from graphopt.artifact import Artifact
from graphopt.compiler import compile_model
from graphopt.errors import FeedError, GraphoptError
from graphopt.program import schedule
from graphopt.program.program import KernelCall, Launch, NativeSegment, Place, Port, Program, Stage, Value
from graphopt.program.weights import weights_bytes
from graphopt.runtime.devices import dlpack
from graphopt.runtime.devices.cuda import CudaDevice
from graphopt.runtime.devices.dlpack import DeviceTensor
from graphopt.runtime.devices.opencl import OpenClDevice
from graphopt.runtime.session import Session

N = 16


def _view(pointer: int) -> np.ndarray:
    return np.ctypeslib.as_array((ctypes.c_float * N).from_address(pointer))


@pytest.fixture
def artifact(driver: Any) -> Artifact:
    """y = 2 (x + x), on the paper device; the sum lies where x did."""

    def double(x: int, y: int) -> None:
        _view(y)[:] = 2 * _view(x)

    driver.kernels["double"] = double
    values = tuple(Value(name, "float32", (4, 4), Place.ARENA, at) for name, at in (("x", 0), ("s", 64), ("y", 0)))
    launches = (Launch("double", (1, 1, 1), (32, 1, 1), (0, 1)),)
    calls = tuple(
        KernelCall("kernel", (a,), (b,), origin=(f"to_{b}",), launches=launches) for a, b in (("x", "s"), ("s", "y"))
    )
    stage = Stage(0, values, ("x",), ("y",), (NativeSegment(calls),), 128, 128, library="stage_0.kernels")
    ports = (Port("x", "float32", (4, 4)),), (Port("y", "float32", (4, 4)),)
    program = Program((stage,), schedule.build((stage,), ["x"]), *ports)
    files: dict[str, Any] = {"stage_0.kernels": weights_bytes({"kernel": np.frombuffer(b"image", np.uint8)})}
    return Artifact.create(program, files, {"target": {"name": "cuda", "gpu": "sm_90"}})


def _x(scale: float = 1.0) -> np.ndarray:
    return (np.arange(N, dtype=np.float32) * np.float32(scale)).reshape(4, 4)


def _read_later(driver: Any, tensor: DeviceTensor, stream: int) -> list[np.ndarray]:
    """What a consumer sees that takes the tensor over and enqueues reading it on a stream of its own."""
    seen: list[np.ndarray] = []
    capsule = tensor.__dlpack__(stream=stream)
    driver.enqueue(stream, lambda: seen.append(_view(tensor.pointer).reshape(4, 4).copy()))
    del capsule
    return seen


@pytest.mark.parametrize("stream", [1, 2, 700])
def test_a_consumer_sees_what_the_program_computed(driver: Any, artifact: Artifact, stream: int) -> None:
    session = artifact.session()
    waited = len(driver.named("cuStreamSynchronize"))
    output = session.run_device({"x": _x()})["y"]
    assert len(driver.named("cuStreamSynchronize")) == waited + 1  # only before the host's arrays are written
    assert output.__dlpack_device__() == (dlpack.CUDA, 0)
    seen = _read_later(driver, output, stream)
    assert seen == []  # nothing ran yet: the host waited for nothing
    driver.wait(stream)
    np.testing.assert_array_equal(seen[0], 4 * _x())
    np.testing.assert_array_equal(np.asarray(output), 4 * _x())


@pytest.mark.parametrize(("stream", "told"), [(1, None), (1, 0), (700, 700)])
def test_the_next_run_comes_after_the_reading_of_the_last(
    driver: Any, artifact: Artifact, stream: int, told: int | None
) -> None:
    session = artifact.session()
    seen = _read_later(driver, session.run_device({"x": _x()}, told)["y"], stream)
    again = session.run_device({"x": _x(3.0)}, told)["y"]
    np.testing.assert_array_equal(np.asarray(again), 12 * _x())
    np.testing.assert_array_equal(seen[0], 4 * _x())


def test_inputs_on_the_device_are_copied_there(driver: Any, artifact: Artifact) -> None:
    first, second = artifact.session(), artifact.session()
    before = [len(driver.named(f"cuMemcpy{way}Async")) for way in ("HtoD", "DtoH", "DtoD")]
    middle = first.run_device({"x": _x()})["y"]
    output = second.run_device({"x": middle})["y"]
    after = [len(driver.named(f"cuMemcpy{way}Async")) for way in ("HtoD", "DtoH", "DtoD")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 0, 1]
    np.testing.assert_array_equal(np.asarray(output), 16 * _x())
    np.testing.assert_array_equal(second.run({"x": middle})["y"], 16 * _x())  # and to the host's arrays
    np.testing.assert_array_equal(second.run({"x": _x()})["y"], 4 * _x())  # the host's again


def test_host_inputs_are_not_overwritten_before_they_are_read(driver: Any, artifact: Artifact) -> None:
    session = artifact.session()
    seen = _read_later(driver, session.run_device({"x": _x()})["y"], 1)
    session.run_device({"x": _x(5.0)})
    driver.wait(1)
    np.testing.assert_array_equal(seen[0], 4 * _x())


def test_replay_computes_again_on_the_same_inputs(driver: Any, artifact: Artifact) -> None:
    session = artifact.session()
    assert session.device is not None
    step = session.replay({"x": _x()})
    for _ in range(3):
        session.device.laps([step, step])
    output = DeviceTensor(session.run_device({"x": _x(0.0)})["y"].pointer, "float32", (4, 4), session.device, session)
    step()
    np.testing.assert_array_equal(np.asarray(output), 4 * _x())
    assert session.device_bytes == 128


def test_a_profile_times_every_kernel(driver: Any, artifact: Artifact) -> None:
    times = artifact.session().profile({"x": _x()})
    assert [(each.name, each.origin, each.seconds) for each in times] == [
        ("kernel", ("to_s",), 2.5e-3),
        ("kernel", ("to_y",), 2.5e-3),
    ]


def test_a_tensor_keeps_the_memory_of_its_session(driver: Any, artifact: Artifact) -> None:
    session = artifact.session()
    tensor: DeviceTensor | None = session.run_device({"x": _x()})["y"]
    assert tensor is not None
    capsule = tensor.__dlpack__()
    del session, tensor
    gc.collect()
    assert driver.named("cuMemFree") == []
    del capsule
    gc.collect()
    assert len(driver.named("cuMemFree")) == len(driver.named("cuMemAlloc"))


def test_sessions_may_share_a_device(driver: Any, artifact: Artifact) -> None:
    device = CudaDevice("sm_90")
    sessions = [Session(artifact, device=device) for _ in range(3)]
    assert len(driver.named("cuStreamCreate")) == 1
    assert len(driver.named("cuModuleLoadData")) == 1
    for scale, session in enumerate(sessions):
        np.testing.assert_array_equal(session.run({"x": _x(scale)})["y"], 4 * _x(scale))


class Other:
    """A tensor of another library: `change` is done to the structure that it hands out."""

    def __init__(self, tensor: DeviceTensor, change: Callable[[Any], None] = lambda _: None) -> None:
        self.tensor, self.change = tensor, change
        self.place = tensor.__dlpack_device__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.place

    def __dlpack__(self, stream: int) -> Any:
        assert stream > 2
        capsule = self.tensor.__dlpack__(stream=stream)
        self.change(dlpack._Managed.from_address(dlpack._pointer_of(capsule, b"dltensor")).tensor)
        return capsule


def _transposed(tensor: Any) -> None:
    tensor.strides[0], tensor.strides[1] = 1, 4


def _half(tensor: Any) -> None:
    tensor.dtype.bits = 16


def _complex(tensor: Any) -> None:
    tensor.dtype.code = 5


def _flat(tensor: Any) -> None:
    tensor.rank, tensor.shape[0], tensor.strides[0] = 1, N, 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_transposed, "input 'x' is not contiguous: make it so"),
        (_half, "input 'x' is float16, and float32 is expected"),
        (_complex, "input 'x' has elements of a type that no program takes"),
        (_flat, r"input 'x' has shape \(16,\), and a float32 array of shape \(4, 4\) is expected"),
    ],
)
def test_tensors_that_do_not_fit(driver: Any, artifact: Artifact, change: Any, sentence: str) -> None:
    session = artifact.session()
    other = Other(artifact.session().run_device({"x": _x()})["y"], change)
    with pytest.raises(FeedError, match=sentence):
        session.run_device({"x": other})


def test_what_others_hand_out_may_lack_strides_and_have_an_offset(driver: Any, artifact: Artifact) -> None:
    tensor = artifact.session().run_device({"x": _x()})["y"]

    def change(found: Any) -> None:
        found.strides = None
        found.data, found.byte_offset = found.data - 64, 64

    np.testing.assert_array_equal(artifact.session().run({"x": Other(tensor, change)})["y"], 16 * _x())


def test_tensors_elsewhere_are_refused(driver: Any, artifact: Artifact) -> None:
    other = Other(artifact.session().run_device({"x": _x()})["y"])
    other.place = (dlpack.CUDA, 1)
    with pytest.raises(FeedError, match="input 'x' is in the memory of another device than Paper GPU"):
        artifact.session().run({"x": other})


def test_a_program_on_the_cpu_takes_and_leaves_nothing_on_a_device(driver: Any, artifact: Artifact) -> None:
    other = Other(artifact.session().run_device({"x": _x()})["y"])
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> net (float[4, 4] x) => (float[4, 4] y) { y = Neg(x) }'
    )
    session = compile_model(model).artifact.session()
    with pytest.raises(FeedError, match="another device than the CPU, where the program runs: make it a numpy array"):
        session.run({"x": other})
    with pytest.raises(GraphoptError, match="the program runs on the CPU: .* --target cuda"):
        session.run_device({"x": _x()})
    assert session.device is None


@pytest.mark.parametrize("stream", [0, -2])
def test_streams_that_there_are_not(driver: Any, artifact: Artifact, stream: int) -> None:
    tensor = artifact.session().run_device({"x": _x()})["y"]
    with pytest.raises(ValueError, match=f"{stream} is no CUDA stream"):
        tensor.__dlpack__(stream=stream)
    events = len(driver.named("cuEventRecord"))
    tensor.__dlpack__(stream=-1)
    assert len(driver.named("cuEventRecord")) == events  # -1: the consumer takes care of the order


def test_copies_are_not_made(driver: Any, artifact: Artifact) -> None:
    tensor = artifact.session().run_device({"x": _x()})["y"]
    for asked in ({"copy": True}, {"dl_device": (dlpack.CPU, 0)}):
        with pytest.raises(BufferError, match="is shared where it is"):
            tensor.__dlpack__(**asked)  # type: ignore[arg-type]
    tensor._device.dlpack = None
    with pytest.raises(BufferError, match="the memory of Paper GPU cannot be shared"):
        tensor.__dlpack__()


def _on_host(array: np.ndarray, dtype: str) -> DeviceTensor:
    """A tensor over an array, on a device whose memory the host sees."""
    device: Any = SimpleNamespace(dlpack=(dlpack.CPU, 0), name="host", synchronize=lambda: None)
    return DeviceTensor(array.ctypes.data, dtype, array.shape, device, array)


@pytest.mark.parametrize("dtype", [*dlpack._CODES])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 4)])
def test_torch_and_numpy_see_the_same_memory(dtype: str, shape: tuple[int, ...]) -> None:
    import torch

    raw = np.arange(int(np.prod(shape)) * dlpack._CODES[dtype][1] // 8, dtype=np.uint8)
    array = (raw % 2 if dtype == "bool" else raw).view(np.uint16 if dtype == "bfloat16" else dtype).reshape(shape)
    seen = torch.from_dlpack(_on_host(array, dtype))
    assert (str(seen.dtype), tuple(seen.shape)) == (f"torch.{dtype}", shape)
    if seen.numel():
        assert seen.data_ptr() == array.ctypes.data
    if dtype != "bfloat16":
        shown = np.from_dlpack(_on_host(array, dtype))
        assert shown.dtype == array.dtype
        np.testing.assert_array_equal(shown, array)


def test_memory_goes_when_nobody_looks_any_more() -> None:
    class Owner(np.ndarray):
        """An array that can be watched."""

    array = np.zeros(4, np.float32).view(Owner)
    gone = weakref.ref(array)
    tensor = _on_host(array, "float32")
    seen, untaken = np.from_dlpack(tensor), tensor.__dlpack__()
    del tensor, array
    assert gone() is not None
    del untaken
    assert gone() is not None
    del seen
    gc.collect()
    assert gone() is None


def test_a_stream_of_the_host_is_refused() -> None:
    with pytest.raises(ValueError, match="a tensor in host memory has no stream"):
        _on_host(np.zeros(1, np.float32), "float32").__dlpack__(stream=1)


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_tensors_may_outlive_python(library: str) -> None:
    script = f"""
import {library}
import numpy as np
from types import SimpleNamespace
from graphopt.runtime.devices.dlpack import DeviceTensor
array = np.zeros(4, np.float32)
device = SimpleNamespace(dlpack=(1, 0), name="host", synchronize=lambda: None)
tensor = DeviceTensor(array.ctypes.data, "float32", (4,), device, array)
seen, untaken = {library}.from_dlpack(tensor), tensor.__dlpack__()
import builtins
builtins.kept = seen, untaken
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_outputs_on_pocl_are_seen_without_copying(opencl: OpenClDevice) -> None:
    model = onnx.parser.parse_model(
        """
        <ir_version: 10, opset_import: ["": 20]>
        net (float[3, 5] x) => (float[3, 5] y, float[3, 1] z) { y = Exp(x)  a = Neg(x)  z = ReduceSum(a, axes) }
    """.replace("=> (float[3, 5] y, float[3, 1] z)", "=> (float[3, 5] y, float[3, 1] z) <int64[1] axes = {1}>")
    )
    session = compile_model(model, target="opencl").artifact.session()
    x = np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32)
    outputs = session.run_device({"x": x})
    shown = {name: np.from_dlpack(each) for name, each in outputs.items()}
    assert {name: each.ctypes.data for name, each in shown.items()} == {n: t.pointer for n, t in outputs.items()}
    np.testing.assert_allclose(shown["y"], np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(shown["z"], -x.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)
    session.run({"x": 2 * x})
    np.testing.assert_allclose(shown["y"], np.exp(2 * x), rtol=1e-5)  # overwritten, as documented


@pytest.mark.parametrize("options", [{"ranks": 2}, {"micro_batches": 2}])
def test_outputs_of_several_stages_do_not_stay(opencl: OpenClDevice, options: dict[str, int]) -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> net (float[4, 4] x) => (float[4, 4] y) { a = Exp(x)  y = Neg(a) }'
    )
    session = compile_model(model, target="opencl", **options).artifact.session()  # type: ignore[arg-type]
    with pytest.raises(GraphoptError, match="without --ranks and --micro-batches"):
        session.run_device({"x": _x()})
