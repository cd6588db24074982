"""What the code generator cannot do, learned from its failures: some nodes, or kernels of several nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt.lowering.target import Target


class Defects:
    """Of the nodes of one model. Those in `nodes`, with the reason, are ONNX Runtime's; `notes` are for the user."""

    def __init__(self, model: ir.Model, backend: Target) -> None:
        """Nothing is known yet."""
        self._model, self._backend = model, backend
        self.nodes: dict[ir.Node, str] = {}
        self.notes: list[str] = []

    def learn(self, error: Exception) -> None:
        """Find out what `error` is about, by building nodes alone: after it another try differs from the last one.

        Raises:
            KeyboardInterrupt: it did not fail: Ctrl-C came while TVM called Python, which gives an error without text.
            GraphoptError: nothing helps.
        """
        if not str(error):
            raise KeyboardInterrupt from error
        opsets, backend = self._model.opset_imports, self._backend
        suspects = (n for n in self._model.graph if n not in self.nodes and backend.supports(n, opsets) is None)
        found = {node: reason for node in suspects if (reason := backend.defect(node, opsets)) is not None}
        self.nodes |= found
        if found:
            return
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        text = f"code generation failed ({last[:200]})"
        if backend.separate:
            raise GraphoptError(f"{text}; report this model as a bug of graphopt") from error
        backend.separate = True
        self.notes.append(f"{text} on fused kernels, so nothing is fused; report this model as a bug of graphopt")
