"""Validate a model with onnx's checker, except where the checker is stricter than ONNX Runtime."""

from __future__ import annotations

import onnx

from graphopt.errors import ModelError
from graphopt.frontend.shapes import one_line


def check(proto: onnx.ModelProto) -> None:
    """Raise a ModelError for what onnx's own checker rejects; a model may leave the types of its outputs open.

    `proto` is the caller's copy, and is modified.
    """
    for info in proto.graph.output:
        kind = info.type.WhichOneof("value")
        if kind is None:
            info.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        if kind in (None, "tensor_type") and not info.type.tensor_type.HasField("shape"):
            info.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the model is not valid ONNX: {one_line(str(error))}; export it again") from error
