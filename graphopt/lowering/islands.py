"""Native nodes that are better left to ONNX Runtime, because they lie between nodes that it runs.

    q, s = DynamicQuantizeLinear(x: any length); t = Mul(s, w); y = ConvInteger(q, ...); z = Mul(Cast(y), t)

Where only `t` has a static shape, a kernel for it would cut one model of ONNX Runtime in two: a second session to
enter, and no fusion across. A native group of such nodes pays off only if computing it takes longer than that.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import networkx as nx
import onnx_ir as ir

from graphopt.cost.roofline import Machine
from graphopt.graph import analysis
from graphopt.graph.segments import read_by
from graphopt.ops import DOMAIN

CHANGE_SECONDS = 100e-6
"""Cost of one more ONNX Runtime session: entering it takes tens of microseconds, its threads wake up for it."""

REASON = "it is small, and stands between nodes that run in ONNX Runtime"


def islands(
    nodes: Sequence[ir.Node], refusals: Collection[ir.Node], machine: Machine, kept: Collection[ir.Node] = ()
) -> Mapping[ir.Node, str]:
    """The native nodes of `nodes` that ONNX Runtime should run, each with the reason.

    A native node lies between if it depends on a refused node, and a refused node depends on it. Connected ones form
    an island, whose seconds are estimated by a roofline. An island with a node of `kept` stays native. `nodes` are in
    topological order.
    """
    behind: set[ir.Node] = set()
    before: set[ir.Node] = set()
    producers = {node: [v.producer() for v in read_by(node)] for node in nodes}
    for node in nodes:
        if any(maker in behind or maker in refusals for maker in producers[node] if maker is not None):
            behind.add(node)
    for node in reversed(nodes):
        if node in before or node in refusals:
            before.update(maker for maker in producers[node] if maker is not None)
    between = [node for node in nodes if node in behind and node in before and node not in refusals]
    graph: nx.Graph[ir.Node] = nx.Graph()
    graph.add_nodes_from(between)
    graph.add_edges_from(
        (maker, node) for node in between for maker in producers[node] if maker is not None and maker in graph
    )
    reasons: dict[ir.Node, str] = {}
    for group in nx.connected_components(graph):
        if all(_runs_well(node) and node not in kept for node in group) and _seconds(group, machine) < CHANGE_SECONDS:
            reasons |= dict.fromkeys(group, REASON)
    return {node: reasons[node] for node in between if node in reasons}


def _runs_well(node: ir.Node) -> bool:
    """Whether ONNX Runtime has a kernel: it runs the body of an operator of ours node by node, and has few for bf16."""
    values = (*read_by(node), *node.outputs)
    return node.domain != DOMAIN and all(value.dtype != ir.DataType.BFLOAT16 for value in values)


def _seconds(group: Collection[ir.Node], machine: Machine) -> float:
    flops = sum(analysis.node_flops(node) for node in group)
    nbytes = sum(analysis.nbytes(value) for node in group for value in (*node.inputs, *node.outputs))
    return max(flops / machine.peak_flops, nbytes / machine.bandwidth)
