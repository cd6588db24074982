"""When a node of the main graph has to run: the conditions of the If nodes that every path to an output goes through.

    a = Conv(x)  b = Neg(x)  y = If(c)<then: Identity(a), else: Identity(b)>     a: if c, b: if not c

An If with a branch that only returns captured values selects among values computed before (`Select`); a branch with
more nodes stays an If in ONNX Runtime, which runs for that side only. The guard of a node is the intersection, over all
paths from it to an output, of the sides of selections on the path. It is conservative: a node may run in vain, but is
never skipped where it is needed. The guard of a condition is part of the guard of every node that it guards: conditions
are evaluated in order, and each is computed by then.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.analysis import static_type
from graphopt.graph.constness import is_constant
from graphopt.graph.segments import Guard, captured, read_by
from graphopt.graph.shapes.settle import CLAIMED
from graphopt.graph.value_dependence import computes_by_values


@dataclass(frozen=True, slots=True)
class Select:
    """outputs = when_true if condition else when_false; a side is None where an ONNX graph computes it."""

    condition: ir.Value
    outputs: tuple[ir.Value, ...]
    when_true: tuple[ir.Value, ...] | None
    when_false: tuple[ir.Value, ...] | None

    @property
    def guard(self) -> Guard:
        """Guard, besides that of the node, of the side that ONNX Runtime computes; () where there is none."""
        if self.when_true is None:
            return ((self.condition, True),)
        return ((self.condition, False),) if self.when_false is None else ()


def select_of(node: ir.Node) -> Select | None:
    """`node` as a selection among values of the main graph; None if it is not one."""
    if node.op_type != "If" or node.domain != "" or node.inputs[0] is None:
        return None
    condition = node.inputs[0]
    flag = static_type(condition)
    if flag is None or flag[0] != "bool" or math.prod(flag[1]) != 1 or is_constant(condition):
        return None
    sides = []
    for name in ("then_branch", "else_branch"):
        branch = node.attributes[name].as_graph()
        values = _passed_on(branch)
        if values is None and computes_by_values(branch) and any(CLAIMED in value.meta for value in branch.outputs):
            return None
        if values is not None:
            types = [static_type(value) for value in values]
            if None in types or types != [static_type(value) for value in node.outputs]:
                return None
        sides.append(values)
    return None if sides == [None, None] else Select(condition, tuple(node.outputs), *sides)


def _passed_on(branch: ir.Graph) -> tuple[ir.Value, ...] | None:
    """The outer values that `branch` gives unchanged; None if it does more than that."""
    outer: dict[ir.Value, ir.Value] = {}
    inside = set(branch.initializers.values())
    for node in branch:
        source = node.inputs[0] if node.op_type == "Identity" and node.domain == "" else None
        if source is None:
            return None
        inside.add(node.outputs[0])
        outer[node.outputs[0]] = outer.get(source, source)
    values = tuple(outer.get(value, value) for value in branch.outputs)
    return None if inside & set(values) else values


def selects(nodes: Iterable[ir.Node]) -> dict[ir.Node, Select]:
    """Those of `nodes` that are selections."""
    return {node: select for node in nodes if (select := select_of(node)) is not None}


def guards(graph: ir.Graph) -> dict[ir.Node, Guard]:
    """The guard of every node that need not always run; conditions in the order in which they are computed."""
    chosen = selects(graph)
    if not chosen:
        return {}
    needs: dict[ir.Value, frozenset[tuple[ir.Value, bool]]] = {}

    def read(values: Iterable[ir.Value], literals: frozenset[tuple[ir.Value, bool]]) -> None:
        for value in values:
            needs[value] = needs.get(value, literals) & literals

    read(graph.outputs, frozenset())
    nodes = list(graph)
    conditions: dict[ir.Node, frozenset[tuple[ir.Value, bool]]] = {}
    for node in reversed(nodes):
        reached = [needs[value] for value in node.outputs if value in needs]
        literals = conditions[node] = frozenset.intersection(*reached) if reached else frozenset()
        select = chosen.get(node)
        if select is None:
            read(read_by(node), literals)
            continue
        read([select.condition], literals)
        for wanted, values, name in (
            (True, select.when_true, "then_branch"),
            (False, select.when_false, "else_branch"),
        ):
            inner = captured(node.attributes[name].as_graph()) if values is None else values
            read(inner, literals | {(select.condition, wanted)})
    ordered = [*graph.inputs, *(value for node in nodes for value in node.outputs)]
    place = {value: index for index, value in enumerate(ordered)}
    return {
        node: tuple(sorted(literals, key=lambda literal: (place[literal[0]], literal[1])))
        for node, literals in conditions.items()
        if literals
    }


def remove_dead(graph: ir.Graph) -> None:
    """Remove the nodes that no output of `graph` needs, in place: they have no guard."""
    needed = set(graph.outputs)
    for node in reversed(list(graph)):
        if needed.isdisjoint(node.outputs):
            graph.remove(node)
        else:
            needed.update(read_by(node))


def in_order(nodes: Sequence[ir.Node], guarded: Mapping[ir.Node, Guard]) -> list[ir.Node]:
    """`nodes`, given in topological order, reordered only so that conditions come before the nodes that they guard."""
    if not guarded:
        return list(nodes)
    makers = {value: node for node in nodes for value in node.outputs}
    place = {node: index for index, node in enumerate(nodes)}
    readers: dict[ir.Node, list[ir.Node]] = {node: [] for node in nodes}
    missing: dict[ir.Node, int] = {}
    for node in nodes:
        needed = (*read_by(node), *(condition for condition, _ in guarded.get(node, ())))
        before = {makers[value] for value in needed if value in makers}
        missing[node] = len(before)
        for maker in before:
            readers[maker].append(node)
    ready = [place[node] for node in nodes if not missing[node]]
    ordered = []
    while ready:
        node = nodes[heapq.heappop(ready)]
        ordered.append(node)
        for reader in readers[node]:
            missing[reader] -= 1
            if not missing[reader]:
                heapq.heappush(ready, place[reader])
    return ordered
