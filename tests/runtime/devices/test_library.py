from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphopt import disk_cache
from graphopt.artifact import Artifact
from graphopt.errors import ArtifactError
from graphopt.runtime.devices import host, library

_RUN = """
import json, sys
import numpy as np
import graphopt
session = graphopt.open(sys.argv[1]).session(threads=1)
y = session.run({"x": np.ones(1000, np.float32)})["y"]
maps = open("/proc/self/maps").read()
heavy = ["torch", "cuda.bindings", "tvm", "onnx", "onnx_ir", "onnxruntime", "onnxscript"]
print(json.dumps({
    "modules": [name for name in heavy if name in sys.modules],
    "mapped": [name for name in ("libtvm_compiler", "libtorch", "onnxruntime") if name in maps],
    "runtime": "libtvm_runtime.so" in maps,
    "sum": float(y.sum()),
}))
"""


def run_python(*arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_session_loads_neither_torch_nor_cuda_nor_the_compiler(one_stage: Artifact, tmp_path: Path) -> None:
    path = one_stage.save(tmp_path / "model.gopt")
    found = json.loads(run_python("-c", _RUN, str(path), GRAPHOPT_CODE_CACHE=str(tmp_path / "cache")))
    assert found["modules"] == []
    assert found["mapped"] == []
    assert found["runtime"]
    assert found["sum"] > 0
    assert len(list((tmp_path / "cache/libraries").iterdir())) == 1


def test_torch_and_the_compiler_can_follow_a_session(one_stage: Artifact, tmp_path: Path) -> None:
    path = one_stage.save(tmp_path / "model.gopt")
    code = _RUN + "import torch, tvm; print(float((torch.ones(2, 2) @ torch.ones(2, 2)).sum()), tvm.__name__)"
    assert run_python("-c", code, str(path)).splitlines()[-1] == "8.0 tvm"


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="the extra cuda is not installed")
def test_the_driver_api_can_follow_a_session(one_stage: Artifact, tmp_path: Path) -> None:
    path = one_stage.save(tmp_path / "model.gopt")
    code = _RUN + "from cuda.bindings import driver; print(driver.CUresult.CUDA_SUCCESS.name)"
    assert run_python("-c", code, str(path)).splitlines()[-1] == "CUDA_SUCCESS"


def test_a_spoilt_cache_file_is_replaced(one_stage: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHOPT_CODE_CACHE", str(tmp_path))
    file = one_stage.library_file("stage_0.so")
    good = file.read_bytes()
    file.write_bytes(good[:-1] + b"?")
    assert one_stage.library_file("stage_0.so").read_bytes() == good


def test_unpacked_libraries_stay_below_a_bound(
    one_stage: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAPHOPT_CODE_CACHE", str(tmp_path))
    file = one_stage.library_file("stage_0.so")
    old, older = file.with_name("old.so"), file.with_name("older.so")
    for path, age in ((old, 1000), (older, 2000)):
        path.write_bytes(bytes(100))
        os.utime(path, (file.stat().st_mtime - age,) * 2)
    file.unlink()
    monkeypatch.setattr(disk_cache, "LIBRARY_BYTES", len(one_stage.files["stage_0.so"]) + 150)
    assert one_stage.library_file("stage_0.so") == file
    assert sorted(each.name for each in file.parent.iterdir()) == sorted([file.name, "old.so"])
    os.utime(file, (0, 0))
    one_stage.library_file("stage_0.so")
    assert file.stat().st_mtime > old.stat().st_mtime, "its use shows"


def test_without_a_cache_a_temporary_file_serves(
    one_stage: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRAPHOPT_CODE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = one_stage.library_file("stage_0.so")
    assert file.is_relative_to(tmp_path)
    assert file.read_bytes() == bytes(one_stage.files["stage_0.so"])


def test_the_temporary_file_goes_with_the_process(one_stage: Artifact, tmp_path: Path) -> None:
    one_stage.save(tmp_path / "a.gopt")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "tmp").mkdir()
    script = "import graphopt, sys; print(graphopt.open(sys.argv[1]).library_file('stage_0.so'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, str(tmp_path / "a.gopt")],
        env={**os.environ, "GRAPHOPT_CODE_CACHE": str(tmp_path / "file"), "TMPDIR": str(tmp_path / "tmp")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.startswith(str(tmp_path / "tmp"))
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_library_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "k.so").write_bytes(b"rubbish")
    with pytest.raises(ArtifactError, match=r"k\.so cannot be loaded"):
        library.load(tmp_path / "k.so")


def test_empty_and_scalar_tensors() -> None:
    memory = np.zeros(64, np.uint8)
    assert tuple(library.tensor(memory[:0], "float32", (0, 3)).shape) == (0, 3)
    assert tuple(library.tensor(memory[:8], "int64", ()).shape) == ()


def test_cpu_flags(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: other\n")
    assert host.features(tmp_path / "cpuinfo") == {"fpu", "avx2", "fma"}
    assert host.features(tmp_path / "absent") == frozenset()
    assert 1 <= host.default_threads() <= host.available_cpus() <= (os.cpu_count() or 1)
