"""Let a Where take the place of an If that only selects among tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, dims
from graphopt.graph.guards import select_of
from graphopt.pipeline.pass_base import Pass, PassResult


@dataclass(frozen=True)
class SelectBranches(Pass):
    """An If that gives values which are computed anyway becomes a Where for each output.

        y = If(c)<then: Identity(a), else: Identity(b)>   ->   y = Where(c, a, b)

    It pays on a target that skips no kernels, such as a GPU, whose run is one graph: there both sides are computed, and
    an If would leave the device. `hoist-branches`, which runs before it, makes such Ifs.
    """

    name: ClassVar[str] = "select-branches"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph."""
        editor = Editor(model, self.name)
        for node in list(model.graph):
            found = select_of(node)
            if found is None or found.when_true is None or found.when_false is None:
                continue
            condition = _scalar(editor, node, found.condition)
            for old, one, other in zip(found.outputs, found.when_true, found.when_false, strict=True):
                new = editor.insert(
                    node,
                    "Where",
                    [condition, one, other],
                    shape=old.shape,
                    dtype=old.dtype,
                    name=f"{node.name}.{old.name}",
                    output=str(old.name),
                    origin=[node],
                )
                editor.replace(old, new)
            editor.erase(node)
        return PassResult(model, editor.modified)


def _scalar(editor: Editor, node: ir.Node, condition: ir.Value) -> ir.Value:
    """The condition without axes, which would be axes of the result."""
    if not dims(condition):
        return condition
    shape = editor.constant(np.array([], np.int64), f"{node.name}.shape")
    name = f"{condition.name}.scalar"
    return editor.insert(
        node, "Reshape", [condition, shape], shape=(), dtype=condition.dtype, name=name, output=name, origin=[node]
    )
