"""The cache: built once, whole or absent, safe under two processes, with errors that say what to do."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest

from graphopt import models
from graphopt.errors import ModelError
from graphopt.models import zoo


def test_a_second_build_builds_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = models.build("lenet5")
    assert path.parent == cache
    written = path.stat().st_mtime_ns
    monkeypatch.setattr("graphopt.models.export.to_onnx", lambda *_: pytest.fail("exported again"))
    assert models.build("lenet5") == path
    assert path.stat().st_mtime_ns == written


def test_the_key_follows_the_sources_and_the_versions(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    info = models.describe("lenet5")
    key = zoo._key(info)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", lambda name: "0")
        assert zoo._key(info) != key
    for source in ("lenet.py", "weights.py", "export.py"):
        (tmp_path / source).write_bytes((zoo.HERE / source).read_bytes())
    monkeypatch.setattr(zoo, "HERE", tmp_path)
    assert zoo._key(info) == key
    (tmp_path / "lenet.py").write_text("changed")
    assert zoo._key(info) != key


def test_two_processes_may_build_the_same_model(tmp_path: Path) -> None:
    program = "from graphopt import models; print(models.build('lenet5'))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    results = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    # The exporter says nothing, and both name the one file that is left.
    assert {errors for _, errors in results} == {""}
    (path,) = {output.strip() for output, _ in results}
    assert [str(file) for file in (tmp_path / "graphopt" / "models").iterdir()] == [path]
    onnx.checker.check_model(path, full_check=True)


def test_other_processes_build_the_same_bytes(cache: Path, tmp_path: Path) -> None:
    program = "from graphopt import models; print(models.build('lenet5'))"
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    digests = {
        hashlib.sha256(Path(path).read_bytes()).digest() for path in (result.stdout.strip(), models.build("lenet5"))
    }
    assert len(digests) == 1


def test_a_cache_that_cannot_be_written_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "graphopt").write_text("a file where the cache should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ModelError) as caught:
        models.build("lenet5")
    assert str(caught.value) == (
        f"the model lenet5 cannot be written to {tmp_path / 'graphopt' / 'models'} (Not a directory); "
        "make room there or set XDG_CACHE_HOME to another directory."
    )


def test_a_failed_write_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(model: onnx_ir.Model, path: Path, external_data: str | None) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    source = onnx_ir.load(models.build("lenet5"))
    monkeypatch.setattr(onnx_ir, "save", full)
    with pytest.raises(OSError, match="No space left"):
        zoo.save(source, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_large_weights_go_beside_the_model(cache: Path, tmp_path: Path) -> None:
    source = onnx_ir.load(models.build("lenet5"))
    path = tmp_path / "model.onnx"
    zoo.save(source, path, external_bytes=1000)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert path.stat().st_size < 10_000
    expected, actual = onnx.load(models.build("lenet5")).graph, onnx.load(path).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in expected.initializer}
    for tensor in actual.initializer:
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), arrays[tensor.name])
