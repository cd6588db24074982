"""Maps, which scikit-learn's classifiers return: onnx_ir has no such type, so maps are untyped values in the model.

ONNX Runtime infers the type again where it runs the node.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import onnx
import onnx_ir as ir


def untyped_maps(model: onnx.ModelProto, *, ours: bool) -> onnx.ModelProto:
    """`model` without the types of outputs and inner values that are maps; a copy unless it is `ours`."""
    if not any(_maps(model.graph)):
        return model
    model = model if ours else copy.deepcopy(model)
    for info in _maps(model.graph):
        info.ClearField("type")
    return model


def from_inferred(model: onnx.ModelProto) -> ir.Model:
    """The result of shape inference in IR form. `model` is the caller's own, and is modified."""
    return ir.from_proto(untyped_maps(model, ours=True))


def is_map(kind: onnx.TypeProto) -> bool:
    """Whether the type is a map, or a sequence or optional value of maps."""
    while (field := kind.WhichOneof("value")) in ("sequence_type", "optional_type"):
        kind = getattr(kind, field).elem_type
    return str(field) == "map_type"


def _maps(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    yield from (info for info in (*graph.output, *graph.value_info) if is_map(info.type))
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _maps(inner)
