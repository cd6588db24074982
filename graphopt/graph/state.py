"""The state of a training model: values that live from step to step, and the results that replace them.

A training model is plain ONNX. Each state value is an initializer, which holds the number that training begins with,
and carries metadata that says what it is and which graph output is its value in the next step:

    w: float[10, 5]   graphopt.state: parameter   graphopt.next: w.next   graphopt.gradient: w.gradient

ONNX Runtime is given the state as inputs (`exposed`); a Program keeps it in memory of its own and updates it in place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.graph.constness import STATE, is_state
from graphopt.program.program import Role as Role

NEXT = "graphopt.next"
"""Metadata key of a state value: the name of the graph output that is its value in the next step."""
GRADIENT = "graphopt.gradient"
"""Metadata key of a parameter: the name of the graph output that is the derivative of the loss by it."""
LOSS = "graphopt.loss"
"""Metadata key of a graph: the name of the output that is the loss, a scalar."""
LABELS = "graphopt.labels"
"""Metadata key of a graph: the name of the input that the loss compares with."""
CORRECT = "graphopt.correct"
"""Metadata key of a graph: the name of the output that counts right predictions, an int64 scalar."""
PHASE = "graphopt.phase"
"""Metadata key of a node: its `Phase`; absent for a node of the forward pass."""


class Phase(StrEnum):
    """The part of a training step that a node belongs to."""

    INPUT_GRADIENT = "input-gradient"  # the critical path of the backward pass
    WEIGHT_GRADIENT = "weight-gradient"  # may be put off
    UPDATE = "update"


def mark(value: ir.Value, role: Role) -> None:
    """Make the initializer `value` a state value."""
    value.metadata_props[STATE] = role.value


def role(value: ir.Value) -> Role | None:
    """What `value` is to training; None for a value that is no state."""
    return Role(value.metadata_props[STATE]) if is_state(value) else None


def states(graph: ir.Graph) -> Iterator[ir.Value]:
    """The state values of a graph, in the order of its initializers."""
    return (value for value in graph.initializers.values() if is_state(value))


def next_value(value: ir.Value, graph: ir.Graph) -> ir.Value | None:
    """The graph output that replaces the state `value` after a step; None if a step leaves it as it is.

    Raises:
        ModelError: the metadata names no output of the graph, or one of another type or shape.
    """
    name = value.metadata_props.get(NEXT)
    if name is None:
        return None
    found = next((output for output in graph.outputs if output.name == name), None)
    if found is None:
        raise ModelError(f"state {value.name} becomes {name}, which is no output of the graph; list it as one")
    if found.dtype != value.dtype or found.shape != value.shape:
        raise ModelError(
            f"state {value.name} is {value.dtype} {value.shape} and becomes {name} of {found.dtype} {found.shape}; "
            "both must have one type and shape"
        )
    return found


def successors(graph: ir.Graph) -> Iterator[tuple[str, str]]:
    """Names of the state values that a step changes, and of the graph outputs that replace them."""
    return ((str(value.name), value.metadata_props[NEXT]) for value in states(graph) if NEXT in value.metadata_props)


def phase(node: ir.Node) -> Phase | None:
    """The part of the step that `node` belongs to; None for the forward pass."""
    text = node.metadata_props.get(PHASE)
    return None if text is None else Phase(text)


def gradients(nodes: Iterable[ir.Node]) -> Iterator[ir.Value]:
    """What the update reads of the other phases.

    A kernel that computes one of these must not compute the update too: only an elementwise kernel can write the new
    state over the old one.
    """
    for node in nodes:
        if phase(node) is Phase.UPDATE:
            for value in node.inputs:
                producer = None if value is None else value.producer()
                if value is not None and producer is not None and phase(producer) is not Phase.UPDATE:
                    yield value


def exposed(model: ir.Model) -> ir.Model:
    """A copy of `model` whose state values are inputs too, with the initializers as their default values."""
    copy = model.clone()
    given = set(copy.graph.inputs)
    copy.graph.inputs.extend(value for value in states(copy.graph) if value not in given)
    return copy
