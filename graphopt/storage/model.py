"""Compress an ONNX model into a file.

share_weights(model, folder, bits)    lossy, and the only step that is: the weights of each layer become a codebook
write(model, folder, file)            every large tensor in its smallest form
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.storage import archive, protos, sharing
from graphopt.storage.encode import Encoded, Stages, encode
from graphopt.storage.record import word_of

SMALL_BYTES = 1024
"""Tensors up to this size stay in the model."""

INSIDE = "graph"
"""The layout of a layer whose weights stay in the model."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Layer:
    """A product or convolution whose weights were stored: where, in which form, and in how many bytes by stage."""

    node: str
    operator: str
    tensor: str
    shape: tuple[int, ...]
    density: float
    layout: str
    values: int
    stages: Stages
    error: sharing.CodebookError | None


@dataclass(frozen=True, slots=True)
class Compressed:
    """What was written: the layers, bytes of all other tensors and of the graph before and after, and of the file."""

    layers: tuple[Layer, ...]
    others: tuple[int, int]
    graph: tuple[int, int]
    original: int
    file: int


def share_weights(
    model: onnx.ModelProto, folder: Path | None, bits: int, say: Say = lambda _: None
) -> list[sharing.CodebookError | None]:
    """Give the weights of each MatMul, Gemm and Conv at most 2 ** `bits` - 1 values besides zero, in place.

    Zeros stay zeros, and positive; no other weight becomes zero. Returns the codebook error of each layer, in the order
    of `protos.weights`; None where weights are not finite, which stay as they are.
    """
    errors: list[sharing.CodebookError | None] = []
    for weight in protos.weights(model):
        say(f"sharing the weights of {weight.node}")
        dtype = ir.DataType(weight.tensor.data_type).numpy()
        values = protos.payload(weight.tensor, folder).view(dtype)
        codebook = sharing.share(values, (1 << bits) - 1)
        if codebook is None:
            errors.append(None)
            continue
        shared = np.zeros_like(values)
        nonzero = values != 0
        own = values[nonzero]
        places = sharing.nearest(own, codebook) if len(codebook) else np.zeros(0, np.uint8)
        errors.append(sharing.error(own, codebook, places))
        shared[nonzero] = codebook[places]
        protos.put(weight.tensor, shared.tobytes())
    return errors


def write(
    model: onnx.ModelProto,
    folder: Path | None,
    file: Path,
    errors: Sequence[sharing.CodebookError | None] | None = None,
    bits: int | None = None,
    say: Say = lambda _: None,
) -> Compressed:
    """Write the compressed form of a checked model to `file`, by renaming; large tensors are taken out of `model`.

    Args:
        folder: of the model, where its external data lies.
        errors: what `share_weights` returned, and its `bits`.
        say: called with the current activity.
    """
    weights = {id(weight.tensor): weight for weight in protos.weights(model)}
    error_of = dict(zip(weights, errors or [None] * len(weights), strict=True))
    large = _large(model)
    taken = {id(tensor) for tensor in large}
    for tensor in protos.tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL and id(tensor) not in taken:
            protos.put(tensor, protos.payload(tensor, folder).tobytes())
    layers: dict[int, Layer] = {}
    others, original = [0, 0], 0
    with archive.Writer(file) as writer:
        for number, tensor in enumerate(large):
            say(f"encoding tensor {number + 1} of {len(large)}")
            payload, weight = protos.payload(tensor, folder), weights.get(id(tensor))
            dtype, shape = ir.DataType(tensor.data_type).name, tuple(tensor.dims)
            word = _word(tensor)
            assert word is not None
            encoded = encode(payload, word[1], word[2], shape, weight is not None and weight.transposed)
            _stub(tensor, writer.add(tensor.name, dtype, shape, payload, encoded))
            original += payload.nbytes
            if weight is None:
                others = [others[0] + payload.nbytes, others[1] + encoded.form.nbytes]
            else:
                layers[id(tensor)] = _layer(weight, encoded, error_of[id(tensor)])
        say("writing the file")
        in_order = tuple(
            layers[each] if each in layers else _inside(weight, error_of[each]) for each, weight in weights.items()
        )
        serialized = model.SerializeToString(deterministic=True)
        size = writer.finish(serialized, {"bits": bits, "layers": [_facts(layer) for layer in in_order]})
    stored = sum(layer.stages.final for layer in in_order) + others[1]
    small = sum(layer.stages.final for layer in in_order if layer.layout == INSIDE)
    graph = len(serialized) - small, size - stored
    return Compressed(in_order, (others[0], others[1]), graph, original + len(serialized), size)


def _large(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """The tensors that get members of their own, in the order of the model."""
    found = []
    for tensor in protos.tensors(model):
        word = _word(tensor)
        if word is None:
            continue
        nbytes = (math.prod(tensor.dims) * word[0] + 7) // 8
        if nbytes > SMALL_BYTES:
            found.append((nbytes, tensor))
    if len(found) > archive.MAX_TENSORS:
        least = sorted((nbytes for nbytes, _ in found), reverse=True)[archive.MAX_TENSORS]
        found = [each for each in found if each[0] > least]
    return [tensor for _, tensor in found]


def _word(tensor: onnx.TensorProto) -> tuple[int, int, bool] | None:
    return word_of(ir.DataType(tensor.data_type).name)


def _stub(tensor: onnx.TensorProto, member: str) -> None:
    """Leave the name of the member in place of the bytes."""
    protos.put(tensor, b"")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=member)


def _layer(weight: protos.Weight, encoded: Encoded, error: sharing.CodebookError | None) -> Layer:
    shape, form = tuple(weight.tensor.dims), encoded.form
    return Layer(
        weight.node,
        weight.operator,
        weight.tensor.name,
        shape,
        encoded.nonzero / max(form.size, 1),
        form.layout,
        form.codebook,
        encoded.stages,
        error,
    )


def _inside(weight: protos.Weight, error: sharing.CodebookError | None) -> Layer:
    values = protos.payload(weight.tensor, None).view(ir.DataType(weight.tensor.data_type).numpy())
    density = float(np.count_nonzero(values)) / max(values.size, 1)
    stages = Stages(*(4 * [values.nbytes]))
    return Layer(
        weight.node, weight.operator, weight.tensor.name, tuple(weight.tensor.dims), density, INSIDE, 0, stages, error
    )


def _facts(layer: Layer) -> dict[str, object]:
    return {"node": layer.node, "tensor": layer.tensor, "error": None if layer.error is None else asdict(layer.error)}
