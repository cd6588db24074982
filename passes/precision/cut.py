"""Which nodes compute in half, so that casts move the fewest bytes: a minimum cut.

    min  sum over tensors: bytes of its cast, if the other side reads it        (first)
       + sum over nodes in float32: bytes that they move more than in half      (among equals)

A constant costs no cast. It counts as made in half, and being kept in float32 as well costs what its caller says.

Two sides, HALF and FLOAT, are the ends of the network; each open node falls on one of them. A tensor that is made in
half and read in float32 is cast once, however many read it, and so the other way round: a helper node per direction
stands between the producer and all consumers (as for shared costs in Picard, 1976, Management Science 22, 1268-1272,
"Maximal closure of a graph"). The cut is exact in polynomial time. Of several least cuts the one with the most nodes
in half is taken, so a second run finds nothing to move.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass

import networkx as nx

HALF, FLOAT = "half", "float32"
"""The two sides; as the producer or consumer of a tensor they stand for nodes that are not open."""

TIE = 1024
"""Casts count so many times more than what nodes move, which joins other kernels and decides between equals only."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """Who makes a tensor and who reads it (open nodes or sides), and the bytes that its cast moves."""

    producer: Hashable
    consumers: frozenset[Hashable]
    cast: int


def choose(extra: Mapping[Hashable, int], tensors: Collection[Tensor]) -> frozenset[Hashable]:
    """The open nodes that compute in half; `extra` are the bytes that each open node moves more in float32."""
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
    """What a choice costs, straight from the definition above."""
    halves = {HALF, *in_half}
    total = sum(moved for node, moved in extra.items() if node not in halves)
    for tensor in tensors:
        made = tensor.producer in halves
        if any((consumer in halves) != made for consumer in tensor.consumers):
            total += TIE * tensor.cast
    return total
