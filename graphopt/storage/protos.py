"""The tensors of an ONNX model: all of them, their bytes, and which ones are the weights of its layers."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

_VIEWS = ("Identity", "Transpose", "Reshape", "Flatten", "Unsqueeze", "Squeeze")


@dataclass(frozen=True, slots=True)
class Weight:
    """The weights of a product or convolution; `transposed` where outputs are the first axis of the tensor."""

    node: str
    operator: str
    tensor: onnx.TensorProto
    transposed: bool


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Every tensor in a message, those of sparse tensors as two: initializers, constants, attributes, in its order."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for each in value if field.is_repeated else (value,):
            if isinstance(each, onnx.TensorProto):
                yield each
            else:
                yield from tensors(each)


def payload(tensor: onnx.TensorProto, folder: Path | None) -> NDArray[np.uint8]:
    """The little-endian bytes of a tensor that the front end has checked; external data is mapped.

    Args:
        folder: of the model, where its external data lies.
    """
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        nbytes = ir.serde.deserialize_tensor(tensor, folder or "").nbytes
        path = (folder or Path()) / entries["location"]
        if not nbytes:
            return np.zeros(0, np.uint8)
        return np.memmap(path, np.uint8, "r", int(entries.get("offset") or 0), (nbytes,))
    if tensor.HasField("raw_data"):
        return np.frombuffer(tensor.raw_data, np.uint8)
    return np.frombuffer(ir.serde.deserialize_tensor(tensor).tobytes(), np.uint8)


def put(tensor: onnx.TensorProto, data: bytes) -> None:
    """Make `data` the bytes of a tensor, inside the model."""
    for field in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data"):
        tensor.ClearField(field)
    tensor.ClearField("data_location")
    tensor.raw_data = data


def weights(model: onnx.ModelProto) -> list[Weight]:
    """The constant floating-point weights of MatMul, Gemm and Conv, each tensor once, by its first user."""
    found: dict[int, Weight] = {}
    for graph in (model.graph, *model.functions):
        for weight in _weights(graph, ChainMap()):
            found.setdefault(id(weight.tensor), weight)
    return list(found.values())


def _weights(graph: Any, outer: ChainMap[str, tuple[onnx.TensorProto, bool]]) -> Iterator[Weight]:
    known = outer.new_child()
    for tensor in getattr(graph, "initializer", ()):
        known[tensor.name] = (tensor, False)
    for sparse in getattr(graph, "sparse_initializer", ()):
        known[sparse.values.name] = (sparse.values, False)
    for node in graph.node:
        if node.domain in ("", "ai.onnx") and node.output:
            _follow(node, known)
            yield from _read(node, known)
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _weights(inner, known)


def _follow(node: onnx.NodeProto, known: ChainMap[str, tuple[onnx.TensorProto, bool]]) -> None:
    """Note the constants that a node holds, or shows in another way."""
    if node.op_type == "Constant":
        for attribute in node.attribute:
            if attribute.name == "value" and attribute.HasField("t"):
                known[node.output[0]] = (attribute.t, False)
            elif attribute.name == "sparse_value":
                known[node.output[0]] = (attribute.sparse_tensor.values, False)
    elif node.op_type in _VIEWS and node.input and node.input[0] in known:
        tensor, turned = known[node.input[0]]
        known[node.output[0]] = (tensor, turned != (node.op_type == "Transpose"))


def _read(node: onnx.NodeProto, known: Mapping[str, tuple[onnx.TensorProto, bool]]) -> Iterator[Weight]:
    places = {"MatMul": (1, 0), "Gemm": (1, 0), "Conv": (1,)}.get(node.op_type, ())
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    for place in places:
        if place >= len(node.input) or node.input[place] not in known:
            continue
        tensor, turned = known[node.input[place]]
        if tensor.data_type not in FLOATS or (place == 0 and min(tensor.dims[-2:], default=1) < 2):
            continue  # a vector in front, such as the frequencies of rotary embeddings, is no layer's
        # A product's second operand is [inputs, outputs], its first one [outputs, inputs].
        outputs_first = node.op_type == "Conv" or (place == 0) != bool(flags.get("transB" if place else "transA", 0))
        yield Weight(node.name or node.output[0], node.op_type, tensor, outputs_first != turned)


FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
