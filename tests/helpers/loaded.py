"""Models from text as the front end takes them, run and listed."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime


def text(graph: str, opset: int = 20, ir_version: int = 10, imports: str = "", functions: str = "") -> onnx.ModelProto:
    """A model in ONNX's text form: `graph` is `g (inputs) => (outputs) { nodes }`."""
    return onnx.parser.parse_model(
        f'<ir_version: {ir_version}, opset_import: ["": {opset}{imports}]>\n{graph}\n{functions}'
    )


def run(model: onnx.ModelProto | ir.Model, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    proto = ir.to_proto(model) if isinstance(model, ir.Model) else model
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def dynamic(model: ir.Model) -> list[str | None]:
    values = [value for node in model.graph for value in node.outputs]
    return [value.name for value in values if value.shape is None or not value.shape.is_static()]
