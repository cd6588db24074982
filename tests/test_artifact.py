from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from graphopt import artifact as artifact_module
from graphopt.artifact import Artifact, open_artifact
from graphopt.errors import ArtifactError
from graphopt.program import container, schedule
from graphopt.program import json as program_json
from graphopt.program.check import problems
from graphopt.program.program import FallbackSegment, Place, Port, Program, Stage, Value
from graphopt.program.weights import read_index, save_weights, weights_bytes
from graphopt.runtime.devices import host


def sample(manifest: dict[str, object] | None = None) -> Artifact:
    """A program of one fallback segment with a weight beside it (which nothing uses)."""
    weights = {"w": np.arange(5, dtype=np.float32), "b": np.ones((2, 3), np.bool_)}
    stage = Stage(
        index=0,
        values=(
            Value("x", "float32", (4,), Place.ARENA, 0),
            Value("y", "float32", (4,), Place.ARENA, 64),
            Value("w", "float32", (5,), Place.WEIGHT),
        ),
        inputs=("x",),
        outputs=("y",),
        segments=(FallbackSegment("fallback/0.onnx", ("x",), ("y",), ()),),
        arena_bytes=128,
        arena_lower_bound=128,
        weights="weights_0.safetensors",
    )
    ports = (Port("x", "float32", (4,)),), (Port("y", "float32", (4,)),)
    program = Program((stage,), schedule.build((stage,), ["x"]), *ports)
    files: dict[str, bytes | Path] = {
        "weights_0.safetensors": weights_bytes(weights),
        "fallback/0.onnx": b"model",
        "empty.txt": b"",
    }
    return Artifact.create(program, files, manifest if manifest is not None else {"pipeline": "fuse"})


@pytest.fixture(params=["file", "directory"])
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "model.gopt"
    if request.param == "directory":
        path.mkdir()
    return sample().save(path)


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {name: bytes(data) for name, data in artifact.files.items()}


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


def test_the_file_is_a_zip_that_others_read_with_members_at_64_bytes(tmp_path: Path) -> None:
    path = sample().save(tmp_path / "model.gopt")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.read("fallback/0.onnx") == b"model"
        data = path.read_bytes()
        for info in archive.infolist():
            assert info.compress_type == zipfile.ZIP_STORED
            content = archive.read(info)
            assert any(data[at : at + len(content)] == content for at in range(0, len(data), 64))


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


def forge(path: Path, files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Write a file in which every digest and the whole container is right, whatever stands in it."""
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    signed = {**manifest, "files": listed}
    signed["sha256"] = artifact_module._own_digest(signed)
    everything = {"manifest.json": artifact_module._manifest_bytes(signed), **files}
    artifact_module._save_zip(path, {name: memoryview(data) for name, data in everything.items()})


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"target": {"features": ["avx4096"]}}, "a processor with avx4096"),
        ({"target": {"arch": "pdp11"}}, "built for pdp11"),
        ({"versions": {"apache-tvm": "0.0.1"}}, "built with apache-tvm 0.0.1"),
        ({"format": 2}, "has format 2"),
    ],
)
def test_a_consistent_forgery_is_refused_for_its_manifest(
    tmp_path: Path, manifest: dict[str, Any], reason: str
) -> None:
    good = sample()
    forge(tmp_path / "a.gopt", contents(good), dict(good.manifest))
    assert open_artifact(tmp_path / "a.gopt").manifest == good.manifest
    forge(tmp_path / "a.gopt", contents(good), {**good.manifest, **manifest})
    with pytest.raises(ArtifactError, match=reason):
        open_artifact(tmp_path / "a.gopt")


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


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offset": 1 << 20}, "does not fit"),
        ({"offset": -64}, "not a whole number"),
        ({"offset": 1}, "does not fit"),
        ({"shape": [-4]}, "not a whole number"),
        ({"shape": [1 << 40]}, "impossible shape|does not fit"),
        ({"dtype": "float33"}, "unknown type 'float33'"),
        ({"name": "z"}, "unknown value|not a value"),
        ({"place": "view", "of": "y", "offset": 0}, "leads to no value"),
        ({"place": "nowhere"}, "nowhere"),
    ],
)
def test_a_consistent_forgery_is_refused_for_its_program(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    files = contents(sample())
    document = json.loads(files["program.json"])
    value = next(value for value in document["stages"][0]["values"] if value["name"] == "y")
    value.update(change)
    forge(tmp_path / "a.gopt", {**files, "program.json": json.dumps(document).encode()}, dict(sample().manifest))
    with pytest.raises(ArtifactError, match=reason):
        open_artifact(tmp_path / "a.gopt")


def test_forged_programs_open_or_are_refused_and_nothing_else(tmp_path: Path) -> None:
    """Some hundred forgeries with one or two odd things put anywhere into program.json."""
    files, manifest = contents(sample()), dict(sample().manifest)
    chance = random.Random(11)
    odd = [-1, 0, 1, 63, 64, 128, 1 << 45, 1 << 63, 1 << 70, 0.5, None, True, "", "x", "y", "w", "../x", [], {}, [[]]]
    opened = 0
    refused: list[str] = []
    for _ in range(400):
        document = json.loads(files["program.json"])
        for _ in range(chance.randrange(1, 3)):
            spots: list[tuple[Any, Any]] = []
            left = [document]
            while left:
                item = left.pop()
                keys = list(item) if isinstance(item, dict) else list(range(len(item)))
                spots += [(item, key) for key in keys]
                left += [item[key] for key in keys if isinstance(item[key], dict | list)]
            item, key = chance.choice(spots)
            if chance.random() < 0.2:
                del item[key]
            else:
                item[key] = chance.choice(odd)
        data = json.dumps(document).encode()
        forge(tmp_path / "a.gopt", {**files, "program.json": data}, manifest)
        try:
            found = open_artifact(tmp_path / "a.gopt")
        except ArtifactError as error:
            refused.append(str(error))
        else:
            opened += 1
            assert program_json.loads(program_json.dumps(found.program)) == found.program
            assert problems(found.program) == []
    assert opened < 200
    assert not any("\n" in reason for reason in refused)


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
    manifest["sha256"] = artifact_module._own_digest(manifest)
    (path / "manifest.json").write_bytes(artifact_module._manifest_bytes(manifest))
    with pytest.raises(ArtifactError, match="not allowed"):
        open_artifact(path)


def test_another_format_is_refused_by_name(tmp_path: Path) -> None:
    path = sample().save(f"{tmp_path}/model/")
    manifest = {**json.loads((path / "manifest.json").read_bytes()), "format": 2}
    (path / "manifest.json").write_bytes(artifact_module._manifest_bytes(manifest))
    with pytest.raises(ArtifactError, match="has format 2 and this graphopt reads 1"):
        open_artifact(path)


@pytest.mark.parametrize("name", ["absent.gopt", "empty"])
def test_what_is_no_artifact(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=name):
        open_artifact(tmp_path / name)


def test_a_pipe_is_no_artifact(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        with pytest.raises(ArtifactError, match="not a regular file"):
            open_artifact(tmp_path / "pipe")
    finally:
        os.close(descriptor)


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


def test_weights_are_safetensors_that_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "a": np.arange(7, dtype=np.float32).reshape(1, 7),
        "half": np.ones(3, np.float16),
        "empty": np.zeros((0, 4), np.int64),
        "brain": np.linspace(-1, 1, 9).astype(ml_dtypes.bfloat16),
        "scalar": np.array(5, np.int32),
        "yes": np.array([True, False]),
        "back": np.arange(6, dtype=np.float64)[::-2],
        "last": np.arange(3, dtype=np.uint8),
    }
    path = tmp_path / "w.safetensors"
    save_weights(path, tensors)
    assert path.read_bytes() == weights_bytes(tensors)
    loaded = safetensors.numpy.load_file(path)
    assert {name for name in loaded if not name.startswith("__pad_")} == set(tensors)
    data = memoryview(path.read_bytes())
    index = read_index(data, "w")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)
        assert (index[name].dtype, index[name].shape) == (tensor.dtype.name, tensor.shape)
        assert index[name].start % 64 == 0
        assert bytes(data[index[name].start : index[name].start + index[name].nbytes]) == tensor.tobytes()


def test_weights_that_cannot_be_stored() -> None:
    with pytest.raises(ArtifactError, match="names with '__' in front are reserved"):
        weights_bytes({"__pad_0": np.zeros(1)})
    with pytest.raises(ArtifactError, match="complex128 is not supported"):
        weights_bytes({"c": np.zeros(1, complex)})


def header(**tensors: object) -> memoryview:
    text = json.dumps(tensors).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return memoryview(len(text).to_bytes(8, "little") + text + bytes(64))


@pytest.mark.parametrize(
    "data",
    [
        memoryview(b""),
        memoryview(b"\xff" * 16),
        memoryview((100).to_bytes(8, "little") + b"{}"),
        memoryview((2).to_bytes(8, "little") + b"[]"),
        header(t=[]),
        header(t={"dtype": "F32", "shape": [1]}),
        header(t={"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}),
        header(t={"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}),
        header(t={"dtype": "F32", "shape": [17], "data_offsets": [0, 68]}),
        header(t={"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}),
        header(t={"dtype": "F32", "shape": [1], "data_offsets": [-64, -60]}),
        header(t={"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}),
        header(t={"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 1 << 126]}),
        header(t={"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}),
        header(t={"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}),
        header(t={"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}),
    ],
)
def test_hostile_weights_headers(data: memoryview) -> None:
    with pytest.raises(ArtifactError, match="w is damaged"):
        read_index(data, "w")


def test_zip_frames_beyond_four_gigabytes_are_consistent() -> None:
    """Sizes only: the frame of a 9 GB zip, laid over a file that has a hole instead of the contents."""
    members = [container.Member("a", 5 << 30, 1), container.Member("b", 4 << 30, 2), container.Member("c", 3, 3)]
    frame = container.frame(members)
    assert all(start % 64 == 0 for start in frame.starts)
    for (header_, start, member), following in zip(
        zip(frame.headers, frame.starts, members, strict=True), (*frame.starts[1:], None), strict=True
    ):
        end = start + member.size
        assert following is None or following - len(frame.headers[members.index(member) + 1]) == end
        assert len(header_) < 256
    assert frame.tail_start == frame.starts[-1] + 3


@pytest.mark.slow
def test_a_sparse_file_beyond_four_gigabytes_opens_in_zipfile(tmp_path: Path) -> None:
    members = [container.Member("big", (1 << 32) + 5, 0), container.Member("after", 4, 0x8587D865)]
    frame = container.frame(members)
    path = tmp_path / "big.zip"
    with path.open("wb") as file:
        for header_, start in zip(frame.headers, frame.starts, strict=True):
            file.seek(start - len(header_))
            file.write(header_)
        file.write(b"abcd")
        file.write(frame.tail)
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("big").file_size == (1 << 32) + 5
        assert archive.getinfo("after").file_size == 4
