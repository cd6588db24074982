"""Fold constants into weights and recognise operators that exporters decompose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.graph.edit import Editor
from graphopt.passes.fuse.affine import AFFINE
from graphopt.passes.fuse.attention import ATTENTION, Masks
from graphopt.passes.fuse.patterns import PATTERNS
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option


@dataclass(frozen=True)
class Fuse(Pass):
    """Merge operators where the result is one operator that a kernel can do.

        Add(Mul(Conv(x, w, b), s), t)                ->  Conv(x, w s, b s + t)          also ConvTranspose and Gemm
        Conv(Pad(x))                                 ->  Conv{pads}(x)
        (x - mean) / sqrt(variance + epsilon) * g + h  ->  LayerNormalization(x, g, h)
        x / 2 (1 + erf(x / sqrt 2)), and by tanh     ->  Gelu(x)
        softmax(q k^T scale + mask) v                ->  graphopt.Attention(q, k, v) or AttentionMasked

    Activations and residual sums stay separate nodes: lowering fuses them into the kernel of their producer. A chain is
    folded only when its intermediate values have no other consumers, which would need them computed a second time.
    """

    name: ClassVar[str] = "fuse"

    attention: bool = option(True, "recognise attention")

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph until nothing changes."""
        editor = Editor(model, self.name)
        refusals: dict[str, Refusal] = {}
        masks: Masks = {}
        changed = True
        while changed:
            before, editor.modified = editor.modified, False
            for node in tuple(editor.graph):
                if node.graph is None or node.domain != "":
                    continue
                reason = self._apply(editor, node, masks)
                if reason:
                    refusals[str(node.name)] = Refusal(str(node.name), reason)
            changed = editor.modified
            editor.modified = before or changed
        return PassResult(model, editor.modified, tuple(refusals.values()))

    def _apply(self, editor: Editor, node: ir.Node, masks: Masks) -> str | None:
        """Try every rule of the operator until one rewrites the node or gives a reason."""
        for rule in (*AFFINE.get(node.op_type, ()), *PATTERNS.get(node.op_type, ())):
            reason = rule(editor, node)
            if reason or node.graph is None:
                return reason
        if self.attention and node.op_type == "Softmax":
            return ATTENTION(editor, node, masks)
        return None
