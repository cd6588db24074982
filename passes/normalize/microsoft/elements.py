"""Rules of normalize for com.microsoft's activations."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.edit import Editor, Rule
from graphopt.passes.normalize.microsoft.shared import Writer, operand, unknown

GELU_OPSET = 20


def _gelu(editor: Editor, node: ir.Node) -> str | None:
    """FastGelu(x, b) -> Gelu{tanh}(Add(x, b)); BiasGelu(x, b) and Gelu(x) -> Gelu."""
    if (reason := unknown(node)) is not None:
        return reason
    if editor.model.opset_imports.get("", 0) < GELU_OPSET:
        return f"Gelu needs opset {GELU_OPSET}"
    write, x, bias = Writer(editor, node), node.inputs[0], operand(node, 1)
    total = x if bias is None else write("Add", x, bias)
    write.finish(write("Gelu", total, approximate="tanh" if node.op_type == "FastGelu" else "none"))
    return None


def _quick_gelu(editor: Editor, node: ir.Node) -> str | None:
    """QuickGelu{alpha}(x) -> x sigmoid(alpha x)."""
    if (reason := unknown(node)) is not None:
        return reason
    write, x = Writer(editor, node), node.inputs[0]
    assert x is not None
    alpha = node.attributes.get_float("alpha", 1.702)
    scaled = x if alpha == 1 else write("Mul", x, write.like(alpha or 0.0, x))
    write.finish(write("Mul", x, write("Sigmoid", scaled)))
    return None


ELEMENTS: dict[str, tuple[Rule, ...]] = {
    "BiasGelu": (_gelu,),
    "FastGelu": (_gelu,),
    "Gelu": (_gelu,),
    "QuickGelu": (_quick_gelu,),
}
