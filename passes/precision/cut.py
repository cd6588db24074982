"""Which nodes compute in half precision, so that casts move the fewest bytes: a minimum cut.

    min  sum over tensors: bytes of its cast, if the other side reads it        (first)
       + sum over nodes in float32: bytes that they move more than in half      (ties)

A constant needs no cast. It counts as produced in half precision; its float32 copy costs what the caller says.

HALF and FLOAT are source and sink of the flow network; each open node falls on one side. A tensor that is produced in
half precision and consumed in float32 is cast once for all its consumers, and likewise in the other direction: a helper
node per direction stands between the producer and all consumers (as for shared costs in Picard, 1976, Management
Science 22, 1268-1272, "Maximal closure of a graph"). The cut is exact in polynomial time. Of several minimum cuts the
one with the most nodes in half precision is taken, so that a second run moves nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass

import networkx as nx

HALF, FLOAT = "half", "float32"
"""The two sides. As producer or consumer of a tensor they stand for nodes whose precision is fixed."""

TIE = 1024
"""Weight of a byte moved by a cast, in bytes moved by nodes: nodes are fused, so their bytes only break ties."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Producer and consumers of a tensor (open nodes or sides), and the bytes that its cast moves."""

    producer: Hashable
    consumers: frozenset[Hashable]
    cast: int


def choose(extra: Mapping[Hashable, int], tensors: Collection[Tensor]) -> frozenset[Hashable]:
    """The open nodes that compute in half precision; `extra` are the bytes that each moves more in float32."""
    network = nx.DiGraph()
    network.add_nodes_from((HALF, FLOAT))
    for node, moved in extra.items():
        network.add_edge(HALF, node, capacity=moved)
    for number, tensor in enumerate(tensors):
        capacity = TIE * tensor.cast
        up, down = ("up", number), ("down", number)
        network.add_edge(tensor.producer, up, capacity=capacity)
        network.add_edge(down, tensor.producer, capacity=capacity)
        for consumer in tensor.consumers:  # without a capacity: never cut
            network.add_edge(up, consumer)
            network.add_edge(consumer, down)
    _, (in_half, _) = nx.minimum_cut(network, HALF, FLOAT)  # the side of FLOAT is the smallest possible
    return frozenset(node for node in extra if node in in_half)


def cost(extra: Mapping[Hashable, int], tensors: Collection[Tensor], in_half: Collection[Hashable]) -> int:
    """Cost of a choice, by the definition at the top of this module."""
    half_side = {HALF, *in_half}
    total = sum(moved for node, moved in extra.items() if node not in half_side)
    for tensor in tensors:
        produced_in_half = tensor.producer in half_side
        if any((consumer in half_side) != produced_in_half for consumer in tensor.consumers):
            total += TIE * tensor.cast
    return total
