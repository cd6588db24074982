"""Convert nodes to half precision: inputs through shared casts and converted constants, outputs in their new type."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost.workload import PRECISION
from graphopt.graph.edit import Editor, array_of
from graphopt.passes.precision.nodes import is_mask, lowest_mask, only_masks, rounded
from graphopt.passes.precision.view import View


class Rewrite:
    """One run of the pass. `_versions` holds the casts and converted constants so far, by tensor and type."""

    def __init__(self, editor: Editor, view: View, halved: Collection[ir.Node]) -> None:
        """Prepare to convert the nodes `halved` of the graph of `view`."""
        self.editor = editor
        self.view = view
        self.half = view.half
        self.halved = halved
        self._versions: dict[tuple[ir.Value, ir.DataType | None], ir.Value] = {}
        self._masks: dict[ir.Value, ir.Value] = {}
        self._was_float: set[ir.Value] = set()

    def run(self) -> None:
        """Convert the nodes in graph order, so that a cast precedes all its consumers."""
        casts = set(self.view.casts)
        for node in tuple(self.editor.graph):
            if node in casts:
                self._keep_cast(node)
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype in (ir.DataType.FLOAT, self.half):
                    self._connect(node, index, value)
            if node in self.halved:
                self._halve_outputs(node)
        for cast in reversed(self.view.casts):
            result = cast.outputs[0]
            if not result.uses() and not result.is_graph_output():
                self.editor.erase(cast)

    def _keep_cast(self, cast: ir.Node) -> None:
        """Reuse a Cast of the model for later nodes, and let it read the tensor before all casts directly."""
        result = cast.outputs[0]
        root = self.view.root(result)
        if root.dtype != result.dtype:
            self._versions.setdefault((root, result.dtype), result)
            if cast.inputs[0] is not root:
                cast.replace_input_with(0, root)
                self.editor.modified = True

    def _connect(self, node: ir.Node, index: int, value: ir.Value) -> None:
        """Replace an input of `node` by the version of its tensor in the type that the node wants."""
        declared = ir.DataType.FLOAT if value in self._was_float else value.dtype
        wanted = self.half if node in self.halved else declared
        root = self.view.root(value)
        version = self._version(root, wanted, node)
        if is_mask(node, index) and node in self.halved and root.dtype != self.half and not root.is_initializer():
            version = self._raised(root, version, node)
        if version is not value:
            node.replace_input_with(index, version)
            self.editor.modified = True
            if value.is_initializer() and not value.uses() and not value.is_graph_output():
                self.editor.graph.initializers.pop(str(value.name))

    def _version(self, root: ir.Value, wanted: ir.DataType | None, before: ir.Node) -> ir.Value:
        if root.dtype == wanted:
            return root
        known = self._versions.get((root, wanted))
        if known is None:
            array = array_of(root)
            if array is not None and wanted == self.half:
                known = self._constant(root, rounded(array, self.half, saturate=only_masks(root)))
            else:
                known = self._cast(root, wanted, before)
            self._versions[root, wanted] = known
        return known

    def _constant(self, root: ir.Value, array: NDArray[Any]) -> ir.Value:
        return self.editor.constant(array, f"{root.name}.{self.half.name.lower()}")

    def _cast(self, root: ir.Value, wanted: ir.DataType | None, before: ir.Node) -> ir.Value:
        assert wanted is not None
        suffix = wanted.name.lower() if wanted == self.half else "float32"
        return self.editor.insert(
            before,
            "Cast",
            [root],
            {"to": int(wanted)},
            shape=root.shape,
            dtype=wanted,
            name=f"{root.name}.to_{suffix}",
            output=f"{root.name}.{suffix}",
        )

    def _raised(self, root: ir.Value, mask: ir.Value, before: ir.Node) -> ir.Value:
        """`mask`, cast from float32, with -infinity raised: the softmax of a row of -infinity alone would be NaN."""
        if root not in self._masks:
            lowest = self.editor.constant(np.array(lowest_mask(self.half), self.half.numpy()), f"{root.name}.lowest")
            self._masks[root] = self.editor.insert(
                before,
                "Max",
                [mask, lowest],
                shape=root.shape,
                dtype=self.half,
                name=f"{root.name}.raise",
                output=f"{root.name}.raised",
            )
        return self._masks[root]

    def _halve_outputs(self, node: ir.Node) -> None:
        node.metadata_props.pop(PRECISION, None)
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            value.dtype = self.half
            self._was_float.add(value)
            self.editor.modified = True
            if value.is_graph_output():
                self._widen_output(node, value)

    def _widen_output(self, node: ir.Node, value: ir.Value) -> None:
        """Keep name and type of a graph output: it becomes a Cast of `value`, right after the node."""
        result = self._cast(value, ir.DataType.FLOAT, node)
        cast = result.producer()
        assert cast is not None
        self.editor.graph.remove(cast)
        self.editor.graph.insert_after(node, cast)
        for index, output in enumerate(self.editor.graph.outputs):
            if output is value:
                self.editor.graph.outputs[index] = result
        name = value.name
        value.name = self.editor.fresh(f"{name}.{self.half.name.lower()}")
        result.name = name
        self._versions[value, ir.DataType.FLOAT] = result
