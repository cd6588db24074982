"""Whether a model is valid ONNX, as onnx's checker says, where it is not stricter than ONNX Runtime."""

from __future__ import annotations

import onnx

from graphopt.errors import ModelError
from graphopt.frontend.shapes import one_line


def check(proto: onnx.ModelProto) -> None:
    """What onnx's own checker finds, as a ModelError; a model may leave open what its outputs are.

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
