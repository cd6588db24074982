"""Nodes and fused kernels for which code generation fails, learned from its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.errors import CodegenError, GraphoptError

if TYPE_CHECKING:
    from graphopt.lowering.target import Target


class Defects:
    """Code generation defects of one model.

    ONNX Runtime runs the nodes in `nodes`, each with its reason; `notes` are for the user.
    """

    def __init__(self, model: ir.Model, target: Target) -> None:
        """Start without known defects."""
        self._model, self._backend = model, target
        self.nodes: dict[ir.Node, str] = {}
        self.notes: list[str] = []

    def learn(self, error: CodegenError) -> None:
        """Find the nodes that cause `error` by building each alone; if there are none, turn off fusion.

        After it the next try differs from the last one.

        Raises:
            GraphoptError: code generation fails without fusion too.
        """
        opsets, target = self._model.opset_imports, self._backend
        suspects = (n for n in self._model.graph if n not in self.nodes and target.supports(n, opsets) is None)
        defects = {node: reason for node in suspects if (reason := target.defect(node, opsets)) is not None}
        self.nodes |= defects
        if defects:
            return
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        text = f"code generation failed ({last[:200]})"
        if target.separate:
            raise GraphoptError(f"{text}; report this model as a bug of graphopt") from error
        target.separate = True
        self.notes.append(f"{text} on fused kernels, so nothing is fused; report this model as a bug of graphopt")
