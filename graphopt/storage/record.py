"""What the manifest of a compressed model says of one tensor, and the check that it can be true."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from graphopt.errors import ArtifactError
from graphopt.storage.form import COLUMNS, LAYOUTS, Form
from graphopt.storage.streams import CODINGS, Piece
from graphopt.storage.words import MAX_VALUES

MAX_TENSOR_BYTES = 2**40
"""1 TiB: beyond it is damage, not a tensor."""

WORDS: Mapping[str, tuple[int, int, bool]] = {
    "FLOAT": (32, 4, True), "DOUBLE": (64, 8, True), "FLOAT16": (16, 2, True), "BFLOAT16": (16, 2, True),
    "COMPLEX64": (64, 4, True), "COMPLEX128": (128, 8, True),
    "INT64": (64, 8, False), "UINT64": (64, 8, False), "INT32": (32, 4, False), "UINT32": (32, 4, False),
    "INT16": (16, 2, False), "UINT16": (16, 2, False),
}  # fmt: skip
"""ONNX's dtypes: bits of an element, bytes of the words that it is stored as, and whether these are floats."""

_PACKED = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_BYTES = ("BOOL", "INT8", "UINT8", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0")


@dataclass(frozen=True, slots=True)
class Record:
    """A tensor: the member that holds it, its name, dtype and shape in ONNX, the SHA-256 of its bytes, its form."""

    member: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    form: Form

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return self.form.size * self.form.itemsize


def word_of(dtype: str) -> tuple[int, int, bool] | None:
    """An entry of `WORDS`; elements of less than two bytes are bytes. None for strings, which are not stored."""
    if dtype in WORDS:
        return WORDS[dtype]
    bits = 8 if dtype in _BYTES else _PACKED.get(dtype, 0)
    return (bits, 1, False) if bits else None


def read_record(item: object, number: int, path: str) -> Record:
    """The record of a tensor from a manifest.

    Raises:
        ArtifactError: it is no such thing, or says what cannot be.
    """
    record = _record(item)
    if record is None:
        raise ArtifactError(f"{path} is damaged: its manifest does not describe tensor {number}; compress it again")
    return record


def _record(item: Any) -> Record | None:
    if not _is(item, Record) or not isinstance(item["shape"], list) or len(item["shape"]) > 64:
        return None
    shape, dtype, form = item["shape"], item["dtype"], _form(item["form"])
    word = word_of(dtype) if isinstance(dtype, str) else None
    if form is None or word is None or not all(_natural(dim) for dim in shape):
        return None
    texts = (item["member"], item["name"], item["sha256"])
    if not all(isinstance(text, str) for text in texts) or not re.fullmatch(r"tensors/\d{1,5}", item["member"]):
        return None
    bits, itemsize, floating = word
    if math.prod(max(dim, 1) for dim in shape) * bits > 8 * MAX_TENSOR_BYTES:
        return None
    nbytes = (math.prod(shape) * bits + 7) // 8
    if form.size * form.itemsize != nbytes or (form.itemsize, form.floating) != (itemsize, floating):
        return None
    return Record(item["member"], item["name"], dtype, tuple(shape), item["sha256"], form)


def _form(item: Any) -> Form | None:
    if not _is(item, Form) or item["layout"] not in LAYOUTS or not isinstance(item["pieces"], list):
        return None
    numbers = [item[name] for name in ("itemsize", "columns", "length", "codebook")]
    if not all(map(_natural, numbers)) or item["codebook"] > MAX_VALUES or max(numbers) > MAX_TENSOR_BYTES:
        return None
    if item["layout"] == COLUMNS and 0 in (item["columns"], item["length"]):
        return None  # columns without elements are never stored, and their number would be bounded by nothing
    pieces = tuple(piece for each in item["pieces"] if (piece := _piece(each)) is not None)
    if len(pieces) != len(item["pieces"]) or not all(
        isinstance(item[name], bool) for name in ("floating", "transposed")
    ):
        return None
    fields_of: dict[str, Any] = {**item, "pieces": pieces}
    return Form(**fields_of)


def _piece(item: Any) -> Piece | None:
    if not _is(item, Piece) or not isinstance(item["name"], str) or item["coding"] not in CODINGS:
        return None
    if not _natural(item["width"]) or item["width"] > 32 or not _natural(item["nbytes"]):
        return None
    return Piece(**item)


def _is(item: Any, kind: type[Any]) -> bool:
    return isinstance(item, dict) and set(item) == {field.name for field in fields(kind)}


def _natural(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 62
