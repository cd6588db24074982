"""Rewrite operators to canonical forms, so that later passes match one form of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.graph.constness import tensor_of
from graphopt.graph.edit import Editor, Rule
from graphopt.passes.normalize.arithmetic import ARITHMETIC
from graphopt.passes.normalize.microsoft.attention import ATTENTION
from graphopt.passes.normalize.microsoft.elements import ELEMENTS
from graphopt.passes.normalize.microsoft.products import PRODUCTS as FUSED
from graphopt.passes.normalize.microsoft.quantized import QUANTIZED
from graphopt.passes.normalize.microsoft.rows import ROWS
from graphopt.passes.normalize.microsoft.shared import MICROSOFT
from graphopt.passes.normalize.products import PRODUCTS
from graphopt.passes.normalize.shapes import SHAPES
from graphopt.passes.normalize.windows import WINDOWS
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal

RULES: dict[str, tuple[Rule, ...]] = {
    name: tuple(rule for rules in (SHAPES, ARITHMETIC, PRODUCTS, WINDOWS) for rule in rules.get(name, ()))
    for name in {*SHAPES, *ARITHMETIC, *PRODUCTS, *WINDOWS}
}

FOREIGN: dict[str, tuple[Rule, ...]] = {**ATTENTION, **ELEMENTS, **FUSED, **QUANTIZED, **ROWS}
"""Rules by operator of com.microsoft."""

SMALL = 4096
"""Bytes: constants up to this size are compared and shared; hashing gigabytes of weights would find nothing."""


@dataclass(frozen=True)
class Normalize(Pass):
    """Drop what does nothing and give each operation one form.

        Identity(x), Dropout(x), Cast to the same type, Reshape, Transpose, Pad, Expand without effect   ->  x
        Reshape(Flatten(x))                      ->  Reshape(x)              Transpose(Transpose(x))  ->  Transpose(x)
        Sum(a, b, c)                             ->  Add(Add(a, b), c)
        Sub(x, const), Mul(const, x)             ->  Add(x, -const), Mul(x, const)
        Div(x, a power of two)                   ->  Mul(x, 1/const), which is exact
        BatchNormalization(x)                    ->  Add(Mul(x, scale), shift)        constants [1, C, 1, 1]
        Gemm {alpha, beta}                       ->  Gemm with both folded into its constants
        Reshape(Gemm(x, w, b)) to more axes      ->  Add(MatMul(Reshape(x), w), b)
        AveragePool over the plane, ReduceMean over H and W  ->  GlobalAveragePool
        auto_pad                                 ->  explicit pads
        Gelu, SkipLayerNormalization, FusedMatMul, Attention, ... of com.microsoft  ->  the standard operators they are
        equal constants                          ->  one constant

    It pays because every later pattern and kernel then has one case. Only static shapes and constant parameters are
    rewritten.
    """

    name: ClassVar[str] = "normalize"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph until nothing changes."""
        editor = Editor(model, self.name)
        refusals: dict[str, Refusal] = {}
        _share_constants(editor)
        while _sweep(editor, refusals):
            pass
        _share_constants(editor)
        return PassResult(model, editor.modified, tuple(refusals.values()))


def _sweep(editor: Editor, refusals: dict[str, Refusal]) -> bool:
    """Apply the rules to every node once; whether anything changed."""
    before = editor.modified
    editor.modified = False
    for node in tuple(editor.graph):
        for rule in _rules(node):
            if node.graph is None:
                break
            reason = rule(editor, node)
            if reason:
                refusals[str(node.name)] = Refusal(str(node.name), reason)
    changed = editor.modified
    editor.modified = before or changed
    return changed


def _rules(node: ir.Node) -> tuple[Rule, ...]:
    if node.domain == MICROSOFT or node.op_type == "SimplifiedLayerNormalization":  # ONNX Runtime has it in both
        return FOREIGN.get(node.op_type, ())
    return RULES.get(node.op_type, ()) if node.domain == "" else ()


def _share_constants(editor: Editor) -> None:
    """Merge equal small initializers."""
    first: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
    for value in tuple(editor.graph.initializers.values()):
        tensor = tensor_of(value)
        if tensor is None or tensor.nbytes > SMALL or tensor.dtype == ir.DataType.STRING:
            continue
        key = tensor.dtype.name, tuple(tensor.shape.numpy()), tensor.tobytes()
        kept = first.setdefault(key, value)
        if kept is not value and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, kept)
            editor.graph.initializers.pop(str(value.name))
            editor.modified = True
