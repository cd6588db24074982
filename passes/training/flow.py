"""What lies between the parameters and the loss, and what there has no gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.errors import DifferentiationError
from graphopt.graph import state
from graphopt.graph.constness import is_input
from graphopt.graph.edit import dims
from graphopt.passes.training.gradients.table import RULES, ZERO


@dataclass(frozen=True)
class Flow:
    """`nodes` on a way from a parameter to the loss, in order; values that need a gradient; values that inputs feed."""

    nodes: tuple[ir.Node, ...]
    needed: frozenset[ir.Value]
    fed: frozenset[ir.Value]


def find_loss(graph: ir.Graph) -> ir.Value:
    """The output that is marked as the loss.

    Raises:
        DifferentiationError: none is, or it is no scalar of a floating point type.
    """
    name = graph.metadata_props.get(state.LOSS)
    loss = next((value for value in graph.outputs if value.name == name), None)
    if name is None or loss is None:
        raise DifferentiationError("the model has no loss to differentiate; put the pass loss before differentiate")
    shape = dims(loss)
    if shape is None or math.prod(shape) != 1 or loss.dtype is None or not loss.dtype.is_floating_point():
        kind = "an unknown type" if loss.dtype is None else loss.dtype.name
        raise DifferentiationError(
            f"the loss {name} is {kind} of shape {loss.shape}, which is no scalar; choose one with the pass loss"
        )
    return loss


def trace(graph: ir.Graph, loss: ir.Value, parameters: Sequence[ir.Value]) -> Flow:
    """The flow from `parameters` to `loss`.

    Raises:
        DifferentiationError: nodes of it have no gradient; names all of them with their reasons.
    """
    moved: set[ir.Value] = {value for value in parameters if _is_float(value)}
    fed: set[ir.Value] = {value for value in graph.inputs if is_input(value)}
    for node in graph:
        read = list(_read(node))
        if any(value in fed for value in read):
            fed.update(node.outputs)
        if any(value in moved for value in _passes(node)):
            moved.update(value for value in node.outputs if _is_float(value))
    nodes: list[ir.Node] = []
    wanted = {loss}
    for node in reversed(graph):
        if any(value in wanted and value in moved for value in node.outputs):
            read = [value for value in _passes(node) if value in moved]
            if read:
                nodes.append(node)
                wanted.update(read)
    nodes.reverse()
    refusals = [f"{node.name or node.op_type} ({reason})" for node in nodes if (reason := _refusal(node, moved))]
    if refusals:
        raise DifferentiationError(
            f"the loss {loss.name} cannot be differentiated through {'; '.join(refusals)}; "
            "freeze what comes before, or write these nodes otherwise"
        )
    return Flow(tuple(nodes), frozenset(moved & wanted), frozenset(fed))


def _refusal(node: ir.Node, moved: set[ir.Value]) -> str | None:
    """Why `node` has no gradient."""
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    entry = None if node.domain else RULES.get(node.op_type)
    if entry is None:
        return f"{name} has no rule; graphopt passes differentiate lists those there are"
    if any(dims(value) is None for value in (*node.inputs, *node.outputs) if value is not None and not _unused(value)):
        return f"{name} with shapes that are not static"
    known = entry.inputs
    wanted = [place for place, value in enumerate(node.inputs) if value in moved]
    if known is not None and (unknown := [place for place in wanted if place not in known]):
        return f"{name} has no gradient by its input {unknown[0]}"
    reason = entry.check(node) if entry.check is not None else None
    return None if reason is None else f"{name}: {reason}"


def _unused(value: ir.Value) -> bool:
    return not value.uses() and not value.is_graph_output()


def _passes(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads and changes with."""
    if node.domain == "" and node.op_type in ZERO:
        return
    entry = None if node.domain else RULES.get(node.op_type)
    types = () if entry is None else entry.types
    apart = {node.inputs[place] for place in types if place < len(node.inputs)} - {
        value for place, value in enumerate(node.inputs) if place not in types
    }
    yield from (value for value in _read(node) if value not in apart)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _read(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, also in its subgraphs."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if isinstance(attribute, ir.Attr) and attribute.type is ir.AttributeType.GRAPH:
            inner = attribute.as_graph()
            yield from inner.outputs
            for each in inner.all_nodes():
                yield from (value for value in each.inputs if value is not None)
