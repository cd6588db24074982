"""Convert every node of every graph from its opset to the model's new one, one change of its operator at a time."""

from __future__ import annotations

from functools import cache

import onnx
import onnx_ir as ir

from graphopt.frontend.opsets.site import DONE, NoRule, Site
from graphopt.frontend.opsets.table import ALWAYS, RULES
from graphopt.frontend.opsets.unchanged import UNCHANGED


def convert(model: ir.Model, target: int) -> None:
    """Convert the standard operators of the main graph, and of all graphs inside it, to opset `target`, in place.

    A node's own `version` takes precedence over the model's. Functions stay as they are: inline them before.

    Raises NoRule, whose text names the node, with the model half converted.
    """
    version = model.opset_imports.get("", target)
    for graph in list(model.graphs()):
        for node in list(graph):
            if node.domain == "":
                _convert(node, node.version or version, target)
    for node in model.graph.all_nodes():
        node.version = None
    model.opset_imports[""] = target


def is_current(model: ir.Model, target: int) -> bool:
    """Whether all nodes of the main graph, and of all graphs inside it, mean what they mean in opset `target`."""
    version = model.opset_imports.get("", target)
    nodes = (node for node in model.graph.all_nodes() if node.domain == "")
    return version == target and not any(
        node.version not in (None, target) or (node.op_type in ALWAYS and _next(node.op_type, version, target))
        for node in nodes
    )


def _convert(node: ir.Node, version: int, target: int) -> None:
    original = version
    while (step := _next(node.op_type, version, target)) is not None:
        rule = RULES.get(node.op_type, {}).get(step)
        where = f"node {node.name} ({node.op_type}) of opset {original}"
        if rule is not None:
            site = Site(node, original)
            try:
                rule(site)
            except NoRule as error:
                raise NoRule(f"{where} has no equivalent: {error}") from error
            if site.replaced:
                return
        elif step not in UNCHANGED.get(node.op_type, ()):
            raise NoRule(f"{where} has no rule for the change in opset {step}")
        version = step


def _next(op_type: str, version: int, target: int) -> int | None:
    """The first opset after `version` that changed the operator, None where none up to `target` did."""
    if op_type in ALWAYS:
        return next((step for step in sorted(RULES[op_type]) if version < step), None)
    return next((step for step in _changes(op_type) if version < step <= target), None)


@cache
def _changes(op_type: str) -> tuple[int, ...]:
    """Opsets that introduced or changed the operator, in order."""
    versions = set(RULES.get(op_type, ()))
    limit = DONE
    while True:
        try:
            limit = onnx.defs.get_schema(op_type, limit, "").since_version - 1
        except onnx.defs.SchemaError:
            return tuple(sorted(versions))
        versions.add(limit + 1)
        if limit < 1:
            return tuple(sorted(versions))
