import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.solve import pbqp

cost = st.one_of(st.integers(0, 9).map(lambda n: n * 1e-6), st.just(math.inf))


@st.composite
def graphs(draw: st.DrawFn) -> pbqp.Graph:
    graph = pbqp.Graph()
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=6))
    for size in sizes:
        graph.add_node(np.array([draw(cost) for _ in range(size)]))
    for u, v in itertools.combinations(range(len(sizes)), 2):
        if draw(st.booleans()):  # dense enough that some cores have to go to the integer program
            graph.add_edge(u, v, np.array([[draw(cost) for _ in range(sizes[v])] for _ in range(sizes[u])]))
    return graph


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_least_cost(graph: pbqp.Graph) -> None:
    every = itertools.product(*(range(len(costs)) for costs in graph.costs.values()))
    best = min(pbqp.total(graph, values) for values in every)
    found = pbqp.solve(graph)
    if math.isinf(best):
        assert found is None
        return
    assert found is not None
    assert math.isclose(found.cost, best, rel_tol=1e-9, abs_tol=1e-12)
    assert math.isclose(pbqp.total(graph, found.values), found.cost)
    assert found.bound <= best + 1e-12


def test_a_tree_and_a_ring_leave_no_core() -> None:
    graph = pbqp.Graph()
    nodes = [graph.add_node(np.array([0.0, 1e-6])) for _ in range(6)]
    differ = np.array([[2e-6, 0.0], [0.0, 2e-6]])
    for u, v in itertools.pairwise([*nodes[:4], nodes[0]]):
        graph.add_edge(u, v, differ)
    graph.add_edge(0, 4, differ)
    graph.add_edge(4, 5, differ)
    found = pbqp.solve(graph)
    assert found is not None
    assert found.core == 0
    assert math.isclose(found.cost, 3e-6)


def test_solving_leaves_the_graph_alone() -> None:
    graph = pbqp.Graph()
    graph.add_node(np.array([0.0, 1e-6]))
    graph.add_node(np.array([1e-6, 0.0]))
    graph.add_edge(0, 1, np.zeros((2, 2)))
    pbqp.solve(graph)
    assert len(graph.costs) == 2
    assert graph.edges[0][1].shape == (2, 2)
