"""torch on a GPU as a side, with a `torch.cuda` of paper: what is captured, replayed and timed, and in which precision.

That the real one does the same was not seen: no test here has a GPU.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import contextlib, sys, types
from pathlib import Path
import numpy as np
import onnx
import onnx.parser
import torch
import torch._inductor.config  # before there is a paper in place of what it looks at

log = []

class Stream:
    def wait_stream(self, other): log.append("wait")
    def synchronize(self): pass

class Event:
    now = 0.0
    def __init__(self, enable_timing=False): assert enable_timing
    def record(self): Event.now += 0.25; self.at = Event.now
    def synchronize(self): log.append("synchronize")
    def elapsed_time(self, end): return (end.at - self.at) * 8

class CUDAGraph:
    def replay(self): log.append(self); Event.now += 0.25

@contextlib.contextmanager
def graph(captured, stream):
    log.append("capture")
    yield

torch.cuda = types.SimpleNamespace(
    Stream=Stream, Event=Event, CUDAGraph=CUDAGraph, graph=graph, is_available=lambda: True,
    current_stream=Stream, stream=lambda _: contextlib.nullcontext(), synchronize=lambda: None,
    empty_cache=lambda: None, memory_reserved=lambda: 100,
    get_device_properties=lambda _: types.SimpleNamespace(L2_cache_size=4000),
)
torch.Tensor.cuda = lambda self: self.clone()
empty = torch.empty
torch.empty = lambda *shape, device=None, **rest: empty(*shape, **rest)

from graphopt.bench.peers.runtimes import Torch, TorchCompile
from graphopt.bench.sides import Settings
from graphopt.verify.oracle import compare, run_onnxruntime
from graphopt.verify.precisions import tolerances

proto = onnx.parser.parse_model('''
    <ir_version: 10, opset_import: ["": 20]>
    net (float[1, 4, 8, 8] x, int64[2] k) => (float[1, 4, 8, 8] y, int64[2] z)
    <float[4, 4, 3, 3] w> { c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w)  y = Relu(c)  z = Add(k, k) }
''')
rng = np.random.default_rng(0)
del proto.graph.value_info[:]
w = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
proto.graph.initializer.append(onnx.numpy_helper.from_array(w, "w"))
path = Path(sys.argv[1]) / "net.onnx"
onnx.save(proto, path)
feeds = {"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32), "k": np.array([3, 4])}

for precision in ("fp32", "tf32", "fp16", "bf16"):
    side = Torch().open(path, Settings(2, target="cuda", precision=precision))
    assert compare(run_onnxruntime(path, feeds), side.run(feeds), tolerances(precision)) == [], precision
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
    narrow = precision in ("fp16", "bf16")
    (_, (constant,), inputs, outputs), = side._captured
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    assert constant.dtype == inputs[0].dtype == outputs[0].dtype == kind
    assert inputs[1].dtype == outputs[1].dtype == torch.int64
    channels_last = constant.is_contiguous(memory_format=torch.channels_last)
    assert channels_last == inputs[0].is_contiguous(memory_format=torch.channels_last) == narrow
    assert side.device_bytes == 0
    assert side.sets == 1 + -(-4000 // (w.nbytes // (2 if narrow else 1)))
    block = side.block(feeds)
    assert len(side._captured) == side.sets
    assert len({each[1][0].data_ptr() for each in side._captured}) == side.sets
    del log[:]
    assert block(side.sets) == [0.004] * side.sets
    replayed = [each for each in log if isinstance(each, CUDAGraph)]
    assert replayed == [*(each[0] for each in side._captured), side._captured[0][0]]
    assert log[-1] == "synchronize"
modes = []
torch.compile = lambda function, **options: modes.append(options) or function
compiled = TorchCompile().open(path, Settings(2, target="cuda", precision="fp16"))
assert compare(run_onnxruntime(path, feeds), compiled.run(feeds), tolerances("fp16")) == []
assert modes == [{"dynamic": False, "mode": "max-autotune-no-cudagraphs"}]
print("good")
"""


def test_captured_graphs_take_turns(tmp_path: Path) -> None:
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CXX": sys.executable}
    command = [sys.executable, "-P", "-W", "error", "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.stdout == "good\n", done.stderr


@pytest.mark.parametrize("name", ["torch", "torch-compile", "onnxruntime"])
def test_without_cuda_they_say_so(name: str, tmp_path: Path) -> None:
    script = (
        "import sys; from graphopt.bench.peers.runtimes import peer; from graphopt.bench.sides import Settings; "
        "peer(sys.argv[1]).open('none.onnx', Settings(1, target='cuda'))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, name],
        capture_output=True,
        text=True,
        check=False,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": "/usr/bin:/bin"},
    )
    assert "CUDA: install" in done.stderr.splitlines()[-1]
