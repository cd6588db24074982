"""Weights files: safetensors in which every tensor starts at a multiple of 64 bytes, read in place when mapped.

Format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian header length, a JSON header padded
with spaces, then the bytes of all tensors without a hole between them. The format forbids holes, so the gaps that the
alignment needs are tensors of their own, named `__pad_N`; any safetensors reader shows them as a few odd U8 tensors.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.errors import ArtifactError
from graphopt.program.program import ALIGNMENT, ITEM_BYTES

Array = npt.NDArray[Any]

_NAMES = {
    "bool": "BOOL", "int8": "I8", "uint8": "U8", "int16": "I16", "uint16": "U16", "float16": "F16", "bfloat16": "BF16",
    "int32": "I32", "uint32": "U32", "float32": "F32", "int64": "I64", "uint64": "U64", "float64": "F64",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}
_PAD = "__pad_"
_METADATA = "__metadata__"
_MAX_HEADER = 100_000_000  # the limit of the safetensors library


@dataclass(frozen=True, slots=True)
class Entry:
    """Position of one tensor: `start` in bytes from the beginning of the file, a multiple of 64."""

    dtype: str
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@functools.cache
def numpy_dtype(name: str) -> np.dtype[Any]:
    """numpy's dtype of a Program dtype name; bfloat16 is that of ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return dtype
    return np.dtype(name)


def save_weights(path: Path, tensors: Mapping[str, Array]) -> None:
    """Write `tensors` to `path`, streaming: the peak of memory is one tensor.

    Raises:
        ArtifactError: a dtype that programs do not have, or a name that starts with `__`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for piece in pieces(tensors):
                file.write(piece)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def weights_bytes(tensors: Mapping[str, Array]) -> bytes:
    """The bytes of the file that `save_weights` writes, in memory."""
    return b"".join(pieces(tensors))


def read_index(data: memoryview, name: str) -> dict[str, Entry]:
    """Position of each tensor of a weights file, without the padding.

    Args:
        data: the complete file.
        name: what the file is called in error messages.

    Raises:
        ArtifactError: it is no safetensors file with 64-byte aligned tensors, or a tensor reaches outside it.
    """
    header, base = _header(data, name)
    index = {}
    for tensor, fields in header.items():
        if tensor == _METADATA or tensor.startswith(_PAD):
            continue
        entry = _entry(fields, base)
        if entry is None or entry.start % ALIGNMENT or entry.start + entry.nbytes > len(data):
            raise ArtifactError(f"{name} is damaged: tensor {tensor[:100]!r} is not described by an aligned part of it")
        index[tensor] = entry
    return index


def read_metadata(data: memoryview, name: str) -> dict[str, str]:
    """The texts that `pieces` was given as metadata; empty without any.

    Raises:
        ArtifactError: it is no safetensors file, or its metadata are not texts.
    """
    metadata = _header(data, name)[0].get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ArtifactError(f"{name} is damaged: its metadata are not texts")
    return metadata


def _header(data: memoryview, name: str) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its tensors begin."""
    from graphopt.program.strict import strict_json

    size = int.from_bytes(data[:8], "little") if len(data) >= 8 else -1
    if not 0 <= size <= min(_MAX_HEADER, len(data) - 8):
        raise ArtifactError(f"{name} is damaged: it does not start with a safetensors header")
    header = strict_json(bytes(data[8 : 8 + size]), name)
    if not isinstance(header, dict):
        raise ArtifactError(f"{name} is damaged: its header is no object")
    return header, 8 + size


def _entry(fields: object, base: int) -> Entry | None:
    if not isinstance(fields, dict) or set(fields) != {"dtype", "shape", "data_offsets"}:
        return None
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES or not _naturals(shape) or not _naturals(offsets):
        return None
    if len(offsets) != 2:
        return None
    entry = Entry(_DTYPES[dtype], tuple(shape), base + offsets[0])
    return entry if offsets[1] - offsets[0] == entry.nbytes else None


def _naturals(item: object) -> bool:
    return isinstance(item, list) and all(type(number) is int and number >= 0 for number in item)


def pieces(tensors: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The bytes of a weights file, piece after piece, without a copy of contiguous tensors.

    Raises:
        ArtifactError: as `save_weights`.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
    layout: list[tuple[Array, int]] = []
    end = 0
    for name, tensor in tensors.items():
        if name.startswith("__"):
            raise ArtifactError(f"weight {name!r} cannot be stored: rename it, names with '__' in front are reserved")
        if tensor.dtype.name not in _NAMES:
            raise ArtifactError(f"weight {name!r} cannot be stored: its type {tensor.dtype} is not supported")
        gap = -end % ALIGNMENT
        if gap:
            header[f"{_PAD}{len(layout)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [end, end + gap]}
        start = end + gap
        end = start + tensor.nbytes
        header[name] = {"dtype": _NAMES[tensor.dtype.name], "shape": list(tensor.shape), "data_offsets": [start, end]}
        layout.append((tensor, gap))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for tensor, gap in layout:
        yield bytes(gap)
        little = tensor.astype(tensor.dtype.newbyteorder("<"), copy=False)
        yield np.ascontiguousarray(little).reshape(-1).view(np.uint8).data
