"""Feeds and outputs as .npy files, one per name, never pickled."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import FeedError, GraphoptError

_ADVICE = {
    errno.ENOSPC: "free some space there or name another place",
    errno.EDQUOT: "free some space there or name another place",
    errno.EFBIG: "name a place that takes large files",
    errno.ENOENT: "check that it exists",
    errno.EISDIR: "name a file",
    errno.ENOTDIR: "name a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit on open files",
}


def sentence(error: OSError) -> str:
    """The system's error as one sentence that names the file, or the temporary folder, and the remedy."""
    reason = " ".join(str(error.strerror or error or type(error).__name__).split())
    if error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
        advice = _ADVICE.get(error.errno or 0, "make it accessible or name another place")
        return f"{name or 'the empty path'} cannot be used: {reason}; {advice}"
    # An error while writing an open file has no file name, and neither has one of the search for a temporary folder.
    try:
        folder = tempfile.gettempdir()
    except OSError:
        return f"there is no folder for temporary files ({reason}); free some space or set TMPDIR to another folder"
    return f"a file cannot be read or written: {reason}; check the disk of {folder}, or set TMPDIR to another folder"


def file_name(name: str) -> str:
    """The file of an output: `NAME.npy`, with characters that file names cannot have written as %XX."""
    return quote(name, safe=" !#$&'()+,;=@[]^_{}~") + ".npy"


def read(path: Path, name: str) -> Any:
    """The array in `path`, mapped, for input `name`.

    Raises:
        FeedError: there is no such file, or it holds no plain array.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        reason = error.strerror or "the system refused"
        raise FeedError(f"input {name!r} cannot be read from {path}: {reason}; check the file") from error
    except Exception as error:  # numpy evaluates the header: a bad one can raise anything
        text = str(error)
        if "allow_pickle" in text or "Python objects" in text:
            reason = "it holds Python objects; write it with numpy.save as an array of numbers or strings"
        elif "mmap length" in text:
            reason = "it is shorter than its header says; save it again with numpy.save"
        else:
            reason = f"its header is damaged{_beginning(path)}; save it again with numpy.save"
        raise FeedError(f"input {name!r} cannot be read from {path}: {reason}") from error


def _beginning(path: Path) -> str:
    """The shape in the header of a .npy file, as far as it can be quoted in a message."""
    try:
        with path.open("rb") as file:
            text = file.read(400).partition(b"'shape':")[2].decode("ascii", errors="replace")
    except OSError:
        return ""
    words = " ".join(
        "".join(character if character.isprintable() else " " for character in text).rstrip("\0 }").split()
    )
    return f" (shape {words if len(words) <= 40 else words[:37] + '...'})" if words else ""


def write(folder: Path, outputs: Mapping[str, Any]) -> dict[str, Path]:
    """Write every output to a temporary file in `folder` and rename it; returns the paths by name.

    An array goes to `NAME.npy`; maps, and a sequence of maps or numbers, to `NAME.json`, whose keys are text.

    Raises:
        GraphoptError: an output is a sequence of arrays, or cannot be written.
    """
    written = {}
    for name, output in outputs.items():
        content = _content(name, output)
        path = folder / file_name(name)
        if isinstance(content, str):
            path = path.with_suffix(".json")
        created = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    if isinstance(content, str):
                        file.write(content.encode())
                    else:
                        np.save(file, content, allow_pickle=False)
                Path(temporary).replace(path)
            finally:
                Path(temporary).unlink(missing_ok=True)
        except OSError as error:
            if created:  # the folder is empty
                with contextlib.suppress(OSError):
                    folder.rmdir()
            raise GraphoptError(
                f"output {name!r} cannot be written to {path}: {error.strerror or error}; name another folder"
            ) from error
        written[name] = path
    return written


def _content(name: str, output: Any) -> NDArray[Any] | str:
    """The array to save, or the text of a JSON document."""
    if isinstance(output, list | tuple | dict) or output is None:
        try:
            return json.dumps(output) + "\n"
        except TypeError:
            raise GraphoptError(
                f"output {name!r} is a {type(output).__name__} of arrays, which no file holds; "
                "run the artifact from Python, or compile the model with tensors as outputs"
            ) from None
    array = np.asarray(output)
    return array.astype(str) if array.dtype.hasobject else array
