"""A small model, and a pass that makes a mistake in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.pipeline.pass_base import Pass, PassResult

TEXT = """<ir_version: 10, opset_import: ["": 20]>
g (float["n", 8] x) => (float["n", 8] y) { a = Relu(x)  b = Neg(a)  c = Exp(b)  y = Abs(c) }"""


def model() -> ir.Model:
    loaded = ir.from_onnx_text(TEXT)
    for node in loaded.graph:
        node.name = f"make_{node.outputs[0].name}"
    return loaded


@dataclass(frozen=True)
class Positive(Pass):
    """A mistake: y = Neg(x) -> y = Abs(x)."""

    name: ClassVar[str] = "positive"

    def call(self, model: ir.Model) -> PassResult:
        found = [node for node in model.graph if node.op_type == "Neg"]
        for node in found:
            node.op_type = "Abs"
        return PassResult(model, bool(found))
