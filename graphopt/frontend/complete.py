"""Make a model static and folded: infer shapes, fold constants and choose branches until none is left.

Loading does it, and so does a rewrite that makes more shapes or values known.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.frontend.branches import choose_branches
from graphopt.frontend.fold import fold_constants
from graphopt.frontend.learn import Learner
from graphopt.frontend.names import unique_names
from graphopt.frontend.shapes import infer_shapes

_MAX_ROUNDS = 16


def complete(model: ir.Model) -> None:
    """Infer shapes, fold constants and choose branches, in place.

    Raises:
        ModelError: the operands of a node, which it names, do not fit each other.
    """
    infer_shapes(model)
    learner = Learner(model)
    holders = [node for node in model.graph.all_nodes() if any(True for _ in _inner_nodes(node))]
    for _ in range(_MAX_ROUNDS):
        changed = fold_constants(model, learner)
        if not (choose_branches(model) or changed):
            break
        _remove_unused(model, holders)
        infer_shapes(model)
    _remove_unused(model, holders)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    unique_names(model)


def _remove_unused(model: ir.Model, holders: Sequence[ir.Node]) -> None:
    """Remove nodes without consumers. Subgraphs of those of `holders` that were removed no longer consume values."""
    modified = True
    while modified:
        for inner in [inner for node in holders if node.graph is None for inner in _inner_nodes(node)]:
            for index in range(len(inner.inputs)):
                inner.replace_input_with(index, None)
        modified = common.RemoveUnusedNodesPass()(model).modified


def _inner_nodes(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes in the subgraphs of `node`, and in theirs."""
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().all_nodes()
