"""Evaluate one node on constants in ONNX Runtime, so that a folded node gives the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir


def run_node(
    node: ir.Node, version: int, ir_version: int, operands: Sequence[np.ndarray[Any, Any] | None]
) -> list[np.ndarray[Any, Any]] | None:
    """The outputs of `node` for `operands`, None for absent ones, or None where ONNX Runtime has no kernel for them."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        inputs = {f"i{index}": array for index, array in enumerate(operands) if array is not None}
        infos = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in inputs.items()
        ]
        proto = ir.serde.serialize_node(node)
        proto.input[:] = [f"i{index}" if array is not None else "" for index, array in enumerate(operands)]
        proto.output[:] = [f"o{index}" for index in range(len(node.outputs))]
        outputs = [onnx.ValueInfoProto(name=name) for name in proto.output]
        graph = onnx.helper.make_graph([proto], "node", infos, outputs)
        model = onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", version)], ir_version=ir_version
        )
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return list(session.run(None, inputs))
    except Exception:  # of ONNX Runtime, whose exceptions share no base class, and of types that numpy lacks
        return None
