"""Checkpoints: every bit is checked, no failure loses the one before, and equal trainings have equal bytes."""

from __future__ import annotations

import json
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.errors import GraphoptError
from graphopt.training.records.checkpoint import Checkpoint, Position, load, save
from graphopt.training.records.folder import BEST, CheckpointFolder
from graphopt.training.records.history import EpochRecord, History, StepRecord

STATE: dict[str, Any] = {
    "w": np.array([[1.5, -0.0], [np.inf, 1e-45]], np.float32),
    "half": np.array([1, 2], np.float16),
    "brain": np.array([1, 2, 3], ml_dtypes.bfloat16),
    "graphopt.step": np.array(7, np.int64),
    "__odd name/ü": np.zeros((0, 3), np.float64),
    "mask": np.array([True, False]),
}
HISTORY = History([StepRecord(1, 1, 2.5, float("nan"), 0.1)], [EpochRecord(1, 1, 2.5, float("nan"), 0.5, 0.25)])
CHECKPOINT = Checkpoint("digest", Position(12, 1, 3), {"seed": 4, "data": {"x": "float32 [3]"}}, STATE, HISTORY)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("one") / "c.safetensors"
    save(path, CHECKPOINT)
    return path.read_bytes()


def test_everything_comes_back_bit_by_bit(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.safetensors"
    save(path, CHECKPOINT)
    found = load(path)
    assert (found.model, found.position, found.settings) == ("digest", Position(12, 1, 3), CHECKPOINT.settings)
    assert repr(found.history) == repr(HISTORY)  # NaN is not equal to itself
    assert set(found.state) == set(STATE)
    for name, array in STATE.items():
        assert (found.state[name].dtype, found.state[name].shape) == (array.dtype, array.shape)
        assert found.state[name].tobytes() == array.tobytes()
    assert path.read_bytes() == content


def test_other_tools_read_it(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    path = tmp_path / "c.safetensors"
    save(path, CHECKPOINT)
    found = load_file(path)
    assert found["state/brain"].dtype == torch.bfloat16
    assert found["state/graphopt.step"].item() == 7


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_noticed(data: st.DataObject, content: bytes, tmp_path: Path) -> None:
    place = data.draw(st.integers(0, len(content) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = bytearray(content)
    changed[place] ^= 1 << bit
    path = tmp_path / "c.safetensors"
    path.write_bytes(changed)
    found, message = None, ""
    try:
        found = load(path)
    except GraphoptError as error:
        message = str(error)
    if found is None:
        assert str(path) in message
        assert "\n" not in message
    else:  # only padding is not read
        assert repr(found.history) == repr(HISTORY)
        assert all(found.state[name].tobytes() == array.tobytes() for name, array in STATE.items())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_a_truncated_one_is_refused(share: float, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(GraphoptError, match=r"is damaged \(.*\); remove it to go on from the one before it"):
        load(path)


def test_files_of_another_kind(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"w": np.ones(16, np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(GraphoptError, match="no checkpoint of a training|is damaged"):
        load(tmp_path / "weights.safetensors")
    with pytest.raises(GraphoptError, match="cannot be read: No such file"):
        load(tmp_path / "missing.safetensors")
    with pytest.raises(GraphoptError, match="cannot be read|not a regular file"):
        load(tmp_path)


def test_a_later_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    monkeypatch.setattr("graphopt.training.records.checkpoint.FORMAT", 2)
    save(path, CHECKPOINT)
    monkeypatch.undo()
    with pytest.raises(GraphoptError, match="checkpoint of format 2, and this graphopt reads 1"):
        load(path)


@pytest.mark.parametrize("field", ["step", "settings", "model", "tensors"])
def test_a_description_that_lacks_something(field: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = json.dumps

    def dumps(document: Any, **options: Any) -> str:
        if isinstance(document, dict) and field in document:
            document = {name: value for name, value in document.items() if name != field}
        return original(document, **options)

    monkeypatch.setattr("graphopt.training.records.checkpoint.json.dumps", dumps)
    save(tmp_path / "c.safetensors", CHECKPOINT)
    monkeypatch.undo()
    with pytest.raises(GraphoptError, match=f"no valid {field}"):
        load(tmp_path / "c.safetensors")


class _FullDisk:
    """A file that takes `room` bytes."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self._file, self._room = file, room

    def write(self, data: bytes) -> int:
        self._room -= len(data)
        if self._room < 0:
            raise OSError(28, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _FullDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@pytest.mark.parametrize("room", [0, 200, 4000])
def test_a_full_disk_keeps_the_old_one(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.safetensors"
    save(path, CHECKPOINT)
    before = path.read_bytes()
    larger = replace(CHECKPOINT, state={"w": np.ones(3000, np.float32)})
    real = os.fdopen
    with monkeypatch.context() as patch:
        patch.setattr("graphopt.program.files.os.fdopen", lambda *given: _FullDisk(real(*given), room))
        with pytest.raises(GraphoptError, match="No space left on device; free some space .* is intact"):
            save(path, larger)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["c.safetensors"]


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    save(path, CHECKPOINT)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(GraphoptError, match="File too large"):
            save(path, replace(CHECKPOINT, state={"w": np.ones(100_000, np.float32)}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["c.safetensors"]


def _at(step: int) -> Checkpoint:
    return replace(CHECKPOINT, position=Position(step, 0, step))


def test_the_folder_keeps_the_last_ones_and_the_best(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run", keep=2)
    assert folder.last() is None
    folder.prepare()
    for step in (1, 2, 10, 11):
        folder.save(_at(step), best=step == 2)
    assert sorted(each.name for each in folder.path.iterdir()) == [
        BEST,
        "step-0000000010.safetensors",
        "step-0000000011.safetensors",
    ]
    assert load(folder.path / BEST).position.step == 2
    last = folder.last()
    assert last is not None
    assert last.position.step == 11


def test_a_damaged_last_one_names_itself(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "run")
    folder.save(_at(1))
    path = folder.save(_at(2))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GraphoptError, match="step-0000000002.safetensors is damaged"):
        folder.last()
    path.unlink()
    assert folder.last() is not None


def test_what_a_killed_training_left_goes(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    (tmp_path / ".step-0000000003.safetensors.abc123.tmp").write_bytes(b"half")
    (tmp_path / ".other.tmp").write_bytes(b"of somebody else")
    folder.prepare()
    assert [each.name for each in tmp_path.iterdir()] == [".other.tmp"]


def test_without_links_the_best_is_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_link)
    folder = CheckpointFolder(tmp_path)
    path = folder.save(_at(3), best=True)
    assert (tmp_path / BEST).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("place", "message"),
    [("file", "is a file; name another place"), ("no/such/run", "does not exist, so .* cannot be made in it")],
)
def test_places_that_are_no_folder(place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GraphoptError, match=message):
        CheckpointFolder(tmp_path / place)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("graphopt.training.records.folder.tempfile.TemporaryFile", refuse)
    with pytest.raises(GraphoptError, match="checkpoints cannot be written to .*: Permission denied; name another"):
        CheckpointFolder(tmp_path / "run").prepare()
