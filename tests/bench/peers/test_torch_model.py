"""The converter to torch: the zoo's networks against ONNX Runtime, and refusals that name the operator."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

SCRIPT = """
import sys
import torch
import numpy as np
from pathlib import Path
from graphopt import load, models
from graphopt.bench.peers.runtimes import Torch
from graphopt.bench.sides import Settings
from graphopt.models.zoo import save
from graphopt.verify.oracle import compare, random_inputs, run_onnxruntime

folder = Path(sys.argv[1])
for name in sys.argv[2:]:
    loaded = load(models.build(name)).model
    save(loaded, folder / "model.onnx")
    feeds = random_inputs(loaded, 0)
    found = Torch().open(folder / "model.onnx", Settings(2)).run(feeds)
    wrong = compare(run_onnxruntime(models.build(name), feeds), found)
    print(name, [each.message for each in wrong])
"""
"""In a process of its own: torch must be imported before TVM, which other tests import."""

QUICK = (
    "lenet5",
    "lenet-digits",
    "mlp-digits",
    "lstm",
    "bilstm",
    "wideresnet28-2",
    "mobilenetv2",
    "layer/conv3x3-512x7",
    "seeded/shufflenet",
)
SLOW = (
    "googlenet", "densenet121", "unet", "mlp", "bert-base", "vit-b16", "gpt2-small", "seeded/squeezenet",
    "seeded/inception_v1",
)  # fmt: skip
"""Other networks of the zoo have no operator that these have not."""


def _run(*arguments: str) -> str:
    command = [sys.executable, "-P", "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("names", [QUICK, *(pytest.param((each,), marks=pytest.mark.slow) for each in SLOW)])
def test_modules_compute_what_onnx_runtime_does(names: tuple[str, ...], tmp_path: Path) -> None:
    assert _run(str(tmp_path), *names) == "".join(f"{name} []\n" for name in names)


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("y = Hardmax (x)", "no function for the operator Hardmax"),
        ('y = MaxPool <kernel_shape = [2, 2], auto_pad = "SAME_UPPER"> (x)', "MaxPool y: auto_pad"),
        (
            "y = AveragePool <kernel_shape = [2, 2], pads = [0, 0, 1, 1], ceil_mode = 1> (x)",
            "AveragePool y: uneven pads",
        ),
        ("s = Shape (x) y = Reshape (x, s)", "no function for the operator Shape"),
        ("y = LSTM <hidden_size = 4> (x, x, x)", "LSTM y: its weights are no constants"),
        ('y = LSTM <hidden_size = 4, direction = "reverse"> (x, x, x)', "LSTM y: its direction"),
        ("y = LSTM <hidden_size = 4, clip = 1.0> (x, x, x)", "LSTM y: its direction, or an attribute"),
    ],
)
def test_refusals_name_the_operator(body: str, sentence: str, tmp_path: Path) -> None:
    text = f'<ir_version: 8, opset_import: ["": 18]> g (float[1, 2, 4, 4] x) => (float[a, b, c, d] y) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    script = "import sys, pathlib; from graphopt.bench.peers.torch_model import Graph; Graph(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sentence in done.stderr.splitlines()[-1]


NARROWED = """
import sys
from pathlib import Path

import torch
import numpy as np
import onnx
from onnx import helper, numpy_helper
from graphopt.bench.peers.torch_model import Graph, narrowed

f, i = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
w = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
mask = np.array([0, np.finfo(np.float32).min] * 2, np.float32)
graph = helper.make_graph(
    [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Cast", ["k"], ["kf"], to=f),
        helper.make_node("Mul", ["a", "kf"], ["b"]),
        helper.make_node("Add", ["b", "mask"], ["c"]),
        helper.make_node("Softmax", ["c"], ["y"]),
    ],
    "g",
    [helper.make_tensor_value_info("x", f, [2, 4]), helper.make_tensor_value_info("k", i, [4])],
    [helper.make_tensor_value_info("y", f, [2, 4])],
    [numpy_helper.from_array(w, "w"), numpy_helper.from_array(mask, "mask")],
)
path = Path(sys.argv[1]) / "model.onnx"
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
x, k = torch.from_numpy(w[:2]), torch.tensor([1, 2, 3, 4])
wide = Graph(path)
half = Graph(path, torch.float16)
assert half.output_dtypes == ("float32",)
assert [each.dtype for each in half.constants] == [torch.float16] * 2
assert all(each.isfinite().all() for each in half.constants)  # a mask is no infinity
(expected,), (found,) = wide(x, k), half(narrowed(x, torch.float16), k)
assert found.dtype == torch.float16
assert (found.float() - expected).abs().max() < 5e-3
others = [torch.zeros_like(each) for each in half.constants]
assert torch.equal(half.compute(others, narrowed(x, torch.float16), k)[0], torch.full((2, 4), 0.25).half())
print("good")
"""


def test_a_narrower_type_stands_in_for_float32_and_constants_can_be_others(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-c", NARROWED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "good\n", done.stderr


FUSED = """
import sys
import torch
from pathlib import Path
from graphopt import load, models
from graphopt.bench import one
from graphopt.bench.peers.runtimes import Torch
from graphopt.bench.sides import Settings
from graphopt.verify.oracle import compare, random_inputs, run_onnxruntime
import onnx

for name in sys.argv[2:]:
    loaded = load(models.build(name)).model
    feeds = random_inputs(loaded, 0)
    files = one._files(models.build(name), loaded, ["torch"], Settings(2, target="cuda"), Path(sys.argv[1]))
    graph = onnx.load(files["torch"]).graph
    assert not any(node.op_type in ("BatchNormalization", "Softmax") for node in graph.node)
    outputs = Torch().open(files["torch"], Settings(2)).run(feeds)
    print(name, [each.message for each in compare(run_onnxruntime(models.build(name), feeds), outputs)])
"""
"""What torch gets on a GPU, computed on the CPU."""


@pytest.mark.parametrize(
    "names",
    [
        ("wideresnet28-2",),
        *(
            pytest.param((each,), marks=pytest.mark.slow)
            for each in ("resnet50", "densenet121", "bert-base", "vit-b16", "gpt2-small")
        ),
    ],
)
def test_after_fuse_modules_compute_the_same(names: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", FUSED, str(tmp_path), *names], capture_output=True, text=True, check=False
    )
    assert done.stdout == "".join(f"{name} []\n" for name in names), done.stderr


COMPILED = """
import sys
import torch
from pathlib import Path
from graphopt import load, models
from graphopt.bench import one
from graphopt.bench.sides import Settings
from graphopt.bench.peers.torch_model import Graph, narrowed
from graphopt.verify.oracle import random_inputs
from torch._dynamo.utils import counters

loaded = load(models.build("wideresnet28-2")).model
feeds = random_inputs(loaded, 0)
files = one._files(models.build("wideresnet28-2"), loaded, ["torch"], Settings(2, target="cuda"), Path(sys.argv[1]))
graph = Graph(files["torch"], torch.bfloat16)
function = torch.compile(graph.compute, dynamic=False, fullgraph=True, backend="eager")
inputs = [narrowed(torch.from_numpy(feeds[name]), torch.bfloat16) for name in graph.input_names]
sets = [(graph.constants, inputs), ([each.clone() for each in graph.constants], [each.clone() for each in inputs])]
with torch.inference_mode():
    first, second = [function(constants, *given) for constants, given in sets]
assert all(map(torch.equal, first, second))
print(counters["stats"]["unique_graphs"])
"""


def test_one_compilation_is_for_all_sets_of_constants(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", COMPILED, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "1\n", done.stderr
