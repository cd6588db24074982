"""Programs for a device, executed by PoCL: memory, copies, fallback models between kernels, and what is refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from graphopt.artifact import Artifact
from graphopt.compiler import compile_model
from graphopt.errors import ArtifactError, GraphoptError
from graphopt.program import weights
from graphopt.program.program import NativeSegment
from graphopt.runtime.devices.cuda import CudaDevice
from graphopt.runtime.devices.opencl import OpenClDevice

MODEL = """
    <ir_version: 10, opset_import: ["": 20]>
    net (float[2, 3, 9, 9] x) => (float[2, 5] y, float[2, 4, 9, 9] hidden)
    <float[4, 3, 3, 3] w, float[4] bias, float[4, 5] v>
    {
      c = Conv<pads = [1, 1, 1, 1]>(x, w, bias)
      hidden = Relu(c)
      p = GlobalAveragePool(hidden)
      f = Flatten(p)
      l = MatMul(f, v)
      y = Softmax(l)
    }
"""


def model(text: str = MODEL) -> onnx.ModelProto:
    """The model with seeded weights."""
    proto = onnx.parser.parse_model(text)
    rng = np.random.default_rng(7)
    for value in proto.graph.value_info:  # the weights: declared, and computed by nothing
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = rng.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del proto.graph.value_info[:]
    return proto


def feeds(proto: onnx.ModelProto, scale: int = 1) -> dict[str, Any]:
    rng = np.random.default_rng(8)
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input}
    return {
        name: rng.standard_normal((shape[0] * scale, *shape[1:])).astype(np.float32) for name, shape in shapes.items()
    }


def expected(proto: onnx.ModelProto, given: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([v.name for v in proto.graph.output], session.run(None, given), strict=True))


def same(actual: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert actual.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def compiled(opencl: OpenClDevice) -> Artifact:
    return compile_model(model(), target="opencl", fallback=False).artifact


WITHOUT = """
import importlib.metadata, sys
import numpy as np
sys.path.append(sys.argv[2])
from tests.helpers import pocl
for name in ("tvm", "tvm_ffi", "onnx", "onnx_ir", "onnxruntime"):
    sys.modules[name] = None
known = importlib.metadata.version
def version(name):
    if name.startswith("apache-tvm"):
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)
importlib.metadata.version = version
pocl.name_processor()
import graphopt
session = graphopt.open(sys.argv[1]).session()
np.save(sys.argv[3], session.run({"x": np.load(sys.argv[4])})["y"])
"""


def test_runs_where_there_is_neither_tvm_nor_onnx(compiled: Artifact, tmp_path: Path) -> None:
    given = feeds(model())
    np.save(tmp_path / "x.npy", given["x"])
    compiled.save(tmp_path / "a.gopt")
    folder = Path(__file__).parents[3]
    files = [str(tmp_path / name) for name in ("y.npy", "x.npy")]
    command = [sys.executable, "-P", "-c", WITHOUT, str(tmp_path / "a.gopt"), str(folder), *files]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected(model(), given)["y"], rtol=1e-4, atol=1e-5)


def test_runs_again_and_again(compiled: Artifact) -> None:
    proto, session = model(), compiled.session()
    for seed in (1.0, -2.0):
        given = {name: array * np.float32(seed) for name, array in feeds(proto).items()}
        same(session.run(given), expected(proto, given))


def test_the_arena_is_enough_whatever_stood_in_it(compiled: Artifact) -> None:
    proto, session = model(), compiled.session()
    given = feeds(proto)
    (touched,) = session.measure_arena(given)
    assert touched <= compiled.program.stages[0].arena_bytes
    same(session.run(given), expected(proto, given))


def test_profile_times_every_call(compiled: Artifact) -> None:
    times = compiled.session().profile(feeds(model()))
    calls = [call for seg in compiled.program.stages[0].segments for call in seg.calls]  # type: ignore[union-attr]
    assert [time.name for time in times] == [call.symbol for call in calls]
    assert all(time.seconds > 0 for time in times)


def test_fallback_models_between_kernels(opencl: OpenClDevice) -> None:
    proto = model("""
        <ir_version: 10, opset_import: ["": 20]>
        net (float[4, 3, 3] x) => (float[4] y, float[4] z) { a = Exp(x)  d = Det(a)  y = Tanh(d)  z = Neg(d) }
    """)
    made = compile_model(proto, target="opencl")
    assert [name for name, _ in made.fallbacks] == ["d (Det)"] or len(made.fallbacks) == 1
    given = feeds(proto)
    session = made.artifact.session()
    for _ in range(2):
        same(session.run(given), expected(proto, given))
    assert sum(time.name.endswith(".onnx") for time in session.profile(given)) == 1


@pytest.mark.parametrize(("ranks", "micro_batches"), [(2, 1), (1, 3), (2, 2)])
def test_stages_and_micro_batches(opencl: OpenClDevice, ranks: int, micro_batches: int) -> None:
    proto = model()
    made = compile_model(proto, target="opencl", ranks=ranks, micro_batches=micro_batches).artifact
    given = feeds(proto, micro_batches)
    pieces = [expected(proto, {"x": piece}) for piece in np.split(given["x"], micro_batches)]
    wanted = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    same(made.session().run(given), wanted)


def test_the_same_model_is_the_same_bytes(compiled: Artifact) -> None:
    again = compile_model(model(), target="opencl", fallback=False).artifact
    assert {name: bytes(data) for name, data in again.files.items()} == {
        name: bytes(data) for name, data in compiled.files.items()
    }


def test_survives_a_file(compiled: Artifact, tmp_path: Any) -> None:
    from graphopt.artifact import open_artifact

    compiled.save(tmp_path / "net.gopt")
    given = feeds(model())
    same(open_artifact(tmp_path / "net.gopt").session().run(given), compiled.session().run(given))


def _with_kernels(artifact: Artifact, change: Any) -> Artifact:
    """The artifact with `change` done to its images, by symbol."""
    data, index = artifact.weights("stage_0.kernels")
    images = {name: bytes(data[entry.start : entry.start + entry.nbytes]) for name, entry in index.items()}
    arrays = {name: np.frombuffer(image, np.uint8) for name, image in change(images).items()}
    files = {name: bytes(content) for name, content in artifact.files.items() if name != "program.json"}
    files["stage_0.kernels"] = weights.weights_bytes(arrays)
    return Artifact.create(artifact.program, files, {"target": {"name": "opencl"}})


def test_a_missing_kernel_is_named(compiled: Artifact) -> None:
    damaged = _with_kernels(compiled, lambda images: dict(list(images.items())[1:]))
    with pytest.raises(ArtifactError, match="the artifact has no kernel .*: it is damaged, compile it again"):
        damaged.session()


@pytest.mark.parametrize("image", [b"__kernel void other() {}", b"no source", b"\xff\xfe", b""])
def test_an_image_that_is_no_program(compiled: Artifact, image: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    damaged = _with_kernels(compiled, lambda images: dict.fromkeys(images, image))
    with pytest.raises(ArtifactError, match="cannot be loaded on"):
        damaged.session()


def test_a_program_that_mixes_device_and_host_is_refused(compiled: Artifact) -> None:
    (stage,) = compiled.program.stages
    (segment,) = stage.segments
    assert isinstance(segment, NativeSegment)
    calls = (dataclasses.replace(segment.calls[0], launches=()), *segment.calls[1:])
    mixed = dataclasses.replace(
        compiled.program, stages=(dataclasses.replace(stage, segments=(NativeSegment(calls),)),)
    )
    files = {name: bytes(content) for name, content in compiled.files.items() if name != "program.json"}
    with pytest.raises(ArtifactError, match="some of its kernels run on a device and some do not"):
        Artifact.create(mixed, files, {"target": {"name": "opencl"}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (0, 1, 1)}, "impossible grid"),
        ({"block": (2048, 1, 1)}, "impossible block"),
        ({"shared": 1 << 30}, "impossible block"),
        ({"arguments": (9,)}, "takes arguments that"),
        ({"entry": "a b"}, "is no function name"),
    ],
)
def test_impossible_launches_are_refused(compiled: Artifact, change: dict[str, Any], message: str) -> None:
    (stage,) = compiled.program.stages
    (segment,) = stage.segments
    assert isinstance(segment, NativeSegment)
    first = segment.calls[0]
    forged = dataclasses.replace(first, launches=(dataclasses.replace(first.launches[0], **change),))
    stages = (dataclasses.replace(stage, segments=(NativeSegment((forged, *segment.calls[1:])),)),)
    files = {name: bytes(content) for name, content in compiled.files.items() if name != "program.json"}
    with pytest.raises(ArtifactError, match=message):
        Artifact.create(dataclasses.replace(compiled.program, stages=stages), files, {"target": {"name": "opencl"}})


def test_without_the_package_it_says_what_to_install(compiled: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    with pytest.raises(
        GraphoptError, match=r"pyopencl is not installed; install it with pip install 'graphopt\[opencl\]'"
    ):
        compiled.session()


def test_a_program_for_cuda_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compile_model(model(), target="cuda").artifact
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(
        GraphoptError, match=r"cuda-bindings is not installed; install it with pip install 'graphopt\[cuda\]'"
    ):
        made.session()
    monkeypatch.undo()
    try:
        CudaDevice("sm_90")
    except GraphoptError as error:
        with pytest.raises(GraphoptError, match=str(error).split("(")[0]):
            made.session()
    else:
        same(made.session().run(feeds(model())), expected(model(), feeds(model())))


def test_runs_in_another_thread(compiled: Artifact) -> None:
    proto, session = model(), compiled.session()
    given = feeds(proto)
    with ThreadPoolExecutor(2) as pool:
        for result in pool.map(session.run, [given] * 4):
            same(result, expected(proto, given))


def test_kernels_that_are_no_bytes(compiled: Artifact) -> None:
    library = compiled.program.stages[0].library
    damaged = weights.weights_bytes({"kernel": np.ones(3, np.float32)})
    artifact = dataclasses.replace(compiled, files={**compiled.files, library: memoryview(damaged)})
    with pytest.raises(ArtifactError, match="is damaged: 'kernel' is no kernel"):
        artifact.session()
