"""Drop the blocks of sparse weights that hold least energy: the one pass on sparsity that changes results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost.model import CostModel
from graphopt.errors import GraphoptError
from graphopt.graph.edit import Editor, array_of, is_op
from graphopt.passes.sparse.linear import by_output
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option
from graphopt.solve import clustering, lossy_clustering

KEPT = "graphopt.kept_energy"
"""Node metadata: the share of the energy that was kept, so that none is dropped twice."""

WORTH = 0.95
"""Weights are dropped where that leaves at most this share of the vectors that clustering without loss leaves."""


@dataclass(frozen=True)
class DropBlocks(Pass):
    """Zero the weights outside of the vectors of outputs that hold the share `energy` of a layer's squared weights.

        y = MatMul(x, w)   ->   y = MatMul(x, w')     w' is w with zeros outside of the fewest vectors

    Weights that a pruning tool left one by one spoil the blocks that their neighbours make. This pass chooses order and
    vectors together (`graphopt.solve.lossy_clustering`); `cluster-sparse` and `select-conv` find them afterwards.
    Results change: compare them on data of your own (`--eval`).
    """

    name: ClassVar[str] = "drop-blocks"

    energy: float = option(1.0, "the share of a layer's squared weights that stays; 1 drops nothing")
    max_density: float = option(0.6, "layers of which a larger share is not zero stay as they are")
    min_weights: int = option(4096, "smaller layers stay as they are")
    costs: CostModel = field(default_factory=CostModel, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            GraphoptError: one is out of range.
        """
        if not 0 < self.energy <= 1:
            raise GraphoptError(f"the energy to keep must be above 0 and at most 1, not {self.energy:g}.")
        if not 0 <= self.max_density <= 1:
            raise GraphoptError(f"max-density must be a share from 0 to 1, not {self.max_density:g}")
        if self.min_weights < 0:
            raise GraphoptError(f"min-weights must be a number from 0 on, not {self.min_weights}")

    def on(self, costs: CostModel) -> DropBlocks:
        """The same pass with the cost model `costs`, which knows the width of vectors."""
        return replace(self, costs=costs)

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; a sparse layer that keeps its weights gets a Refusal."""
        editor = Editor(model, self.name)
        width = self.costs.machine.group
        refusals, notes = [], []
        for node, weight in _layers(model) if self.energy < 1 else ():
            matrix = by_output(node, weight)
            assert matrix is not None
            density = np.count_nonzero(matrix) / matrix.size
            if matrix.size < self.min_weights or density > self.max_density or density == 0:
                continue
            if not np.isfinite(matrix).all():
                refusals.append(Refusal(str(node.name), "some of its weights are infinite or NaN"))
                continue
            problem = lossy_clustering.Problem(_energies(matrix), width, self.energy)
            solution = lossy_clustering.solve(problem)
            vectors = solution.kept.size
            lossless = clustering.cluster(clustering.Problem(matrix != 0, width)).columns
            if solution.vectors > WORTH * lossless:
                refusals.append(
                    Refusal(
                        str(node.name),
                        f"{self.energy:.4g} of its energy lies in {solution.vectors / vectors:.1%} of the vectors of "
                        f"{width} outputs, of which {lossless / vectors:.1%} hold a weight",
                    )
                )
                continue
            kept = np.where(lossy_clustering.mask(problem, solution), matrix, matrix.dtype.type(0))
            _replace(editor, node, _as_given(node, kept, weight), solution.energy)
            notes.append(
                f"{node.name}: {solution.energy:.4%} of the energy stays, in {solution.vectors / vectors:.1%} of the "
                f"vectors of {width} outputs, of which {lossless / vectors:.1%} held a weight; no order needs less "
                f"than {solution.bound / vectors:.1%}"
            )
        return PassResult(model, editor.modified, tuple(refusals), notes=tuple(notes))


def _layers(model: ir.Model) -> Iterator[tuple[ir.Node, NDArray[Any]]]:
    """The products and convolutions with constant weights, one for weights that several share."""
    seen: set[int] = set()
    for node in model.graph:
        weight = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
        if (
            weight is None
            or KEPT in node.metadata_props
            or id(node.inputs[1]) in seen
            or by_output(node, weight) is None
        ):
            continue
        seen.add(id(node.inputs[1]))
        yield node, weight


def _energies(matrix: NDArray[Any]) -> NDArray[np.floating]:
    """The squares of weights, over that of the largest, so that none overflows."""
    wide = matrix.astype(np.float64 if matrix.dtype.itemsize > 4 else np.float32)
    squares: NDArray[np.floating] = np.square(wide / np.abs(wide).max())
    return squares


def _as_given(node: ir.Node, matrix: NDArray[Any], weight: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `by_output`."""
    if is_op(node, "Conv"):
        return matrix.reshape(weight.shape)
    return matrix if is_op(node, "Gemm") and node.attributes.get_int("transB", 0) == 1 else matrix.T


def _replace(editor: Editor, node: ir.Node, weight: NDArray[Any], energy: float) -> None:
    """Let everything that reads the weights read others."""
    old = node.inputs[1]
    assert old is not None
    for usage in old.uses():
        usage.node.metadata_props[KEPT] = f"{energy:.6f}"
    old.replace_all_uses_with(editor.constant(np.ascontiguousarray(weight), f"{old.name}.kept"))
    editor.graph.initializers.pop(str(old.name), None)
    editor.modified = True
