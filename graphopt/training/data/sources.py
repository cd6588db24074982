"""Data from files: an .npz archive is read, the .npy files of a folder are mapped, so that they cost no memory."""

from __future__ import annotations

from pathlib import Path

from graphopt.errors import FeedError
from graphopt.runtime import files
from graphopt.training.data.dataset import Array
from graphopt.verify.evaluate import LABELS, read_samples


def read(path: Path, flag: str) -> dict[str, Array]:
    """The arrays of an .npz file, or of the .npy files of a folder, by name. Nothing is unpickled.

    Args:
        flag: the option that named the path, for messages.

    Raises:
        FeedError: there is no such file or folder, it holds no array, or one is damaged.
    """
    if path.is_dir():
        found = sorted(path.glob("*.npy"))
        if not found:
            raise FeedError(f"{flag} {path} is a folder without .npy files; save an array for each input there")
        try:
            return {each.stem: files.read(each, each.stem) for each in found}
        except FeedError as error:
            raise FeedError(f"{flag} {path}: {error}") from error
    if path.suffix == ".npy":
        raise FeedError(
            f"{flag} {path} is one array; give an .npz file, or the folder with an .npy file for each input"
        )
    samples = read_samples(path, flag)
    labels = {} if samples.labels is None else {LABELS: samples.labels}
    return {**samples.arrays, **labels}
