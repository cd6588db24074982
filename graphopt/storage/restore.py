"""Make an ONNX model from its compressed file again: the same tensors, bit by bit, one at a time."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.errors import ArtifactError
from graphopt.program.files import write_file
from graphopt.storage import protos
from graphopt.storage.archive import Archive, is_compressed, open_archive

INLINE_BYTES = 1_500_000_000
"""Models with larger tensors are written with a second file for these: one protobuf message holds 2 GB at most."""

_ALIGNMENT = 64
_BEGINNING = 64


def is_compressed_file(path: str | os.PathLike[str]) -> bool:
    """Whether there is a compressed model at `path`, by its content; False for what cannot be read."""
    try:
        if not Path(path).is_file():
            return False
        with open(path, "rb") as file:
            return is_compressed(file.read(_BEGINNING))
    except (OSError, ValueError):
        return False


def restore(file: str | os.PathLike[str]) -> onnx.ModelProto:
    """The model of a compressed file, with all tensors inside it.

    Raises:
        ArtifactError: the file is damaged, or its model and its tensors do not fit each other.
    """
    opened = open_archive(file)
    model = _parse(opened)
    for tensor, member in _places(opened, model):
        protos.put(tensor, opened.tensor(member).tobytes())
    return model


def skeleton(file: str | os.PathLike[str]) -> onnx.ModelProto:
    """The model of a compressed file without its large tensors, for whoever asks about its inputs."""
    return _parse(open_archive(file))


def decompress(file: str | os.PathLike[str], target: Path) -> list[Path]:
    """Write the ONNX model to `target`; where it is larger than `INLINE_BYTES`, its initializers to `target`.data.

    Returns the files, each written under a temporary name and renamed.

    Raises:
        ArtifactError: the file is damaged; nothing is left behind.
    """
    opened = open_archive(file)
    if sum(record.nbytes for record in opened.records.values()) <= INLINE_BYTES:
        write_file(target, restore(file).SerializeToString(deterministic=True))
        return [target]
    model = _parse(opened)
    beside = target.with_name(f"{target.name}.data")
    held = list(model.graph.initializer)  # protobuf makes an object anew when nobody holds it
    initializers = {id(tensor) for tensor in held}
    descriptor, name = tempfile.mkstemp(prefix=f".{beside.name}.", suffix=".tmp", dir=target.absolute().parent)
    try:
        with os.fdopen(descriptor, "wb") as data:
            for tensor, member in _places(opened, model):
                payload = opened.tensor(member)
                if id(tensor) not in initializers:  # ONNX Runtime reads the data of initializers alone from a file
                    protos.put(tensor, payload.tobytes())
                    continue
                data.write(bytes(-data.tell() % _ALIGNMENT))
                _refer(tensor, beside.name, data.tell(), payload.nbytes)
                data.write(payload.data)
            data.flush()
            os.fsync(data.fileno())
        serialized = model.SerializeToString(deterministic=True)
        os.chmod(name, 0o644)
        os.replace(name, beside)
        write_file(target, serialized)
    finally:
        Path(name).unlink(missing_ok=True)
    return [target, beside]


def _places(opened: Archive, model: onnx.ModelProto) -> Iterator[tuple[onnx.TensorProto, str]]:
    """Each tensor of the model that lies in a member, and that member; every member is the place of one."""
    missing = dict(opened.records)
    for tensor in protos.tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        member = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        record = missing.pop(member, None)
        described = None if record is None else (record.name, record.shape, int(ir.DataType[record.dtype]))
        if described != (tensor.name, tuple(tensor.dims), tensor.data_type):
            raise ArtifactError(
                f"{opened.path} is damaged: no member holds the tensor {tensor.name[:100]!r} of its model; "
                "compress the model again"
            )
        yield tensor, member
    if missing:
        raise ArtifactError(f"{opened.path} is damaged: its model has no place for {min(missing)}; compress it again")


def _refer(tensor: onnx.TensorProto, location: str, offset: int, length: int) -> None:
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def _parse(opened: Archive) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(opened.model())
    except DecodeError as error:
        raise ArtifactError(f"{opened.path} is damaged: it holds no ONNX model; compress the model again") from error
    return model
