"""Make the update of a step depend on a condition: state values that are replaced only where it holds."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import onnx_ir as ir

from graphopt.graph.edit import RULE_KEY
from graphopt.graph.segments import read_by
from graphopt.graph.state import NEXT, PHASE, Phase, states
from graphopt.passes.training.emit import Emitter


class Select(enum.StrEnum):
    """How a state value is kept where the condition does not hold."""

    IF = "if"  # the update is in a branch, and not computed
    WHERE = "where"  # the update is computed, and not taken


def updated(graph: ir.Graph) -> dict[ir.Value, ir.Value]:
    """The state values that nodes of the phase `update` replace, with what replaces them."""
    outputs = {output.name: output for output in graph.outputs}
    pairs = {value: outputs[value.metadata_props[NEXT]] for value in states(graph) if NEXT in value.metadata_props}
    return {state: new for state, new in pairs.items() if is_update(new.producer())}


def is_update(node: ir.Node | None) -> bool:
    """Whether a node is of the phase `update`."""
    return node is not None and node.metadata_props.get(PHASE) == Phase.UPDATE


def gate(emit: Emitter, condition: ir.Value, pairs: Mapping[ir.Value, ir.Value], select: Select) -> None:
    """Replace each state of `pairs` (state, new value) only where `condition`, a bool scalar, holds.

        w.next = Sub(w, d)   ->   w.next = If(condition)<then: Sub(w, d), else: Identity(w)>

    `emit` emits at the end of the graph. Of the nodes of the phase `update`, those that only the new values of `pairs`
    need move into the branch.
    """
    names = {new: str(new.name) for new in pairs.values()}
    for state, new in pairs.items():
        new.name = emit.editor.fresh(f"{state.name}.updated")
    graph = emit.editor.graph
    places = {output: place for place, output in enumerate(graph.outputs) if output in names}
    if select is Select.WHERE:
        results = [emit("Where", condition, new, state) for state, new in pairs.items()]
    else:
        results = _branches(emit, condition, pairs)
    for new, result in zip(names, results, strict=True):
        result.name = names[new]
        graph.outputs[places[new]] = result


def _branches(emit: Emitter, condition: ir.Value, pairs: Mapping[ir.Value, ir.Value]) -> list[ir.Value]:
    """The outputs of a new If at the end of the graph."""
    editor = emit.editor
    moved = _only_for(editor.graph, condition, set(pairs.values()))
    for place, output in enumerate(editor.graph.outputs):
        if output in pairs.values():
            editor.graph.outputs[place] = condition  # until the If is there: a value is the output of one graph
    editor.graph.remove(moved)
    kept = [ir.Value(name=editor.fresh(f"{state.name}.kept"), shape=state.shape, type=state.type) for state in pairs]
    same = [
        ir.node("Identity", [state], outputs=[value], name=editor.node_name(str(value.name)))
        for state, value in zip(pairs, kept, strict=True)
    ]
    results = [ir.Value(name=f"{value.name}.next", shape=value.shape, type=value.type) for value in pairs]
    node = ir.node(
        "If",
        [condition],
        {
            "then_branch": ir.Graph([], list(pairs.values()), nodes=moved, name=editor.fresh("then")),
            "else_branch": ir.Graph([], kept, nodes=same, name=editor.fresh("else")),
        },
        outputs=results,
        name=editor.node_name(f"{emit.prefix}.if"),
        metadata_props={RULE_KEY: editor.rule, PHASE: Phase.UPDATE.value},
    )
    editor.graph.append(node)
    editor.modified = True
    return results


def _only_for(graph: ir.Graph, condition: ir.Value, wanted: set[ir.Value]) -> list[ir.Node]:
    """The nodes of the phase `update` that nothing needs but the values `wanted`, in graph order."""
    needed = {condition, *(output for output in graph.outputs if output not in wanted)}
    moved = []
    for node in reversed(list(graph)):
        if is_update(node) and needed.isdisjoint(node.outputs):
            moved.append(node)
        else:
            needed.update(read_by(node))
    return moved[::-1]
