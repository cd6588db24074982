"""The file of a compressed model: one zip, laid out as an artifact is, whose every digest is checked when it is opened.

    compressed.json        what each tensor is and how it is stored; size and SHA-256 of every member, and of itself
    model.onnx.deflate     the ONNX model, whose large tensors say which member holds them (RFC 1951)
    tensors/0 ...          the streams of one tensor each

Equal models make equal files.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import ArtifactError
from graphopt.program import container
from graphopt.program.files import map_file, sha256, write_file
from graphopt.program.manifest import manifest_bytes, own_digest
from graphopt.program.strict import strict_json
from graphopt.storage.decode import decode
from graphopt.storage.encode import Encoded
from graphopt.storage.record import Record, read_record

FORMAT = 1
"""Version of the layout; another version is refused."""

MANIFEST, MODEL = "compressed.json", "model.onnx.deflate"
MAX_TENSORS = 9_000
"""A zip of ours has at most 10,000 members; what is more stays in the model."""

MOST_BYTES, MOST_TIMES = 1 << 30, 1000
"""A file that would become larger than both 1 GiB and a thousand times itself is refused."""

_MAX_MODEL = 2**31 - 1
_MAX_MANIFEST = 64 << 20
_REMEDY = "compress the model again"


def is_compressed(beginning: bytes) -> bool:
    """Whether a file with this beginning, of 64 bytes or more, is a compressed model."""
    return beginning.startswith(b"PK\3\4") and beginning[30:].startswith(MANIFEST.encode())


class Writer:
    """Collects tensors in a temporary file beside the place of the final one, so that memory holds one at a time."""

    def __init__(self, target: Path) -> None:
        """Write to `target` when `finish` is called, and nothing before; a symbolic link stays a link."""
        self._target = target.resolve() if target.is_symlink() else target
        self._spool = tempfile.TemporaryFile(dir=self._target.absolute().parent)  # noqa: SIM115
        self._ends = [0]
        self._records: list[Record] = []

    def __enter__(self) -> Self:
        """The writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Forget what was collected."""
        self._spool.close()

    def add(self, name: str, dtype: str, shape: tuple[int, ...], payload: NDArray[np.uint8], encoded: Encoded) -> str:
        """Store a tensor; returns the name of its member."""
        member = f"tensors/{len(self._records)}"
        for data in encoded.data:
            self._spool.write(data)
        self._ends.append(self._ends[-1] + encoded.form.nbytes)
        self._records.append(Record(member, name, dtype, shape, sha256(payload.data), encoded.form))
        return member

    def finish(self, model: bytes, facts: Mapping[str, Any]) -> int:
        """Write the file with the serialized ONNX `model`; `facts` go into its manifest. Returns its bytes.

        Raises:
            ArtifactError: the model would not be read again, because it is nearly all zeros, or has no end.
        """
        from graphopt.version import VERSION

        deflate = zlib.compressobj(9, wbits=-15)
        contents = {MODEL: memoryview(deflate.compress(model) + deflate.flush())}
        self._spool.flush()
        whole = memoryview(b"")
        if self._ends[-1]:
            whole = memoryview(mmap.mmap(self._spool.fileno(), 0, access=mmap.ACCESS_READ))
        for record, start, end in zip(self._records, self._ends, self._ends[1:], strict=False):
            contents[record.member] = whole[start:end]
        document = {
            **facts,
            "format": FORMAT,
            "graphopt": VERSION,
            "model": {"bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()},
            "tensors": [asdict(record) for record in self._records],
            "files": {name: {"bytes": len(data), "sha256": sha256(data)} for name, data in contents.items()},
        }
        document = json.loads(json.dumps(document, allow_nan=False))
        document["sha256"] = own_digest(document)
        every = {MANIFEST: memoryview(manifest_bytes(document)), **contents}
        parts = list(container.pieces(every))
        size = sum(len(part) for part in parts)
        _check_growth(self._target, size, len(model) + sum(record.nbytes for record in self._records))
        write_file(self._target, *parts)
        return size


@dataclass(frozen=True, slots=True)
class Archive:
    """An opened file: its manifest, the records of its tensors by member, and the bytes of all members."""

    path: Path
    manifest: Mapping[str, Any]
    records: Mapping[str, Record]
    contents: Mapping[str, memoryview]

    def model(self) -> bytes:
        """The serialized ONNX model."""
        stated = self.manifest["model"]
        inflate = zlib.decompressobj(wbits=-15)
        try:
            data = inflate.decompress(self.contents[MODEL], stated["bytes"] + 1)
        except zlib.error as error:
            raise _damaged(self.path, f"its model cannot be inflated ({error})") from None
        if len(data) != stated["bytes"] or hashlib.sha256(data).hexdigest() != stated["sha256"]:
            raise _damaged(self.path, "its model is not the one that it names")
        return data

    def tensor(self, member: str) -> NDArray[np.uint8]:
        """The little-endian bytes of a tensor."""
        record = self.records[member]
        what = f"{self.path}: the tensor {record.name[:100]!r}"
        payload = decode(record.form, self.contents[member], what)
        if sha256(payload.data) != record.sha256:
            raise ArtifactError(f"{what} is damaged: it has another SHA-256 than it should; {_REMEDY}")
        return payload


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """Open a compressed model and check its layout, its manifest and every digest.

    Raises:
        ArtifactError: it is missing, damaged, changed, or of another format; or it is small and would fill the memory.
    """
    target = Path(path)
    try:
        data = map_file(target)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be opened ({error.strerror or error}); check its name") from error
    contents = container.read(data, str(target), "compressed model", _REMEDY)
    manifest = _read_manifest(contents.pop(MANIFEST, None), target)
    listed = manifest["files"]
    if set(listed) != set(contents):
        odd = sorted(set(listed) ^ set(contents))[0]
        raise _damaged(target, f"its manifest and its members disagree about {odd[:100]!r}")
    for name, content in contents.items():
        if listed[name] != {"bytes": len(content), "sha256": sha256(content)}:
            raise ArtifactError(f"{target} was changed after it was written: {name} has another SHA-256; {_REMEDY}")
    records = [read_record(each, at, str(target)) for at, each in enumerate(manifest["tensors"])]
    by_member = {record.member: record for record in records}
    if len(by_member) != len(records) or set(contents) != {MODEL, *by_member}:
        raise _damaged(target, "its tensors and its members disagree")
    _check_growth(target, len(data), manifest["model"]["bytes"] + sum(record.nbytes for record in records))
    return Archive(target, manifest, by_member, contents)


def _read_manifest(data: memoryview | None, path: Path) -> dict[str, Any]:
    if data is None or len(data) > _MAX_MANIFEST:
        raise ArtifactError(f"{path} is not a compressed model: it has no {MANIFEST}; {_REMEDY}")
    manifest = strict_json(bytes(data), f"{MANIFEST} of {path}")
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = str(manifest.get("format"))[:20] if isinstance(manifest, dict) else "none"
        raise ArtifactError(f"{path} has format {found} and this graphopt reads {FORMAT}: {_REMEDY}")
    if manifest.get("sha256") != own_digest(manifest) or bytes(data) != manifest_bytes(manifest):
        raise ArtifactError(f"{path} was changed after it was written: {MANIFEST} has another SHA-256; {_REMEDY}")
    model, tensors, listed = manifest.get("model"), manifest.get("tensors"), manifest.get("files")
    if not isinstance(listed, dict) or not isinstance(tensors, list) or not isinstance(model, dict):
        raise _damaged(path, f"its {MANIFEST} does not list its members")
    size = model.get("bytes")
    if set(model) != {"bytes", "sha256"} or type(size) is not int or not 0 <= size <= _MAX_MODEL:
        raise _damaged(path, f"its {MANIFEST} does not describe its model")
    return manifest


def _check_growth(path: Path, size: int, whole: int) -> None:
    if whole > max(MOST_BYTES, MOST_TIMES * size):
        raise ArtifactError(
            f"{path} of {size} bytes stands for {whole} bytes, more than {MOST_TIMES} times as many; "
            "use the ONNX model itself"
        )


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(f"{path} is damaged: {why}; {_REMEDY}")
