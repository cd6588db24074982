"""Cuts a list of nodes into runs: native ones for the target's kernels, fallback ones for ONNX Runtime."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import onnx_ir as ir

from graphopt.graph.constness import is_constant

Guard = tuple[tuple[ir.Value, bool], ...]
"""Conditions (tensors of one bool), each with the value that it must have."""


@dataclass(frozen=True, slots=True)
class NodeRun:
    """Nodes in topological order that one segment computes, with the values it reads and the values others need.

    `reasons` says for each node of a fallback run why it is not native: (node name, sentence). The program skips the
    run where a condition of `guard` does not hold. The nodes of a `select` run choose among values that are computed
    already (`graphopt.graph.guards`).
    """

    nodes: tuple[ir.Node, ...]
    inputs: tuple[ir.Value, ...]
    outputs: tuple[ir.Value, ...]
    reasons: tuple[tuple[str, str], ...] = ()
    guard: Guard = ()
    select: bool = False

    @property
    def native(self) -> bool:
        """Whether the target's kernels compute it."""
        return not self.reasons and not self.select


def read_by(node: ir.Node) -> Iterator[ir.Value]:
    """Every value `node` needs from outside: its inputs, and what its subgraphs capture."""
    yield from (value for value in node.inputs if value is not None)
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            graphs = [attribute.as_graph()]
        elif attribute.type == ir.AttributeType.GRAPHS:
            graphs = list(attribute.as_graphs())
        else:
            continue
        for graph in graphs:
            yield from captured(graph)


def captured(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value that `graph`, a subgraph, takes from outside."""
    inside = set(graph.inputs) | set(graph.initializers.values())
    inside |= {value for inner in graph for value in inner.outputs}
    for inner in graph:
        yield from (value for value in read_by(inner) if value not in inside)
    yield from (value for value in graph.outputs if value not in inside)


def node_runs(
    nodes: Sequence[ir.Node],
    refusals: Mapping[ir.Node, str],
    needed: Iterable[ir.Value],
    guarded: Mapping[ir.Node, Guard] = MappingProxyType({}),
    apart: Collection[ir.Node] = (),
) -> list[NodeRun]:
    """Group nodes so that few runs alternate between native and fallback, and between guards.

    Starting with the kind of the first node, every node that is ready and of the current kind joins the run; only when
    none is left does the kind change, to that of the first node that is ready. Constants are no inputs of a run.

    Args:
        nodes: in topological order.
        refusals: why a node is not native; nodes not in it are native.
        needed: values that must survive besides those that another run reads (graph outputs, inputs of later stages).
        guarded: the conditions under which a node runs; a node waits for them too.
        apart: nodes that are neither native nor refused, in runs of their own.
    """
    known = set(nodes)
    reads = {node: tuple(read_by(node)) for node in nodes}
    guards = {node: guarded.get(node, ()) for node in nodes}
    waiting = {node: {v.producer() for v in (*reads[node], *(c for c, _ in guards[node]))} & known for node in nodes}
    readers: dict[ir.Value, set[ir.Node]] = {}
    for node in nodes:
        for value in reads[node]:
            readers.setdefault(value, set()).add(node)
    kinds = {node: (node in refusals, node in apart, guards[node]) for node in nodes}
    wanted = {*needed, *(condition for guard in guards.values() for condition, _ in guard)}
    groups: list[list[ir.Node]] = []
    done: set[ir.Node | None] = set()
    remaining = list(nodes)
    while remaining:
        kind = next(kinds[node] for node in remaining if waiting[node] <= done)
        group, kept = [], []
        for node in remaining:
            if kinds[node] == kind and waiting[node] <= done:
                group.append(node)
                done.add(node)
            else:
                kept.append(node)
        groups.append(group)
        remaining = kept
    return [
        _run(group, refusals, reads, readers, wanted, guards[group[0]], select=group[0] in apart) for group in groups
    ]


def one_by_one(run: NodeRun, needed: Iterable[ir.Value]) -> list[NodeRun]:
    """Split `run` into runs of one node each, where ONNX Runtime refuses them as one model."""
    reads = {node: tuple(read_by(node)) for node in run.nodes}
    readers: dict[ir.Value, set[ir.Node]] = {}
    for node in run.nodes:
        for value in reads[node]:
            readers.setdefault(value, set()).add(node)
    reasons = dict(zip(run.nodes, (reason for _, reason in run.reasons), strict=True))
    wanted = {*run.outputs, *needed}
    return [_run([node], reasons, reads, readers, wanted, run.guard) for node in run.nodes]


def _run(
    group: Sequence[ir.Node],
    refusals: Mapping[ir.Node, str],
    reads: Mapping[ir.Node, Sequence[ir.Value]],
    readers: Mapping[ir.Value, set[ir.Node]],
    wanted: set[ir.Value],
    guard: Guard,
    select: bool = False,
) -> NodeRun:
    members = set(group)
    inside = {value for node in group for value in node.outputs}
    inputs = dict.fromkeys(v for node in group for v in reads[node] if v not in inside and not is_constant(v))
    outputs = [
        value for node in group for value in node.outputs if value in wanted or not readers.get(value, set()) <= members
    ]
    reasons = tuple((str(node.name), refusals[node]) for node in group if node in refusals)
    return NodeRun(tuple(group), tuple(inputs), tuple(outputs), reasons, guard, select)
