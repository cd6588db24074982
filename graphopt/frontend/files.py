"""Reading model files and tensor payloads without trusting them: bounded, inside the model's folder, memory-mapped.

Nothing here opens a file before its path was checked, and nothing allocates what a file merely declares.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.errors import ModelError
from graphopt.graph.constness import stored

MAX_FILE_BYTES = 2**31 - 1
"""Protobuf's own limit for one message; larger models keep their weights in external data."""

MAX_TENSOR_BYTES = 2**40
"""No tensor that a model declares or implies may be larger (1 TiB): beyond it is damage, not a model."""

SMALL_BYTES = 1024
"""Constants up to this size are seen by shape inference; larger ones take part with their shapes only."""

_NAN_CHUNK = 1 << 22  # elements checked at once, so that a mapped weight is never copied as a whole
_FLOATS = frozenset({"FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"})
# The typed field of TensorProto that holds each dtype when `raw_data` is absent, and elements per entry.
_FIELD_OF = {
    "FLOAT": "float_data", "COMPLEX64": "float_data", "DOUBLE": "double_data", "COMPLEX128": "double_data",
    "INT64": "int64_data", "UINT64": "uint64_data", "UINT32": "uint64_data", "STRING": "string_data",
}  # fmt: skip


def read_model(path: Path) -> onnx.ModelProto:
    """Parse the file at `path`. Raises ModelError, which names the file, for anything that is not an ONNX protobuf."""
    try:
        status = path.stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else (error.strerror or "cannot be read")
        raise ModelError(f"{path}: {reason}; give the path of an ONNX file or zoo:NAME") from error
    except ValueError as error:  # a null character in the name
        raise ModelError(f"{str(path)!r} is not a file name; give the path of an ONNX file or zoo:NAME") from error
    if stat.S_ISDIR(status.st_mode):
        raise ModelError(f"{path} is a directory; give the path of the ONNX file inside it")
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(f"{path} is not a regular file; copy the model to one")
    if status.st_size == 0:
        raise ModelError(f"{path} is empty; export or copy the model again")
    if status.st_size > MAX_FILE_BYTES:
        raise ModelError(f"{path} is larger than 2 GiB, which protobuf cannot hold; save it with external data")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    model = onnx.ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError(f"{path} {_what_it_is(content)}; export or copy the model again") from error
    if not model.HasField("graph") and not model.opset_import:
        raise ModelError(f"{path} {_what_it_is(content)}; export or copy the model again")
    return model


def _what_it_is(content: bytes) -> str:
    head = content[:256]
    if head.startswith(b"PK") and b"manifest.json" in head:
        return "is an artifact that graphopt compiled, and not an ONNX model"
    if head.startswith(b"PK"):
        return "is a zip archive, perhaps a PyTorch checkpoint, and not an ONNX model"
    if all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return "is text, not an ONNX protobuf"
    return "is not an ONNX protobuf or is damaged"


def check_tensor(tensor: onnx.TensorProto, where: str, base_dir: Path | None) -> None:
    """Refuse a tensor whose payload does not fit its dtype and dims. `where` names it: "initializer w".

    `base_dir` is the model's folder (None when the model came without one). Raises ModelError.
    """
    try:
        dtype = ir.DataType(tensor.data_type)
    except ValueError:
        dtype = ir.DataType.UNDEFINED
    if dtype == ir.DataType.UNDEFINED:
        raise ModelError(f"{where} has the unknown data type {tensor.data_type}; the file is damaged, export it again")
    elements, nbytes = checked_size(tuple(tensor.dims), dtype, where)
    if tensor.HasField("segment"):
        raise ModelError(f"{where} is stored in segments, which ONNX no longer uses; save the model again")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external_proto(tensor, where, nbytes, dtype, base_dir)
        return
    if tensor.HasField("raw_data"):
        if dtype == ir.DataType.STRING:
            raise ModelError(f"{where} holds strings as raw bytes, which ONNX forbids; save the model again")
        count, wanted, unit = len(tensor.raw_data), nbytes, "bytes"
    else:
        field = _FIELD_OF.get(dtype.name, "int32_data")
        count, unit = len(getattr(tensor, field)), f"entries of {field}"
        if dtype.name.startswith("COMPLEX"):
            wanted = 2 * elements
        elif dtype != ir.DataType.STRING and dtype.bitwidth in (2, 4):
            wanted = nbytes  # one packed byte per entry
        else:
            wanted = elements
    if count != wanted:
        shape = "x".join(map(str, tensor.dims)) or "scalar"
        raise ModelError(
            f"{where} ({dtype.name} {shape}) needs {wanted} {unit} and has {count}; "
            "the file is damaged, export it again"
        )


def checked_size(dims: tuple[int, ...], dtype: ir.DataType, where: str) -> tuple[int, int]:
    """Elements and bytes of a tensor of `dims`; ModelError when a dim is negative or the size is unreasonable."""
    if any(dim < 0 for dim in dims):
        raise ModelError(f"{where} has a negative dimension in {list(dims)[:8]}; correct the model's shapes")
    if len(dims) > 64:
        raise ModelError(f"{where} has {len(dims)} dimensions, more than 64; correct the model's shapes")
    elements = math.prod(dims)
    bits = 8 if dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) else dtype.bitwidth
    nbytes = (elements * bits + 7) // 8
    # A zero dimension must not hide the others: [0, 2**62, 2**62] overflows every indexing scheme.
    if math.prod(max(dim, 1) for dim in dims) * bits > 8 * MAX_TENSOR_BYTES:
        shape = "x".join(map(str, dims))
        raise ModelError(f"{where} has the shape {shape}, more than 1 TiB; correct the model's shapes")
    return elements, nbytes


def _check_external_proto(
    tensor: onnx.TensorProto, where: str, nbytes: int, dtype: ir.DataType, base_dir: Path | None
) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    numbers = {}
    for key in ("offset", "length"):
        text = entries.get(key, "")
        if text and not (text.isascii() and text.isdigit() and len(text) < 20):
            raise ModelError(f"{where} has the external {key} {text[:40]!r}, not a byte count; export the model again")
        numbers[key] = int(text) if text else None
    if dtype == ir.DataType.STRING:
        raise ModelError(f"{where} holds strings in external data, which ONNX forbids; save the model again")
    check_external(where, location, numbers["offset"], numbers["length"], nbytes, base_dir)


def check_external(
    where: str, location: str, offset: int | None, length: int | None, nbytes: int, base_dir: Path | None
) -> None:
    """Refuse external data outside `base_dir` or past the end of its file; opens nothing. Raises ModelError.

    `nbytes` is what the tensor's shape and dtype need; `offset` and `length` are bytes (None: 0, and the rest).
    """
    if base_dir is None:
        raise ModelError(f"{where} keeps its data in the file {location!r}; load the model by its path instead")
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location:
        raise ModelError(f"{where} names no file for its external data; export the model again")
    if os.path.isabs(location) or PureWindowsPath(location).is_absolute() or ".." in parts:
        raise ModelError(
            f"{where} keeps its data at {location!r}, outside the model's folder; "
            "move the data beside the model and use a relative path"
        )
    folder = os.path.realpath(base_dir)
    path = os.path.realpath(os.path.join(folder, location))
    if os.path.commonpath([folder, path]) != folder:
        raise ModelError(
            f"{where} keeps its data at {location!r}, a link that leaves the model's folder; "
            "copy the data beside the model"
        )
    try:
        status = os.stat(path)
    except OSError as error:
        raise ModelError(
            f"{where} needs the data file {location!r}, which is not beside the model; copy it there"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(
            f"{where} keeps its data at {location!r}, which is not a regular file; copy the data beside the model"
        )
    if status.st_nlink > 1:  # onnx_ir refuses these when it maps them: a hard link can smuggle any file of the disk in
        raise ModelError(
            f"{where} keeps its data at {location!r}, a file with several hard links; copy the data instead"
        )
    start = offset or 0
    if length is not None and length != nbytes:
        raise ModelError(f"{where} needs {nbytes} bytes and declares {length} in {location!r}; export the model again")
    if start + nbytes > status.st_size:
        raise ModelError(
            f"{where} needs the bytes {start} to {start + nbytes} of {location!r}, which has {status.st_size}; "
            "copy the data file again"
        )


def each_tensor(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """All constant tensors of `model`, each with a phrase that names it: initializers, then tensor attributes."""
    graphs: list[ir.Graph | ir.Function] = [*model.graphs(), *model.functions.values()]
    for graph in graphs:
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if (tensor := stored(value)) is not None:
                    yield f"initializer {value.name}", tensor
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.is_ref():
                    continue
                if attribute.type == ir.AttributeType.TENSOR:
                    what = "constant" if node.op_type == "Constant" else f"attribute {attribute.name} of node"
                    yield f"{what} {label(node)}", attribute.as_tensor()
                elif attribute.type == ir.AttributeType.TENSORS:
                    for tensor in attribute.as_tensors():
                        yield f"attribute {attribute.name} of node {label(node)}", tensor


def label(node: ir.Node) -> str:
    """How a message names `node`: its name, or its first output when it has none, and its operator."""
    name = node.name or next((value.name for value in node.outputs if value.name), None) or "(unnamed)"
    return f"{name} ({node.op_type})"


def has_nan(tensor: ir.TensorProtocol) -> bool:
    """Whether NaN is among weights. A single element may be NaN: it is a fill value, not a weight.

    Reads mapped data in chunks, and leaves nothing of it in memory.
    """
    if tensor.dtype.name not in _FLOATS or tensor.size < 2:
        return False
    flat = tensor.numpy()
    if 0 in flat.strides:
        flat = flat[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in flat.strides)]
    flat = flat.reshape(-1)
    for start in range(0, flat.size, _NAN_CHUNK):
        chunk = flat[start : start + _NAN_CHUNK]
        if chunk.dtype.name in ("float32", "float64"):
            with np.errstate(all="ignore"):
                # Squares overflow to inf, and only NaN gives NaN.
                contains_nan = bool(np.isnan(np.dot(chunk, chunk)))
        else:
            contains_nan = bool(np.isnan(chunk.astype(np.float32)).any())
        if contains_nan:
            return True
    return False


def own_tensor(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """A tensor object of our own over the bytes of `tensor`: renaming a value renames its tensor.

    A tensor inside a protobuf is copied out of it, since every access to it copies, and one tensor keeps the whole
    message alive. External data stays mapped, unless it is small enough to be a shape that inference needs.
    """
    name, doc = tensor.name, tensor.doc_string
    if isinstance(tensor, ir.ExternalTensor):
        if tensor.nbytes <= SMALL_BYTES:
            return ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=name, doc_string=doc)
        return ir.ExternalTensor(
            tensor.location, tensor.offset, tensor.length, tensor.dtype,
            shape=tensor.shape, name=name or "", doc_string=doc, base_dir=tensor.base_dir,
        )  # fmt: skip
    if isinstance(tensor, ir.StringTensor):
        return ir.StringTensor(list(tensor.string_data()), shape=tensor.shape, name=name, doc_string=doc)
    return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, name=name, doc_string=doc)
