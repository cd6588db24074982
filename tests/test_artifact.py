from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graphopt.artifact import Artifact, open_artifact
from graphopt.errors import ArtifactError
from graphopt.program.manifest import manifest_bytes, own_digest
from graphopt.program.weights import save_weights, weights_bytes
from graphopt.runtime.devices import host
from tests.helpers.sample_artifact import contents, sample


@pytest.fixture(params=["file", "directory"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model.gopt"
    if request.param == "directory":
        path.mkdir()
    return sample().save(path)


def test_save_and_open_give_the_same_artifact(saved: Path) -> None:
    opened = open_artifact(saved)
    assert contents(opened) == contents(sample())
    assert opened.program == sample().program
    assert opened.manifest == sample().manifest
    assert opened.manifest["pipeline"] == "fuse"
    assert opened.manifest["format"] == 1
    listed = opened.manifest["files"]["fallback/0.onnx"]
    assert listed == {"bytes": 5, "sha256": hashlib.sha256(b"model").hexdigest()}


def test_equal_artifacts_are_equal_files(tmp_path: Path) -> None:
    first, second = sample().save(tmp_path / "a.gopt"), sample().save(tmp_path / "b.gopt")
    assert first.read_bytes() == second.read_bytes()


def test_a_path_that_ends_in_a_slash_is_a_directory(tmp_path: Path) -> None:
    sample().save(f"{tmp_path}/out/")
    assert (tmp_path / "out/fallback/0.onnx").read_bytes() == b"model"
    assert open_artifact(tmp_path / "out").program == sample().program


def test_mapped_weights_are_aligned_in_memory(saved: Path) -> None:
    data, index = open_artifact(saved).weights("weights_0.safetensors")
    address = np.frombuffer(data, np.uint8).ctypes.data
    assert all((address + entry.start) % 64 == 0 for entry in index.values())


def test_every_changed_byte_of_a_file_is_found(tmp_path: Path) -> None:
    path = sample().save(tmp_path / "model.gopt")
    good = path.read_bytes()
    chance = random.Random(7)
    header = range(300)
    tail = range(len(good) - 900, len(good))
    rest = chance.sample(range(len(good)), 400)
    for position in (*header, *tail, *rest):
        damaged = bytearray(good)
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError) as error:
            open_artifact(path)
        assert "\n" not in str(error.value)


def test_truncated_and_extended_files_are_refused(tmp_path: Path) -> None:
    path = sample().save(tmp_path / "model.gopt")
    good = path.read_bytes()
    for size in (0, 1, 21, 98, 200, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(ArtifactError, match=r"model\.gopt"):
            open_artifact(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(ArtifactError, match="damaged"):
        open_artifact(path)


def test_the_sentence_about_a_damaged_file_says_where(tmp_path: Path) -> None:
    path = sample().save(tmp_path / "model.gopt")
    good = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        infos = {info.filename: info.header_offset for info in archive.infolist()}
        directory = archive.start_dir
    weights, size = infos["weights_0.safetensors"], len(good)
    cases = [
        (b"", "it is empty"),
        (b"hello" * 100, "it does not begin as a zip file does"),
        (good[: weights + 200], f"is cut off at byte {weights + 200}, where 'weights_0.safetensors' goes on to byte"),
        (good[: directory + 50], f"it has no end record at its last byte {directory + 50}"),
        (good + b"\0", f"it has no end record at its last byte {size + 1}"),
        (good[:80] + b"more" + good[80:], f"describes a file of {size} bytes, and it has {size + 4}"),
        (good[: weights + 6] + b"\1" + good[weights + 7 :], f"'weights_0.safetensors' is wrong at byte {weights + 6}"),
        (good[: directory + 6] + b"\1" + good[directory + 7 :], f"its directory is wrong at byte {directory + 6}"),
        (good[: directory + 30] + b"\1" + good[directory + 31 :], "entry 0 of its directory has wrong lengths"),
    ]
    for damaged, where in cases:
        path.write_bytes(damaged)
        with pytest.raises(ArtifactError) as error:
            open_artifact(path)
        assert where in str(error.value)
        assert str(error.value).startswith(f"{path} is ")
        assert str(error.value).endswith("; compile the model again")


def test_tvm_is_asked_for_where_kernels_call_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Machine code for a GPU calls nothing."""

    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    manifest = {"versions": {"apache-tvm": "0.27.0"}}
    here = sample({**manifest, "target": {"name": "llvm"}}).save(tmp_path / "llvm.gopt")
    with pytest.raises(ArtifactError, match=r"needs apache-tvm 0\.27\.0, which is not installed: install it"):
        open_artifact(here)
    for name in ("cuda", "opencl"):
        open_artifact(sample({**manifest, "target": {"name": name}}).save(tmp_path / f"{name}.gopt"))


def test_random_bytes_are_refused(tmp_path: Path) -> None:
    chance = random.Random(3)
    good = sample().save(tmp_path / "model.gopt").read_bytes()
    for _ in range(100):
        body = bytearray(good)
        start = chance.randrange(len(body))
        body[start : start + chance.randrange(1, 200)] = chance.randbytes(chance.randrange(1, 200))
        (tmp_path / "bad.gopt").write_bytes(body)
        with pytest.raises(ArtifactError):
            open_artifact(tmp_path / "bad.gopt")


def test_every_changed_file_of_a_directory_is_found(tmp_path: Path) -> None:
    path = sample().save(f"{tmp_path}/model/")
    for file in filter(Path.is_file, path.rglob("*")):
        good = file.read_bytes()
        for damaged in (good + b" ", good[:-1], (good[:1] or b"a") * 2 + good[1:]):
            if damaged == good:
                continue
            file.write_bytes(damaged)
            with pytest.raises(ArtifactError):
                open_artifact(path)
        file.unlink()
        with pytest.raises(ArtifactError):
            open_artifact(path)
        file.write_bytes(good)
    open_artifact(path)


def test_links_in_a_directory_are_refused(tmp_path: Path) -> None:
    path = sample().save(f"{tmp_path}/model/")
    (path / "fallback").rename(tmp_path / "elsewhere")
    (path / "fallback").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match=r"fallback/0\.onnx is missing or a link"):
        open_artifact(path)


def test_names_in_a_manifest_cannot_leave_the_directory(tmp_path: Path) -> None:
    path = sample().save(f"{tmp_path}/model/")
    (tmp_path / "secret").write_bytes(b"model")
    manifest = json.loads((path / "manifest.json").read_bytes())
    manifest["files"]["../secret"] = manifest["files"].pop("fallback/0.onnx")
    manifest["sha256"] = own_digest(manifest)
    (path / "manifest.json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(ArtifactError, match="not allowed"):
        open_artifact(path)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    path = sample().save(f"{tmp_path}/model/")
    manifest = {**json.loads((path / "manifest.json").read_bytes()), "format": 2}
    (path / "manifest.json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(ArtifactError, match="has format 2 and this graphopt reads 1"):
        open_artifact(path)


@pytest.mark.parametrize("name", ["absent.gopt", "empty"])
def test_what_is_no_artifact(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=name):
        open_artifact(tmp_path / name)


def test_a_pipe_is_no_artifact(tmp_path: Path) -> None:
    """Nor does opening one wait for somebody to write to it."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArtifactError, match="not a regular file"):
        open_artifact(tmp_path / "pipe")


def test_an_artifact_of_another_processor(tmp_path: Path) -> None:
    target = {"arch": host.architecture(), "features": ["fpu", "avx4096"]}
    path = sample({"target": target}).save(tmp_path / "model.gopt")
    with pytest.raises(ArtifactError, match="built for a processor with avx4096, which this one lacks"):
        open_artifact(path)
    assert open_artifact(path, check_cpu=False).manifest["target"] == target
    path = sample({"target": {"arch": "pdp11"}}).save(tmp_path / "model.gopt")
    with pytest.raises(ArtifactError, match="built for pdp11"):
        open_artifact(path)
    sample({"target": {"arch": host.architecture(), "features": sorted(host.features())}}).save(path)
    open_artifact(path)


def test_create_refuses_what_could_not_be_opened() -> None:
    good = sample()
    files: dict[str, bytes | Path] = {k: bytes(v) for k, v in good.files.items() if k != "program.json"}
    with pytest.raises(ArtifactError, match="has no file 'fallback/0.onnx', which stage 0 needs"):
        Artifact.create(good.program, {k: v for k, v in files.items() if "fallback" not in k}, {})
    with pytest.raises(ArtifactError, match="not allowed"):
        Artifact.create(good.program, {**files, "../x": b""}, {})
    with pytest.raises(ArtifactError, match="reserved"):
        Artifact.create(good.program, {**files, "manifest.json": b""}, {})
    with pytest.raises(ArtifactError, match="reserved"):
        Artifact.create(good.program, files, {"files": 1})
    with pytest.raises(ArtifactError, match="cannot be written as JSON"):
        Artifact.create(good.program, files, {"x": object()})
    with pytest.raises(ArtifactError, match="weight 'w' of stage 0 is not in"):
        Artifact.create(good.program, {**files, "weights_0.safetensors": weights_bytes({"w": np.zeros(4, "f4")})}, {})


def test_files_given_by_path_may_be_deleted_after_create(tmp_path: Path) -> None:
    good = sample()
    files: dict[str, bytes | Path] = {k: bytes(v) for k, v in good.files.items() if k != "program.json"}
    save_weights(tmp_path / "w", {"w": np.arange(5, dtype=np.float32), "b": np.ones((2, 3), np.bool_)})
    artifact = Artifact.create(good.program, {**files, "weights_0.safetensors": tmp_path / "w"}, {"pipeline": "fuse"})
    (tmp_path / "w").unlink()
    assert artifact.save(tmp_path / "a.gopt").read_bytes() == good.save(tmp_path / "b.gopt").read_bytes()


def test_saving_over_an_artifact_that_is_open(saved: Path) -> None:
    opened = open_artifact(saved)
    opened.save(saved)
    assert contents(open_artifact(saved)) == contents(opened)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_directory_of_other_things_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="a directory with other files in it"):
        sample().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("directory", [True, False])
@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, before: bool, directory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    target = f"{path}/" if directory else path
    if before:
        sample({"pipeline": "old"}).save(target)
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == (3 if directory else 1):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        sample().save(target)
    assert [item.name for item in tmp_path.iterdir()] == (["model"] if before else [])
    if before:
        assert open_artifact(path).manifest["pipeline"] == "old"


def test_saving_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot be written"):
        sample().save(tmp_path / "file" / "model.gopt")
