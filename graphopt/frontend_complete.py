"""Whole models become static and folded: shapes are inferred, constants folded and branches chosen until none is left.

Loading does it, and so does a rewrite after which more is known than before.
"""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.frontend_branches import choose_branches
from graphopt.frontend_fold import fold_constants
from graphopt.frontend_learn import Learner
from graphopt.frontend_names import unique_names
from graphopt.frontend_shapes import infer_shapes

_MAX_ROUNDS = 16


def complete(model: ir.Model) -> None:
    """Infer, fold and choose, in place.

    Raises:
        ModelError: the operands of a node, which it names, do not fit each other.
    """
    infer_shapes(model)
    learner = Learner(model)
    for _ in range(_MAX_ROUNDS):
        changed = fold_constants(model, learner)
        if not (choose_branches(model) or changed):
            break
        common.RemoveUnusedNodesPass()(model)
        infer_shapes(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    common.RemoveUnusedOpsetsPass()(model)
    unique_names(model)
