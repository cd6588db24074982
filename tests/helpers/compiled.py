"""Models from text, compiled, run, and held against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.compiler import Compilation, compile_model
from graphopt.verify.oracle import random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal


def parse(graph: str, opset: int = 21) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}, "ai.onnx.ml": 3]>\n{graph}')


def run(model: onnx.ModelProto, feeds: Mapping[str, Any] | None = None, **options: Any) -> Compilation:
    """Compile, run once and hold every output against ONNX Runtime."""
    reference = ir.from_proto(model)
    feeds = random_inputs(reference, 0) if feeds is None else feeds
    compilation = compile_model(model, **options)
    session = compilation.artifact.session(threads=2)
    expected = run_onnxruntime(reference, feeds)
    for _ in range(2):  # the second run finds the first one's remains in the arena
        outputs = session.run(feeds)
        require_equal(expected, outputs, "compiled")
    assert list(outputs) == [value.name for value in model.graph.output]
    return compilation


def segments(compilation: Compilation) -> list[Any]:
    return [segment for stage in compilation.artifact.program.stages for segment in stage.segments]
