"""Base of the targets whose code TVM generates: whether nodes become kernels, whether code can be generated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from graphopt.errors import CodegenError
from graphopt.lowering.target import Lowered
from graphopt.targets.common import native
from graphopt.targets.common.converters.table import Table
from graphopt.targets.common.definitions import Definitions, signature


class TvmTarget(ABC):
    """`separate` makes every operator a kernel of its own; equal nodes share their `definitions`."""

    def __init__(self, machine: Any, table: Table) -> None:
        """Set up the target; no node is tried yet.

        Args:
            machine: what converters choose tiles for.
            table: the converters.
        """
        self.separate = False
        self.definitions = Definitions()
        self._machine, self._table = machine, table
        self._answers: dict[str, str | None] = {}

    def supports(self, node: ir.Node, opsets: Mapping[str, int]) -> str | None:
        """Try the node alone, once per kind of node: operator, attributes, types, and small constants."""
        key = signature(node)
        if key not in self._answers:
            reason = self.lacking(node) or native.obstacle(node, opsets, self._machine, self._table, self.definitions)
            self._answers[key] = native.template(reason, node)
        return native.spelled(self._answers[key], node)

    def lacking(self, node: ir.Node) -> str | None:
        """Why the hardware cannot hold the inputs or outputs of `node`, in a sentence; None if it can."""
        del node
        return None

    def defect(self, node: ir.Node, opsets: Mapping[str, int]) -> str | None:
        """Lower the node alone and generate its code; return why that fails, or None."""
        try:
            lowered = self.lower([node], *native.ends(node), opsets, "probe_")
            if lowered.functions:
                self.library(lowered.functions)
        except CodegenError as error:
            return f"TVM cannot generate code for {node.op_type}: {native.readable(error)}"
        return None

    @abstractmethod
    def lower(
        self,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        opsets: Mapping[str, int],
        prefix: str,
    ) -> Lowered:
        """Kernel calls for nodes in topological order that are all supported."""

    @abstractmethod
    def library(self, functions: Mapping[str, Any]) -> bytes:
        """All functions in one file, each under its symbol."""
