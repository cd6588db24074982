"""Inputs of `graphopt run`: from .npy files, or random; and outputs to .npy files. No pickle either way."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import FeedError, GraphoptError
from graphopt.program import Port
from graphopt.runtime.feeds import full_shape
from graphopt.weights import numpy_dtype

_MAGIC = b"\x93NUMPY"
_HIGHEST_SIZE = 8 << 30
"""Bytes of one input file whose port has no fixed shape."""


def read(texts: Sequence[str], ports: Sequence[Port], micro_batches: int) -> dict[str, Any]:
    """The arrays of `NAME=FILE` options, mapped from their files.

    Raises:
        FeedError: a text is not NAME=FILE, names an unknown input or one twice, or its file is no array that fits.
    """
    known = {port.name: port for port in ports}
    feeds: dict[str, Any] = {}
    for text in texts:
        # Names may contain "=" and so may paths: the longest known name that fits wins.
        name = max((n for n in known if text.startswith(f"{n}=")), key=len, default=None)
        if name is None:
            listed = ", ".join(known) or "none"
            raise FeedError(f"--input {text!r} is not NAME=FILE.npy with the name of an input; there are {listed}")
        if name in feeds:
            raise FeedError(f"--input {name} is given twice; keep one of them")
        feeds[name] = _read_file(Path(text[len(name) + 1 :]), known[name], micro_batches)
    return feeds


def random(ports: Sequence[Port], micro_batches: int, seed: int) -> dict[str, Any]:
    """One array per input, the same for the same program and seed: standard normal, fair coins, integers 0 and 1.

    A program does not say which values its integers may take; 0 and 1 are positions in every table of two rows or more.

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


def file_names(names: Sequence[str]) -> dict[str, str]:
    """Output name -> file name: characters other than letters, digits and `_.+-` become `_`.

    `gpu_0/softmax_1` is written to `gpu_0_softmax_1.npy`.

    Raises:
        GraphoptError: two outputs would get one file.
    """
    files: dict[str, str] = {}
    owner: dict[str, str] = {}
    for name in names:
        file = (re.sub(r"[^\w.+-]", "_", name).lstrip(".") or "output") + ".npy"
        if file in owner:
            raise GraphoptError(
                f"--output: outputs {owner[file]!r} and {name!r} would both be written to {file}; "
                "rename one of them in the model"
            )
        owner[file] = name
        files[name] = file
    return files


def write(outputs: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Write every output into `folder`, made if it is not there: all of them beside, then all renamed.

    Raises:
        GraphoptError: an output holds no plain array, or a file cannot be written.
    """
    arrays = {name: _plain_array(name, value) for name, value in outputs.items()}
    targets = {name: folder / file for name, file in file_names(list(arrays)).items()}
    drafts: dict[str, str] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in arrays.items():
            descriptor, drafts[name] = tempfile.mkstemp(prefix=f".{targets[name].name}.", suffix=".tmp", dir=folder)
            with os.fdopen(descriptor, "wb") as file:
                np.save(file, array, allow_pickle=False)
            os.chmod(drafts[name], 0o644)
        for name, target in targets.items():
            os.replace(drafts.pop(name), target)
    except OSError as error:
        raise GraphoptError(f"--output {folder} cannot be written: {error.strerror or error}") from error
    finally:
        for draft in drafts.values():
            Path(draft).unlink(missing_ok=True)
    return targets


def _read_file(path: Path, port: Port, micro_batches: int) -> Any:
    where = f"--input {port.name}: {path}"
    try:
        if not path.is_file():
            raise FeedError(f"{where} is not a file; give a .npy file that numpy.save wrote")
        size = path.stat().st_size
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise FeedError(f"{where} is no .npy file; write it with numpy.save")
        if size > _HIGHEST_SIZE:
            raise FeedError(f"{where} has {size} bytes, and {_HIGHEST_SIZE} is the most an input may have")
        empty = port.shape is not None and 0 in port.shape  # nothing can be mapped then
        found = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or " ".join(str(error).split())
        raise FeedError(f"{where} cannot be read ({reason}); write it again with numpy.save") from error
    if port.shape is not None and found.shape != full_shape(port.shape, micro_batches):
        expected = full_shape(port.shape, micro_batches)
        raise FeedError(f"{where} has shape {found.shape}, and the input needs {port.dtype} of shape {expected}")
    return found


def _plain_array(name: str, value: Any) -> Any:
    array = value if isinstance(value, np.ndarray) else None
    if array is not None and array.dtype == object and all(isinstance(item, str) for item in array.flat):
        array = array.astype(np.str_)
    if array is None or array.dtype.hasobject:
        raise GraphoptError(
            f"--output: output {name!r} is a {type(value).__name__} that .npy cannot hold without pickle; "
            "leave out --output"
        )
    return array
