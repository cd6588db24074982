"""The models that onnx ships, with weights: their own are one constant, so that every output is uniform.

    w = ConstantOfShape(shape, value=0.02); y = Conv(x, w, b)   ->   w: drawn initializer; y = Conv(x, w, b)

Every float constant of the graph is drawn, uniformly and without torch (as `weights` explains: a uniform float is
exact), by the role it plays for the node that reads it. Nodes, names, inputs and outputs stay.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Floats = npt.NDArray[np.float32]

RELU_GAIN = math.sqrt(2.0)
BRANCH_GAIN = 0.3
"""Gain of the last norm before a sum: the scale after sixteen residual blocks stays within a factor of two."""
LOGIT_GAIN = 3.0
"""Gain of a last Gemm: the pooling before it takes most of the variance, and softmax should prefer some class."""

_SHAPE_CHANGES = ("Unsqueeze", "Reshape")
_KEEP_SIGN = (*_SHAPE_CHANGES, "Transpose", "MaxPool", "AveragePool", "Concat", "Sum", "Dropout", "LRN")


def draw(path: Path, seed: int) -> ir.Model:
    """The model of the file `path` with all its float constants drawn from `seed`; nothing but weights changes."""
    model = ir.load(path)
    model.ir_version = 11
    graph = model.graph
    generator = np.random.default_rng(seed)
    for value in list(graph.inputs):
        if value.is_initializer():
            graph.inputs.remove(value)
    for value, shape in list(_constants(graph)):
        node, index = _reader(value)
        tensor = ir.Tensor(_weights(node, index, shape, generator), name=value.name)
        producer = value.producer()
        if producer is None:
            value.const_value = tensor
            continue
        drawn = ir.Value(name=value.name, shape=ir.Shape(shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        value.replace_all_uses_with(drawn)
        (source,) = producer.inputs
        graph.remove(producer, safe=True)
        graph.register_initializer(drawn)
        if source is not None and source.name is not None and not source.uses():
            graph.initializers.pop(source.name)
    return model


def _constants(graph: ir.Graph) -> Iterator[tuple[ir.Value, tuple[int, ...]]]:
    """The float constants that a layer reads, in a fixed order, with their shapes."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype == ir.DataType.FLOAT and value.uses():
            yield value, tuple(tensor.shape.numpy())
    for node in graph:
        if node.op_type == "ConstantOfShape" and node.inputs[0] is not None and node.inputs[0].const_value is not None:
            yield node.outputs[0], tuple(int(size) for size in node.inputs[0].const_value.numpy())


def _reader(value: ir.Value) -> tuple[ir.Node, int]:
    """The layer that reads a constant, and as which input, looking through changes of its shape."""
    node, index = next(iter(value.uses()))
    while node.op_type in _SHAPE_CHANGES:
        node, index = next(iter(node.outputs[0].uses()))
    return node, index


def _rectified(value: ir.Value | None) -> bool:
    """Whether no element of `value` is negative, because a Relu produced them."""
    producer = value.producer() if value is not None else None
    while producer is not None and producer.op_type in _KEEP_SIGN and producer.inputs[0] is not None:
        producer = producer.inputs[0].producer()
    return producer is not None and producer.op_type == "Relu"


def _weights(node: ir.Node, index: int, shape: tuple[int, ...], generator: np.random.Generator) -> Floats:
    match node.op_type, index:
        case "Conv", 1:  # He et al. 2015, arXiv:1502.01852
            gain = RELU_GAIN if _rectified(node.inputs[0]) else 1.0
            return _uniform(generator, shape, gain / math.sqrt(math.prod(shape[1:])))
        case "Gemm", 1:
            transposed = "transB" in node.attributes and node.attributes["transB"].as_int()
            last = not any(reader.op_type == "Relu" for reader, _ in node.outputs[0].uses())
            gain = LOGIT_GAIN if last else RELU_GAIN
            return _uniform(generator, shape, gain / math.sqrt(shape[-1] if transposed else shape[-2]))
        case ("Conv" | "Gemm", 2) | ("Add", _):
            return _uniform(generator, shape, 0.05)
        case "BatchNormalization", 1:
            gain = BRANCH_GAIN if any(reader.op_type == "Sum" for reader, _ in node.outputs[0].uses()) else 1.0
            return _uniform(generator, shape, 0.1 * gain, mean=gain)
        case "Mul", _:
            return _uniform(generator, shape, 0.1, mean=1.0)
        case "BatchNormalization", 4:  # a variance: at least 0.65
            return _uniform(generator, shape, 0.2, mean=1.0)
        case "BatchNormalization", _:
            return _uniform(generator, shape, 0.1)
    raise ValueError(f"no rule draws input {index} of {node.op_type} {node.name}")


def _uniform(generator: np.random.Generator, shape: tuple[int, ...], deviation: float, mean: float = 0.0) -> Floats:
    """Uniform with this mean and standard deviation."""
    bound = np.float32(deviation * math.sqrt(3.0))
    drawn = generator.random(shape, dtype=np.float32)
    drawn *= 2 * bound
    drawn += np.float32(mean) - bound
    return drawn
