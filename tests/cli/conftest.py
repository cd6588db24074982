"""Small models on disk, one compiled once, and the command line called in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx.parser
import pytest

from graphopt.cli import main

CONV = """
<ir_version: 8, opset_import: ["": 18]>
tiny (float[1, 16, 8, 8] x) => (float[1, 16, 8, 8] y)
<float[16, 16, 3, 3] w, float[16] b>
{
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, w, b)
    y = Relu (c)
}
"""
NAMED = """
<ir_version: 8, opset_import: ["": 18]>
named (float[2, 3] x, int64[2, 3] mask) => (float[2, 3] y, float[2, 3] z)
{
    m = Cast <to = 1> (mask)
    y = Mul (x, m)
    z = Neg (x)
}
"""


@dataclass(frozen=True)
class Result:
    """What a command left: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as JSON; nothing else may be there."""
        return json.loads(self.out)

    @property
    def one_sentence(self) -> bool:
        """Whether stderr holds a single line from graphopt, and no traceback."""
        return self.err.startswith("graphopt: ") and self.err.count("\n") == 1 and "Traceback" not in self.err


@pytest.fixture
def graphopt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Call the command line; stdout and stderr are no terminals."""

    def call(*arguments: object) -> Result:
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


def _write(text: str, path: Path) -> Path:
    """The text model with constant initializers, as a file."""
    import numpy as np

    model = onnx.parser.parse_model(text)
    generator = np.random.default_rng(0)
    for value in model.graph.value_info:  # declared in the text, drawn here
        dims = [each.dim_value for each in value.type.tensor_type.shape.dim]
        array = generator.standard_normal(dims).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, value.name))
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution and a Relu."""
    return _write(CONV, tmp_path_factory.mktemp("models") / "tiny.onnx")


@pytest.fixture(scope="session")
def compiled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, compiled."""
    path = tmp_path_factory.mktemp("artifacts") / "tiny.gopt"
    assert main(["compile", str(tiny), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def two_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two inputs and two outputs; one output is called `out/y` in the artifact."""
    folder = tmp_path_factory.mktemp("two")
    model = onnx.load(_write(NAMED, folder / "named.onnx"))
    for node in model.graph.node:
        node.output[:] = ["out/y" if name == "y" else name for name in node.output]
    model.graph.output[0].name = "out/y"
    onnx.save(model, folder / "named.onnx")
    path = folder / "named.gopt"
    assert main(["compile", str(folder / "named.onnx"), "-o", str(path)]) == 0
    return path


@pytest.fixture(scope="session")
def write_model() -> Callable[[str, Path], Path]:
    """Writes a text model to a file."""
    return _write
