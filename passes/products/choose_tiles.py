"""Choose the tile of every matrix product, by measured cost."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import onnx_ir as ir

from graphopt.cost.model import CostModel
from graphopt.cost.node_workload import workload_of
from graphopt.cost.workload import TILE
from graphopt.graph.edit import is_op
from graphopt.pipeline.pass_base import Choice, Pass, PassResult

PRODUCTS = ("MatMul", "Gemm")


@dataclass(frozen=True)
class ChooseTiles(Pass):
    """Write the fastest tile into the metadata of matrix products, where their kernels read it.

        y = MatMul(a, w)  ->  y = MatMul(a, w)   with metadata graphopt.tile = "12x32"

    Equal products are measured once. Where costs are estimates, and where the kernel's own choice is the fastest, a
    node is left as it is. Convolutions get their tiles from `select-conv`, together with their algorithm.
    """

    name: ClassVar[str] = "choose-tiles"

    costs: CostModel = field(default_factory=CostModel, compare=False, repr=False)

    def on(self, costs: CostModel) -> ChooseTiles:
        """The same pass with the cost model `costs`."""
        return replace(self, costs=costs)

    def call(self, model: ir.Model) -> PassResult:
        """Mark the main graph; every product that was measured gets a Choice."""
        workloads = {
            node: workload
            for node in model.graph
            if is_op(node, *PRODUCTS)
            and TILE not in node.metadata_props
            and (workload := workload_of(node)) is not None
        }
        timings = self.costs.timings([[workload] for workload in workloads.values()])
        choices, modified = [], False
        for node, (timing,) in zip(workloads, timings, strict=True):
            if timing is None:
                continue
            choices.append(Choice(str(node.name), "gemm", timing.seconds, (), timing.tile, True))
            if timing.tile:
                node.metadata_props[TILE] = timing.tile
                modified = True
        return PassResult(model, modified, (), tuple(choices))
