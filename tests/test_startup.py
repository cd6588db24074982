"""What importing and starting loads: modules, not seconds, because seconds depend on the machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest

HEAVY = frozenset({"tvm", "torch", "onnxruntime", "onnx", "onnx_ir", "onnxscript", "scipy", "networkx", "sympy"})

MODEL = """
<ir_version: 8, opset_import: ["": 18]>
small (float[2, 3] x) => (float[2, 3] y)
{
    y = Relu (x)
}
"""


def _loaded(code: str) -> set[str]:
    """Top level modules in a fresh process after `code`."""
    program = (
        f"import json, sys\n{code}\nsys.stderr.write(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_import_is_light() -> None:
    assert not _loaded("import graphopt") & (HEAVY | {"numpy", "typer", "rich"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["compile", "--help"], ["run", "--help"], ["models"]])
def test_help_and_listings_are_light(arguments: list[str]) -> None:
    found = _loaded(f"from graphopt.cli import main\nassert main({arguments!r}) == 0")
    assert not found & (HEAVY | {"numpy"})


def test_running_loads_no_compiler(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(MODEL), tmp_path / "small.onnx")
    artifact, model = tmp_path / "small.gopt", tmp_path / "small.onnx"
    subprocess.run([sys.executable, "-P", "-m", "graphopt", "compile", str(model), "-o", str(artifact)], check=True)
    arguments = ["run", str(artifact), "--random", "--output", str(tmp_path / "out"), "--json"]
    found = _loaded(f"from graphopt.cli import main\nassert main({arguments!r}) == 0")
    assert not found & HEAVY
    assert "tvm_ffi" in found
