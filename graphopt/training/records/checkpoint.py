"""A checkpoint: one safetensors file with the state, the history, and a JSON document in its metadata.

    state/NAME            a state value of the step model
    history/step.loss     a column of the history
    __metadata__          graphopt.checkpoint: the document; graphopt.sha256: its digest

The document holds the digest of the tensors, so that every bit of the file is checked before it is used. The file is
written beside its place, forced to the disk, and renamed: there is the old checkpoint or the new one, never a part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError, FeedError, GraphoptError
from graphopt.program.files import map_file, write_file
from graphopt.program.strict import strict_json
from graphopt.program.weights import numpy_dtype, pieces, read_index, read_metadata
from graphopt.training.engine import Array
from graphopt.training.records.history import History
from graphopt.version import VERSION

FORMAT = 1
_DOCUMENT, _DIGEST = "graphopt.checkpoint", "graphopt.sha256"
_STATE, _HISTORY = "state/", "history/"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a training is: `step` steps are done in all, `batch` of them in the epoch `epoch`, which counts from 0."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that a training goes on from.

    Attributes:
        model: digest of the step model.
        position: where the training is.
        settings: what makes a training go on with the same bits: seed, rate, schedule, data. JSON values.
        state: state values by name.
        history: all steps and epochs so far.
    """

    model: str
    position: Position
    settings: Mapping[str, Any]
    state: Mapping[str, Array]
    history: History


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; equal ones have equal bytes.

    Raises:
        GraphoptError: it cannot be written; an earlier file of that name is as it was.
    """
    tensors = {_STATE + name: array for name, array in checkpoint.state.items()}
    tensors |= {_HISTORY + name: array for name, array in checkpoint.history.arrays().items()}
    position = checkpoint.position
    document = {
        "format": FORMAT,
        "graphopt": VERSION,
        "model": checkpoint.model,
        "step": position.step,
        "epoch": position.epoch,
        "batch": position.batch,
        "settings": dict(checkpoint.settings),
        "tensors": _tensors_digest(tensors),
    }
    text = json.dumps(document, sort_keys=True, allow_nan=False)
    metadata = {_DIGEST: _sha256(text), _DOCUMENT: text}
    try:
        write_file(path, *pieces(tensors, metadata))
    except OSError as error:
        reason = error.strerror or error
        raise GraphoptError(
            f"the checkpoint {path} cannot be written: {reason}; free some space or name another folder, what was "
            "there is intact"
        ) from error


def load(path: Path) -> Checkpoint:
    """Read a checkpoint; its arrays are mapped from the file.

    Raises:
        GraphoptError: it is missing, truncated, changed, or of another format.
    """
    try:
        data = map_file(path)
        metadata = read_metadata(data, str(path))
        index = read_index(data, str(path))
    except OSError as error:
        raise GraphoptError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    except ArtifactError as error:
        raise _damaged(path, str(error).removeprefix(f"{path} is damaged: ")) from error
    text = metadata.get(_DOCUMENT)
    if text is None:
        raise GraphoptError(f"{path} is no checkpoint of a training; name one that graphopt train wrote")
    if metadata.get(_DIGEST) != _sha256(text):
        raise _damaged(path, "its description was changed")
    document = _document(text, path)
    tensors = {}
    for name, entry in index.items():
        raw = np.frombuffer(data[entry.start : entry.start + entry.nbytes], np.uint8)
        tensors[name] = raw.view(numpy_dtype(entry.dtype)).reshape(entry.shape)
    if document["tensors"] != _tensors_digest(tensors):
        raise _damaged(path, "its numbers were changed")
    try:
        history = History.from_arrays(_below(tensors, _HISTORY))
    except FeedError as error:
        raise _damaged(path, str(error)) from error
    return Checkpoint(
        document["model"],
        Position(document["step"], document["epoch"], document["batch"]),
        document["settings"],
        _below(tensors, _STATE),
        history,
    )


def _document(text: str, path: Path) -> dict[str, Any]:
    try:
        document = strict_json(text.encode(), str(path))
    except ArtifactError as error:
        raise _damaged(path, "its description is no JSON") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        found = document.get("format") if isinstance(document, dict) else None
        raise GraphoptError(f"{path} is a checkpoint of format {found}, and this graphopt reads {FORMAT}; begin anew")
    kinds = {"model": str, "step": int, "epoch": int, "batch": int, "settings": dict, "tensors": str}
    for name, kind in kinds.items():
        value = document.get(name)
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise _damaged(path, f"its description has no valid {name}")
    return document


def _damaged(path: Path, why: str) -> GraphoptError:
    return GraphoptError(f"the checkpoint {path} is damaged ({why}); remove it to go on from the one before it")


def _below(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def _tensors_digest(tensors: Mapping[str, Array]) -> str:
    """Digest over names, types, extents and bytes."""
    digest = hashlib.sha256()
    for name, array in sorted(tensors.items()):
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(np.ascontiguousarray(little).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
