"""Inputs of `graphopt run`: from .npy files, or random."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import FeedError
from graphopt.program import Port
from graphopt.runtime import files
from graphopt.runtime.feeds import check, full_shape
from graphopt.weights import numpy_dtype

_MAGIC = b"\x93NUMPY"


def read(texts: Sequence[str], ports: Sequence[Port], constants: Sequence[str] = ()) -> dict[str, Any]:
    """The arrays of `NAME=FILE` options, mapped from their files, so that a huge one costs no memory.

    `constants` are inputs of the model whose default values were compiled in.

    Raises:
        FeedError: a text is not NAME=FILE, names an unknown input or one twice, or its file is no array.
    """
    known = [port.name for port in ports]
    feeds: dict[str, Any] = {}
    for text in texts:
        # Names may contain "=" and so may paths: the longest known name that fits wins.
        name = max((each for each in known if text.startswith(f"{each}=")), key=len, default=None)
        if name is None:
            fixed = next((each for each in constants if text.startswith(f"{each}=")), None)
            if fixed is not None:
                check(ports, {fixed: None}, constants=constants)
            listed = ", ".join(known) or "none"
            raise FeedError(f"--input {text!r} is not NAME=FILE.npy with the name of an input; there are {listed}")
        if name in feeds:
            raise FeedError(f"--input {name} is given twice; keep one of them")
        if text == f"{name}=":
            raise FeedError(f"--input {text} has an empty path; give --input {name}=FILE.npy")
        feeds[name] = _read_file(Path(text[len(name) + 1 :]), name)
    return feeds


def random(ports: Sequence[Port], micro_batches: int, seed: int) -> dict[str, Any]:
    """One array per input, the same for the same program and seed: standard normal, fair coins, integers 0 and 1.

    A program does not say which values its integers may take; 0 and 1 are rows of every table that has two.

    Raises:
        FeedError: an input has no fixed shape or no numbers in it.
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
