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
from graphopt.bench.peers import Torch
from graphopt.models.zoo import save
from graphopt.verify import compare, random_inputs, run_onnxruntime

folder = Path(sys.argv[1])
for name in sys.argv[2:]:
    loaded = load(models.build(name)).model
    save(loaded, folder / "model.onnx")
    feeds = random_inputs(loaded, 0)
    wrong = compare(run_onnxruntime(models.build(name), feeds), Torch().open(folder / "model.onnx", 2)(feeds))
    print(name, [each.message for each in wrong])
"""
"""In a process of its own: torch must be imported before TVM, which other tests import."""

QUICK = ("lenet5", "lenet-digits", "wideresnet28-2", "mobilenetv2", "layer/conv3x3-512x7", "seeded/shufflenet")
SLOW = (
    "alexnet", "resnet18", "resnet50", "googlenet", "densenet121", "unet", "vgg16", "mlp", "bert-base", "vit-b16",
    "gpt2-small", "layer/gemm-1024", "seeded/squeezenet", "seeded/inception_v1", "seeded/inception_v2",
)  # fmt: skip


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
    ],
)
def test_refusals_name_the_operator(body: str, sentence: str, tmp_path: Path) -> None:
    text = f'<ir_version: 8, opset_import: ["": 18]> g (float[1, 2, 4, 4] x) => (float[a, b, c, d] y) {{ {body} }}'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    script = "import sys, pathlib; from graphopt.bench.torch_model import Graph; Graph(pathlib.Path(sys.argv[1]))"
    command = [sys.executable, "-P", "-c", script, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sentence in done.stderr.splitlines()[-1]
