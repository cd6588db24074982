"""Inputs of `graphopt run`, `compile` and `verify`: from .npy and .npz files, or random."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import FeedError
from graphopt.program.program import Port
from graphopt.program.weights import numpy_dtype
from graphopt.runtime import files
from graphopt.runtime.feeds import check, full_shape

_MAGIC = b"\x93NUMPY"


def read(texts: Sequence[str], ports: Sequence[Port], constants: Sequence[str] = ()) -> dict[str, Any]:
    """The arrays of `--input` options for a program whose inputs are known.

    `constants` are inputs of the model whose default values were compiled in.

    Raises:
        FeedError: as in `given`, or a text names an unknown input, or one whose default value was compiled in.
    """
    known = [port.name for port in ports]
    feeds = given(texts, [*known, *constants])
    for name in feeds:
        if name in constants:
            check(ports, {name: feeds[name]}, constants=constants)
        if name not in known:
            raise FeedError(f"--input names {name!r}, which is no input; the inputs are {', '.join(known) or 'none'}")
    return feeds


def given(texts: Sequence[str], known: Sequence[str] | None = None) -> dict[str, Any]:
    """The arrays of `NAME=FILE.npy` and `FILE.npz`, mapped from their files, so that a huge array costs no memory.

    Names and paths may contain "=": the longest known name that matches wins, or, if no names are known, the longest
    name before an existing file.

    Raises:
        FeedError: a text is neither, an input is given twice, or its file holds no array.
    """
    feeds: dict[str, Any] = {}
    for text in texts:
        for name, array in _arrays(text, known):
            if name in feeds:
                raise FeedError(f"--input {name} is given twice; keep one of them")
            feeds[name] = array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
    return feeds


def _arrays(text: str, known: Sequence[str] | None) -> list[tuple[str, Any]]:
    if known is None:
        places = [place for place, letter in enumerate(text) if letter == "=" and place]
        names = [text[:place] for place in places]
        name = max(
            (candidate for candidate in names if Path(text[len(candidate) + 1 :]).is_file()), key=len, default=None
        )
        name = name or (names[0] if names else None)
    else:
        name = max((candidate for candidate in known if text.startswith(f"{candidate}=")), key=len, default=None)
    if name is None and text.endswith(".npz"):
        return _read_archive(Path(text))
    if name is None:
        listed = "" if known is None else f" with the name of an input; there are {', '.join(known) or 'none'}"
        raise FeedError(f"--input {text!r} is neither NAME=FILE.npy nor FILE.npz{listed}")
    if text == f"{name}=":
        raise FeedError(f"--input {text} has an empty path; give --input {name}=FILE.npy")
    return [(name, _read_file(Path(text[len(name) + 1 :]), name))]


def random(ports: Sequence[Port], micro_batches: int, seed: int) -> dict[str, Any]:
    """One array per input, the same for the same program and seed: standard normal, fair coins, integers 0 and 1.

    A program does not declare the range of its integers; 0 and 1 are valid rows of every table with at least two.

    Raises:
        FeedError: an input has no fixed shape or is not numeric.
    """
    generator = np.random.default_rng(seed)
    feeds = {}
    for port in ports:
        if port.shape is None or port.dtype == "object":
            raise FeedError(f"input {port.name!r} has no fixed shape, so --random cannot make it; give it with --input")
        shape, dtype = full_shape(port.shape, micro_batches), numpy_dtype(port.dtype)
        if dtype.kind in "biu":
            feeds[port.name] = generator.integers(0, 2, shape).astype(dtype)
        else:
            feeds[port.name] = generator.standard_normal(shape).astype(dtype)
    return feeds


def _read_file(path: Path, name: str) -> Any:
    where = f"--input {name}: {path}"
    if not path.is_file():
        raise FeedError(f"{where} is not a file; give a .npy file that numpy.save wrote")
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except OSError as error:
        raise FeedError(f"{where} cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise FeedError(f"{where} is no .npy file; write it with numpy.save")
    return files.read(path, name)


def _read_archive(path: Path) -> list[tuple[str, Any]]:
    if not path.is_file():
        raise FeedError(f"--input {path} is not a file; give a .npz file that numpy.savez wrote")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return [(name, archive[name]) for name in archive.files]
    except (OSError, ValueError, zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise FeedError(f"--input {path} cannot be read ({error}); write it with numpy.savez") from error
