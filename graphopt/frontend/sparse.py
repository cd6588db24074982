"""Make sparse constants and initializers dense before anything else reads the model.

onnx_ir reads no sparse tensor and ONNX Runtime makes them dense itself, so nothing is lost.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from graphopt.errors import ModelError
from graphopt.frontend.files import MAX_FILE_BYTES, check_tensor


def densify(model: onnx.ModelProto, *, ours: bool) -> onnx.ModelProto:
    """`model` with dense tensors for all sparse ones, which `check_sparse` has seen; a copy unless it is `ours`."""
    if not any(graph.sparse_initializer for graph in _graphs(model)) and not any(map(_sparse, _nodes(model))):
        return model
    model = model if ours else copy.deepcopy(model)
    for graph in _graphs(model):
        graph.initializer.extend(map(_dense, graph.sparse_initializer))
        del graph.sparse_initializer[:]
    for node in _nodes(model):
        for attribute in _sparse(node):
            tensor = _dense(attribute.sparse_tensor)
            attribute.Clear()
            attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
            attribute.t.CopyFrom(tensor)
    return model


def check_sparse(tensor: onnx.SparseTensorProto, where: str, base_dir: Path | None) -> None:
    """Refuse a sparse tensor whose values or indices do not fit its dims. Raises ModelError.

    The values are a vector of n elements; the indices are n places in the flattened tensor, or n rows of coordinates.
    """
    check_tensor(tensor.values, f"{where} (values)", base_dir)
    check_tensor(tensor.indices, f"{where} (indices)", base_dir)
    external = onnx.TensorProto.EXTERNAL
    if external in (tensor.values.data_location, tensor.indices.data_location):
        raise ModelError(f"{where} is sparse and keeps its data in another file; store it inside the model")
    if tensor.values.data_type == onnx.TensorProto.STRING:
        raise ModelError(f"{where} is a sparse tensor of strings, which ONNX Runtime does not read; store it dense")
    if any(dim < 0 for dim in tensor.dims) or not tensor.dims:
        raise ModelError(f"{where} is sparse and has the dims {list(tensor.dims)[:8]}; correct its shape")
    shape = "x".join(map(str, tensor.dims))
    if math.prod(max(dim, 1) for dim in tensor.dims) * 16 > MAX_FILE_BYTES:
        raise ModelError(f"{where} is sparse and would take too much memory as a dense {shape}; split it")
    count, rank = len(_array(tensor.values).reshape(-1)), len(tensor.dims)
    indices = tensor.indices
    if indices.data_type != onnx.TensorProto.INT64:
        dtype = onnx.TensorProto.DataType.Name(indices.data_type).lower()
        raise ModelError(f"{where} is sparse and has indices of type {dtype}; export it with int64 indices")
    if list(tensor.values.dims) != [count] or list(indices.dims) not in ([count], [count, rank]):
        raise ModelError(
            f"{where} is sparse and has {count} values with indices of shape {list(indices.dims)}; "
            "give one int64 index, or one row of coordinates, for each value"
        )
    places = _array(indices)
    limits = np.array(tensor.dims if places.ndim == 2 else [math.prod(tensor.dims)], dtype=np.int64)
    if places.size and ((places < 0).any() or (places >= limits).any()):
        raise ModelError(f"{where} is sparse and has an index outside of {shape}; export the model again")
    steps = np.diff(_flat(places, tensor))
    if (steps <= 0).any():  # ONNX wants them to ascend; of two values at one place nobody says which counts
        at = int(np.argmax(steps <= 0))
        how = "twice" if steps[at] == 0 else "after a larger one"
        place = places[at + 1].tolist()
        raise ModelError(f"{where} is sparse and has the index {place} {how}; export it with ascending indices")


def _dense(tensor: onnx.SparseTensorProto) -> onnx.TensorProto:
    values, places = _array(tensor.values), _flat(_array(tensor.indices), tensor)
    dense = np.zeros(math.prod(tensor.dims), values.dtype)
    dense[places] = values
    proto = numpy_helper.from_array(dense.reshape(tuple(tensor.dims)), tensor.values.name)
    proto.data_type = tensor.values.data_type
    return proto


def _flat(places: np.ndarray, tensor: onnx.SparseTensorProto) -> np.ndarray:
    """Places in the flattened tensor, of indices or rows of coordinates."""
    if places.ndim == 2 and places.size:
        return np.asarray(np.ravel_multi_index(tuple(places.T), tuple(tensor.dims)))
    return places.reshape(-1)


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    return numpy_helper.to_array(tensor)


def _sparse(node: onnx.NodeProto) -> list[onnx.AttributeProto]:
    return [attribute for attribute in node.attribute if attribute.HasField("sparse_tensor")]


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in _graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def _graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and all graphs in attributes of nodes, also of functions."""
    yield model.graph
    stack: list[Iterable[onnx.NodeProto]] = [model.graph.node, *(function.node for function in model.functions)]
    while stack:
        for node in stack.pop():
            for attribute in node.attribute:
                for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                    yield graph
                    stack.append(graph.node)
