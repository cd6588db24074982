"""Partitioned Boolean quadratic problems: one value per node, costs on nodes and on pairs of nodes, minimum total.

    min  sum_u c_u[x_u]  +  sum over edges (u, v) of M_uv[x_u, x_v]          infinity forbids

Exact reductions first: a node whose value is settled folds into its neighbours, a node with one or two neighbours is
minimised out, and a value that is dominated by another, whatever the neighbours choose, is dropped. (Scholz and
Eckstein, LCTES 2002, doi:10.1145/513829.513834; Hames and Scholz, JMLC 2006, doi:10.1007/11860990_21.) The remaining
core is a mixed-integer program for HiGHS, over the local polytope of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from graphopt.solve.highs import quiet

Array = npt.NDArray[np.float64]


@dataclass(slots=True)
class Graph:
    """Costs of nodes by number, and of edges as `edges[u][v][x_u, x_v]` (kept in both directions)."""

    costs: dict[int, Array] = field(default_factory=dict)
    edges: dict[int, dict[int, Array]] = field(default_factory=dict)

    def add_node(self, costs: Array) -> int:
        """Add a node; returns its number."""
        node = len(self.costs)
        self.costs[node] = np.array(costs, dtype=np.float64)
        self.edges[node] = {}
        return node

    def add_edge(self, u: int, v: int, costs: Array) -> None:
        """Add costs to the pair; a node paired with itself gets costs on its own values."""
        if u == v:
            self.costs[u] = self.costs[u] + np.diagonal(costs)
            return
        known = self.edges[u].get(v)
        both = costs if known is None else known + costs
        self.edges[u][v], self.edges[v][u] = both, both.T

    def remove(self, node: int) -> None:
        """Remove a node and its edges."""
        for other in self.edges.pop(node):
            del self.edges[other][node]
        del self.costs[node]

    def copy(self) -> Graph:
        """A graph that can be reduced without changing this one."""
        return Graph(dict(self.costs), {u: dict(row) for u, row in self.edges.items()})


@dataclass(frozen=True, slots=True)
class Assignment:
    """A value per node, the total cost, the proven lower bound, and the size of the core that HiGHS solved."""

    values: tuple[int, ...]
    cost: float
    bound: float
    core: int


def total(graph: Graph, values: tuple[int, ...]) -> float:
    """Cost of an assignment."""
    cost = sum(float(costs[values[node]]) for node, costs in graph.costs.items())
    for u, row in graph.edges.items():
        cost += sum(float(matrix[values[u], values[v]]) for v, matrix in row.items() if u < v)
    return cost


def solve(graph: Graph, weights: dict[int, Array] | None = None, limit: float = math.inf) -> Assignment | None:
    """The cheapest assignment; with `weights`, among those with a total weight of at most `limit`.

    Returns:
        None if every assignment is forbidden.
    """
    reducer = _Reducer(graph.copy())
    if weights is None:
        reducer.reduce()
    solved = _core(reducer.graph, weights or {}, limit)
    if solved is None:
        return None
    values, slack = solved
    reducer.extend(values)
    assignment = tuple(values[node] for node in sorted(values))
    cost = total(graph, assignment)
    if math.isinf(cost):
        return None
    return Assignment(assignment, cost, cost - slack, len(reducer.graph.costs))


class _Reducer:
    """Reduces `graph` in place and records how to recover the values of the removed nodes."""

    def __init__(self, graph: Graph) -> None:
        """Args: graph: changed by `reduce`."""
        self.graph = graph
        self._undo: list[tuple[int, Callable[[dict[int, int]], int]]] = []

    def reduce(self) -> None:
        """Reduce until nothing changes: every remaining node has three or more neighbours."""
        pending = set(self.graph.costs)
        while pending:
            node = pending.pop()
            if node not in self.graph.costs:
                continue
            touched = set(self.graph.edges[node])
            if self._drop_beaten(node):
                pending |= {node, *touched}
            elif len(self.graph.costs[node]) == 1 or len(touched) <= 2:
                self._minimise_out(node)
                pending |= touched

    def extend(self, values: dict[int, int]) -> None:
        """Give every removed node the best value for the values of its neighbours."""
        for node, choose in reversed(self._undo):
            values[node] = choose(values)

    def _minimise_out(self, node: int) -> None:
        graph = self.graph
        costs, row = graph.costs[node], dict(graph.edges[node])
        graph.remove(node)

        def choose(values: dict[int, int]) -> int:
            return int(np.argmin(costs + sum(matrix[:, values[other]] for other, matrix in row.items())))

        if len(costs) == 1:
            for other, matrix in row.items():
                graph.costs[other] = graph.costs[other] + matrix[0]
        elif len(row) == 1:
            ((other, matrix),) = row.items()
            graph.costs[other] = graph.costs[other] + (costs[:, None] + matrix).min(axis=0)
        elif len(row) == 2:
            (u, first), (v, second) = row.items()
            graph.add_edge(u, v, (costs[:, None, None] + first[:, :, None] + second[:, None, :]).min(axis=0))
        self._undo.append((node, choose))

    def _drop_beaten(self, node: int) -> bool:
        """Remove a dominated value: it costs at least as much as another, whatever values the neighbours have."""
        costs, row = self.graph.costs[node], self.graph.edges[node]
        for worse in range(len(costs)):
            for better in range(len(costs)):
                if worse != better and (math.isinf(costs[worse]) or _beaten(costs, row, worse, better)):
                    self._drop(node, worse)
                    return True
        return False

    def _drop(self, node: int, value: int) -> None:
        graph = self.graph
        kept = [index for index in range(len(graph.costs[node])) if index != value]
        graph.costs[node] = graph.costs[node][kept]
        for other, matrix in graph.edges[node].items():
            graph.edges[node][other] = matrix[kept]
            graph.edges[other][node] = matrix[kept].T
        self._undo.append((node, lambda values: kept[values[node]]))


def _beaten(costs: Array, row: dict[int, Array], worse: int, better: int) -> bool:
    gain = costs[worse] - costs[better]
    for matrix in row.values():
        high, low = matrix[worse], matrix[better]
        open_ = np.isfinite(high)  # where the worse value is forbidden it loses anyway
        if not open_.any():
            return True
        if np.isinf(low[open_]).any():
            return False
        gain += float((high[open_] - low[open_]).min())
    return bool(gain >= 0)


_MICROSECOND = 1e-6
"""HiGHS uses absolute tolerances; in microseconds they are far below any cost that matters here."""


def _core(graph: Graph, weights: dict[int, Array], limit: float) -> tuple[dict[int, int], float] | None:
    """Values of the nodes of `graph` and their cost's gap to the optimum; None if every assignment is forbidden."""
    if not graph.costs:
        return {}, 0.0
    import highspy

    highs = quiet()
    highs.setOptionValue("mip_rel_gap", 0.0)
    highs.setOptionValue("mip_abs_gap", 1e-6)
    chosen: dict[int, dict[int, Any]] = {}
    for node, costs in graph.costs.items():
        chosen[node] = {
            value: highs.addBinary(obj=float(cost) / _MICROSECOND)
            for value, cost in enumerate(costs)
            if cost < math.inf
        }
        if not chosen[node]:
            return None
        highs.addConstr(sum(chosen[node].values()) == 1)
    for u, row in graph.edges.items():
        for v, matrix in row.items():
            if u < v:
                _add_pairs(highs, chosen[u], chosen[v], matrix)
    if weights:
        terms = [
            float(weights[node][value]) / limit * variable
            for node, variables in chosen.items()
            if node in weights
            for value, variable in variables.items()
            if weights[node][value]
        ]
        if terms:
            highs.addConstr(sum(terms) <= 1.0)
    highs.run()
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        return None
    solution = highs.getSolution().col_value
    values = {
        node: max(variables, key=lambda value: solution[variables[value].index]) for node, variables in chosen.items()
    }
    info = highs.getInfo()
    slack = max(0.0, info.objective_function_value - info.mip_dual_bound) * _MICROSECOND
    return values, slack


def _add_pairs(highs: Any, first: dict[int, Any], second: dict[int, Any], matrix: Array) -> None:
    """One variable per allowed pair; the sums over its rows and columns equal the values of the two nodes."""
    pairs = {
        (a, b): highs.addVariable(lb=0.0, ub=1.0, obj=float(matrix[a, b]) / _MICROSECOND)
        for a in first
        for b in second
        if matrix[a, b] < math.inf
    }
    for a, variable in first.items():
        highs.addConstr(sum((pair for (x, _), pair in pairs.items() if x == a), 0.0 * variable) == variable)
    for b, variable in second.items():
        highs.addConstr(sum((pair for (_, y), pair in pairs.items() if y == b), 0.0 * variable) == variable)
