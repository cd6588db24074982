"""On a real GPU; without one these tests skip, saying so. What they check is otherwise held by paper and PoCL alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from graphopt.bench.device import level
from graphopt.compiler import compile_model
from graphopt.errors import GraphoptError
from graphopt.runtime.devices.cuda import CudaDevice
from graphopt.runtime.session import Session
from graphopt.targets.gpu.target import GpuTarget

TEXT = """
    <ir_version: 10, opset_import: ["": 20]>
    net (float[2, 32, 12, 12] x) => (float[2, 16] y, float[2, 48, 12, 12] hidden)
    <float[48, 32, 3, 3] w, float[48] bias, float[48, 16] v>
    {
      c = Conv<pads = [1, 1, 1, 1]>(x, w, bias)
      hidden = Relu(c)
      p = GlobalAveragePool(hidden)
      f = Flatten(p)
      l = MatMul(f, v)
      y = Softmax(l)
    }
"""
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 5e-2}


@pytest.fixture(scope="module")
def gpu() -> CudaDevice:
    """The GPU of this machine."""
    try:
        return CudaDevice()
    except GraphoptError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    """A small network with seeded weights."""
    proto = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(7)
    for value in proto.graph.value_info:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        array = (rng.standard_normal(shape) / 8).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del proto.graph.value_info[:]
    return proto


def _feeds(seed: int) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).standard_normal((2, 32, 12, 12)).astype(np.float32)}


def _same(model: onnx.ModelProto, feeds: dict[str, Any], found: dict[str, Any], tolerance: float = 1e-4) -> None:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for output, wanted in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        assert np.abs(np.asarray(found[output.name]) - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_programs_compute_again_and_again(gpu: CudaDevice, model: onnx.ModelProto, precision: str) -> None:
    made = compile_model(model, target="cuda", level=level(gpu.facts()), precision=precision, fallback=False)
    session = Session(made.artifact, device=gpu)
    for seed in range(3):
        _same(model, _feeds(seed), session.run(_feeds(seed)), TOLERANCE[precision])
    (touched,) = session.measure_arena(_feeds(0))
    assert touched <= made.artifact.program.stages[0].arena_bytes
    times = session.profile(_feeds(0))
    assert len(times) == sum(len(each.calls) for each in made.artifact.program.stages[0].segments)  # type: ignore[union-attr]
    assert all(0 < each.seconds < 0.1 for each in times)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_costs_are_measured_here_and_once(
    gpu: CudaDevice, model: onnx.ModelProto, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = {"target": "cuda", "level": level(gpu.facts()), "precision": precision, "costs": "measured"}
    made = compile_model(model, **options, fallback=False)  # type: ignore[arg-type]
    assert f"costs are measured on {gpu.name}" in made.notes
    timings = made.artifact.manifest["costs"]
    assert timings
    assert all(row is not None and 0 < row[1] <= row[0] <= row[2] < 0.1 for row in timings.values())
    _same(model, _feeds(0), Session(made.artifact, device=gpu).run(_feeds(0)), TOLERANCE[precision])
    monkeypatch.setattr(GpuTarget, "measure", None)
    again = compile_model(model, **options, fallback=False)  # type: ignore[arg-type]
    assert again.artifact.manifest["choices"] == made.artifact.manifest["choices"]


def test_replays_are_timed(gpu: CudaDevice, model: onnx.ModelProto) -> None:
    artifact = compile_model(model, target="cuda", level=level(gpu.facts())).artifact
    session = Session(artifact, device=gpu)
    step = session.replay(_feeds(1))
    laps = gpu.laps([step] * 50)
    assert len(laps) == 50
    assert all(0 < each < 0.1 for each in laps)
    _same(model, _feeds(1), {name: np.asarray(each) for name, each in _outputs(session).items()})


def _outputs(session: Session) -> dict[str, Any]:
    """What the last replay left, read without running again."""
    from graphopt.runtime.devices.dlpack import DeviceTensor

    runner: Any = session._runners[0]
    assert session.device is not None
    return {
        port.name: DeviceTensor(runner.shared(port.name), port.dtype, port.shape or (), session.device, runner)
        for port in session.outputs
    }


def test_fallback_models_between_kernels(gpu: CudaDevice) -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["": 20]>
        net (float[4, 3, 3] x) => (float[4] y) { a = Exp(x)  d = Det(a)  y = Tanh(d) }
    """)
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 3, 3)).astype(np.float32)}
    session = compile_model(proto, target="cuda", level=level(gpu.facts())).artifact.session()
    for _ in range(2):
        _same(proto, feeds, session.run(feeds))
        _same(proto, feeds, session.run_device(feeds))


def test_numpy_feeds_and_outputs_on_the_device(gpu: CudaDevice, model: onnx.ModelProto) -> None:
    session = compile_model(model, target="cuda", level=level(gpu.facts())).artifact.session()
    for seed in range(20):
        outputs = session.run_device(_feeds(seed))
    _same(model, _feeds(19), outputs)


SHARED = """
import sys
import torch
import numpy as np
import graphopt

if not torch.cuda.is_available():
    print("no CUDA")
    raise SystemExit
folder = sys.argv[1]
session = graphopt.open(f"{folder}/net.gopt").session()
xs = np.load(f"{folder}/x.npy")
for stream in (torch.cuda.current_stream(), torch.cuda.Stream()):
    with torch.cuda.stream(stream):
        results = []
        for x in xs:
            outputs = session.run_device({"x": torch.from_numpy(x).cuda()}, stream.cuda_stream)
            shown = torch.from_dlpack(outputs["hidden"])
            assert shown.data_ptr() == outputs["hidden"].pointer
            results.append((shown.clone(), torch.from_dlpack(outputs["y"]).clone()))
        stream.synchronize()
    for (hidden, y), x in zip(results, xs):
        wanted = session.run({"x": x})
        assert np.abs(hidden.cpu().numpy() - wanted["hidden"]).max() < 1e-6
        assert np.abs(y.cpu().numpy() - wanted["y"]).max() < 1e-6
del session, outputs
assert torch.isfinite(shown).all()  # its memory is still there
print("good")
"""
"""In a process of its own: torch must be imported before TVM, which other tests import."""


def test_torch_shares_memory_both_ways(gpu: CudaDevice, model: onnx.ModelProto, tmp_path: Path) -> None:
    compile_model(model, target="cuda", level=level(gpu.facts())).artifact.save(tmp_path / "net.gopt")
    np.save(tmp_path / "x.npy", np.stack([_feeds(seed)["x"] for seed in range(8)]))
    done = subprocess.run(
        [sys.executable, "-P", "-c", SHARED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    if done.stdout == "no CUDA\n":
        pytest.skip("needs a build of torch for CUDA")
    assert done.stdout == "good\n", done.stderr
