"""Files of data: archives are read, folders are mapped, and what is damaged is refused by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from graphopt.errors import FeedError
from graphopt.training.data.sources import read


def test_an_archive_gives_its_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.ones(3), labels=np.arange(3))
    found = read(tmp_path / "d.npz", "--data")
    assert sorted(found) == ["labels", "x"]
    assert found["labels"].tolist() == [0, 1, 2]


def test_a_folder_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6.0))
    np.save(tmp_path / "y.npy", np.arange(6))
    (tmp_path / "notes.txt").write_text("not data")
    found = read(tmp_path, "--data")
    assert sorted(found) == ["x", "y"]
    assert isinstance(found["x"], np.memmap)


def _objects(folder: Path) -> Path:
    np.savez(folder / "d.npz", x=np.array([{}], object), allow_pickle=True)
    return folder / "d.npz"


def _pickled(folder: Path) -> Path:
    (folder / "x.npy").write_bytes(pickle.dumps([1]))
    return folder


def _cut(folder: Path) -> Path:
    np.save(folder / "x.npy", np.arange(1000))
    content = (folder / "x.npy").read_bytes()
    (folder / "x.npy").write_bytes(content[:-8])
    return folder


def _half(folder: Path) -> Path:
    np.savez(folder / "d.npz", x=np.arange(1000))
    content = (folder / "d.npz").read_bytes()
    (folder / "d.npz").write_bytes(content[: len(content) // 2])
    return folder / "d.npz"


def _single(folder: Path) -> Path:
    np.save(folder / "x.npy", np.arange(3))
    return folder / "x.npy"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "no.npz", "no.npz is not a file"),
        (lambda folder: folder, "is a folder without .npy files"),
        (_objects, "holds Python objects"),
        (_pickled, "holds Python objects"),
        (_cut, "shorter than its header says"),
        (_half, "cannot be read"),
        (_single, "is one array; give an .npz file, or the folder"),
    ],
    ids=["missing", "empty", "objects", "pickle", "cut", "half", "single"],
)
def test_bad_files(make: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(FeedError, match=f"--data .*{message}"):
        read(make(tmp_path), "--data")  # type: ignore[operator]
