"""The trained model: the user's own, with the parameters and running statistics that training found.

Everything else stays as the user gave it: names, opset, functions, metadata, and where the weights are stored.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_model, set_external_data, uses_external_data

from graphopt.errors import GraphoptError
from graphopt.storage.protos import tensors
from graphopt.training.engine import Array

MESSAGE_BYTES = 1_500_000_000
"""Models of more bytes are written with external data: a protobuf message holds 2 GB at most."""
SMALL_BYTES = 1024
"""Tensors below stay in the model: shapes, which inference reads."""


def trained(model: onnx.ModelProto, state: Mapping[str, Array], folder: Path | None = None) -> onnx.ModelProto:
    """A copy of `model` whose initializers, or Constant nodes, of these names hold the numbers of `state`.

    Args:
        model: the inference model that training began with.
        state: parameters and statistics by name. Each takes the type that the model has for it.
        folder: where the external data of `model` are.

    Raises:
        GraphoptError: the model has no such initializer, or one of another shape.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    homes = dict(_homes(copy))
    for name, array in state.items():
        if name not in homes:
            raise GraphoptError(
                f"the model has no initializer {name!r}, which was trained; export the one it came from"
            )
        tensor = homes[name]
        if tuple(tensor.dims) != array.shape:
            raise GraphoptError(
                f"initializer {name!r} has shape {list(tensor.dims)}, and {list(array.shape)} was trained; "
                "export the model that training began with"
            )
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        fresh = numpy_helper.from_array(np.asarray(array, dtype, order="C"), tensor.name)
        fresh.doc_string = tensor.doc_string
        fresh.metadata_props.extend(tensor.metadata_props)
        tensor.CopyFrom(fresh)
    if folder is not None:
        load_external_data_for_model(copy, str(folder))
    return copy


def is_external(model: onnx.ModelProto) -> bool:
    """Whether a tensor of the model lies in a file of its own."""
    return any(uses_external_data(tensor) for tensor in tensors(model))


def write(model: onnx.ModelProto, path: Path, *, external: bool = False) -> None:
    """Write a model beside `path` and rename it; readers see no file or a complete one.

    Args:
        model: changed, if its weights go into a second file.
        path: where to; the second file is `path.data`.
        external: write the weights into the second file; large models always are.

    Raises:
        GraphoptError: it cannot be written; a file of that name is as it was.
    """
    size = sum(len(tensor.raw_data) for tensor in tensors(model))
    data = f"{path.name}.data" if external or size > MESSAGE_BYTES else None
    try:
        with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=f".{path.stem}-") as scratch:
            draft = Path(scratch) / path.name
            if data is not None:
                for tensor in tensors(model):
                    if len(tensor.raw_data) >= SMALL_BYTES:
                        set_external_data(tensor, data)
            onnx.save_model(model, draft)
            if data is not None and draft.with_name(data).exists():
                _sync(draft.with_name(data))
                os.replace(draft.with_name(data), path.with_name(data))
            _sync(draft)
            os.replace(draft, path)
    except OSError as error:
        reason = error.strerror or error
        raise GraphoptError(
            f"the trained model cannot be written to {path}: {reason}; free some space or name another file"
        ) from error


def _homes(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """The tensors of the main graph by the names of the values that they are."""
    for tensor in model.graph.initializer:
        yield tensor.name, tensor
    for node in model.graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            for attribute in node.attribute:
                if attribute.name == "value":
                    yield node.output[0], attribute.t


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
