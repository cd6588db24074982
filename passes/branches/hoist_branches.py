"""Move the nodes in branches of an If before it, so that they become kernels like all other nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.frontend.complete import complete
from graphopt.frontend.names import unique_names
from graphopt.graph.analysis import static_type
from graphopt.graph.constness import is_constant
from graphopt.graph.guards import select_of
from graphopt.graph.segments import read_by
from graphopt.graph.shapes.settle import LEARNED
from graphopt.graph.value_dependence import depends_on_values
from graphopt.passes.branches.branches import BRANCHES, Branch, is_selection, lift, trial
from graphopt.passes.branches.speculation import make_safe, unsafe
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal
from graphopt.verify.oracle import random_inputs, run_onnxruntime


@dataclass(frozen=True)
class HoistBranches(Pass):
    """Branches of an If whose condition is known at run time only move in front of it.

        y = If(c)<then: {a = Relu(x)} => a,     ->     a = Relu(x)   b = Neg(x)
                  else: {b = Neg(x)}  => b>            y = If(c)<then: Identity(a), else: Identity(b)>

    It pays because nodes of the main graph become kernels, and a target that can skip kernels computes the chosen side
    only. A branch moves if all its shapes are static and its results have the types and shapes of the other one's, or
    if the other one cannot be computed on the given shapes at all. The rewritten model computes both sides: a node that
    could fail on operands of the other case gets safe ones then, such as Gather(x, Where(c, i, 0)).
    """

    name: ClassVar[str] = "hoist-branches"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph until no branch moves."""
        refusals: dict[str, Refusal] = {}
        moved = _repeat(model, refusals)
        notes = (f"{moved} branch{'es' if moved > 1 else ''} of If moved in front of it",) if moved else ()
        names = {str(node.name) for node in model.graph}
        left = tuple(refusal for refusal in refusals.values() if refusal.node in names)
        return PassResult(model, moved > 0, left, notes=notes)


def _repeat(model: ir.Model, refusals: dict[str, Refusal]) -> int:
    """Move branches until no further one can move; how many moved."""
    tried: dict[ir.Node, object] = {}
    moved = 0
    while count := _sweep(model, refusals, tried):
        moved += count
        complete(model)
    return moved


def _sweep(model: ir.Model, refusals: dict[str, Refusal], tried: dict[ir.Node, object]) -> int:
    """Try every If of the main graph that was not `tried` with its current operand types; how many branches moved."""
    moved = 0
    for node in list(model.graph):
        if node.op_type != "If" or node.domain != "" or node.inputs[0] is None or is_selection(node):
            continue
        entering = [(static_type(value), not is_constant(value)) for value in read_by(node)]
        if tried.get(node) == entering:
            continue
        tried[node] = entering
        count, reason = _hoist(model, node)
        moved += count
        if reason:
            refusals[str(node.name)] = Refusal(str(node.name), reason)
        else:
            refusals.pop(str(node.name), None)
    if moved:
        unique_names(model)
    return moved


def _hoist(model: ir.Model, node: ir.Node) -> tuple[int, str]:
    """How many branches of `node` moved, and why one did not."""
    assert node.inputs[0] is not None
    condition = static_type(node.inputs[0])
    if condition is None or condition[0] != "bool" or math.prod(condition[1]) != 1:
        return 0, "its condition is no single bool"
    sides = [_tried(model, node, name) for name in BRANCHES]
    known = [side.types for side in sides]
    movable = [not side.obstacle and not side.impossible for side in sides]
    if not any(movable):
        return 0, "; ".join(f"{name}: {side.obstacle}" for name, side in zip(BRANCHES, sides, strict=True))
    for one, other in ((0, 1), (1, 0)):
        if movable[one] and not sides[other].impossible and known[one] != known[other]:
            return 0, "its branches give tensors of different or unknown types and shapes"
    types = known[movable.index(True)]
    assert types is not None
    moved, reason = 0, ""
    for name, side, fits in zip(BRANCHES, sides, movable, strict=True):
        if not fits:
            reason = f"{name} stays: {side.obstacle}"
        elif not side.passed_on:
            make_safe(side.model.graph, side.condition, name == "then_branch")
            lift(model.graph, node, name, side)
            moved += 1
    for value, (dtype, shape) in zip(node.outputs, types, strict=True):
        value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
        value.meta[LEARNED] = True  # inference would know less: one branch may be impossible
    return moved, reason


def _tried(model: ir.Model, node: ir.Node, name: str) -> Branch:
    """The branch as a separate model, with types and shapes inferred from the values it captures."""
    side = trial(model, node, name)
    try:
        complete(side.model)
        _repeat(side.model, {})
    except ModelError as error:
        side.impossible = not _runs(trial(model, node, name).model)
        side.obstacle = f"the given shapes do not fit it ({error})"
        return side
    side.obstacle = next(filter(None, map(_obstacle, side.model.graph)), "")
    outputs = side.model.graph.outputs
    types = [(v.dtype, v.shape.numpy()) for v in outputs if static_type(v) and v.shape is not None and v.dtype]
    if len(types) < len(outputs):
        side.obstacle = side.obstacle or "its results have no static shape"
        if any(map(_fits_nothing, side.model.graph)):
            side.impossible = not _runs(trial(model, node, name).model)
    else:
        side.types = types
    return side


def _fits_nothing(node: ir.Node) -> bool:
    """Whether operand shapes determine the result shapes of `node`, and yet neither inference nor a run yields them."""
    entering = [static_type(value) for value in read_by(node)]
    leaving = [static_type(value) for value in node.outputs if value.name]
    return None not in entering and None in leaving and not depends_on_values(node)


def _runs(model: ir.Model) -> bool:
    """Whether ONNX Runtime computes what inference finds impossible."""
    try:
        run_onnxruntime(model, random_inputs(model, 0))
    except Exception:  # its exceptions share no base class
        return False
    return True


def _obstacle(node: ir.Node) -> str:
    """Why `node` cannot be in the main graph, where it runs whatever the condition is; "" if it can."""
    if any(
        value.name and (value.uses() or value.is_graph_output()) and static_type(value) is None
        for value in node.outputs
    ):
        return f"{node.name} ({node.op_type}) has no static shape"
    if node.op_type == "If" and node.domain == "":
        select = select_of(node)
        return "" if select is not None and not select.guard else f"{node.name} (If) has a branch that stays"
    reason = unsafe(node)
    return f"{node.name} ({node.op_type}) {reason}" if reason else ""
