"""The rest of the grammar: control flow, and how a whole graph grows."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import helper, numpy_helper

from tests.helpers.random_bytes import BYTES
from tests.helpers.random_families import ELEMENTS, LINEAR, ROWS, SPATIAL, Family, whatever
from tests.helpers.random_graphs import MOODS, Array, Dropped, Graph, Known, info
from tests.helpers.random_moves import FOREIGN, MOVES, einsum


def inside(g: Graph, steps: int) -> None:
    """Some nodes; control flow among them as long as it is nested no deeper than twice."""
    for _ in range(steps):
        step(g, FLAT if g.depth >= 2 or g.chance(0.8) else (CONTROL,))


def results(g: Graph, wanted: Sequence[Array]) -> list[str]:
    """Copies of values of the subgraph that have these shapes and types, or of constants."""
    made = []
    for array in wanted:
        alike = [n for n, k in g.values.items() if k.array.shape == array.shape and k.array.dtype == array.dtype]
        alike = [n for n in alike if g.tame(g.values[n])]
        made += g.node("Identity", [alike[-1] if alike else g.new(g.draw(str(array.dtype), array.shape))], exact=True)
    return made


def body(g: Graph, inputs: Sequence[str], outputs: Sequence[str], name: str) -> Any:
    """The subgraph as an attribute of its node."""
    typed = [[info(n, g.values[n].array) for n in names] for names in (inputs, outputs)]
    return helper.make_graph(g.nodes, name, *typed, [numpy_helper.from_array(a, n) for n, a in g.constants.items()])


def branch(g: Graph) -> None:
    """If on what the run says; its branches use equal names."""
    truth = g.operand("bool", ())
    if g.chance(0.5):
        source, keep = whatever(g, ("float32",), least=1, exact=True), g.integer(0, 1)
        most = g.node("ReduceMax", [source], exact=True, keepdims=keep)[0]
        truth = g.node("Greater", [most, g.setting(0.3, "float32")], exact=True)[0]
    sides = [Graph(g.random, g.opset, g.mood, g) for _ in range(2)]
    for side in sides:
        inside(side, g.integer(1, 3))
    made = [known.array for n, known in sides[0].values.items() if n.startswith("v") and sides[0].tame(known)]
    if not made:
        raise Dropped
    wanted = made[-g.integer(1, 2) :]
    graphs = [body(side, [], results(side, wanted), "side") for side in sides]
    g.node("If", [truth], outputs=len(wanted), then_branch=graphs[0], else_branch=graphs[1])


def loop(g: Graph) -> None:
    """Loop with one or two tensors carried, and what every iteration made of something."""
    carried = [whatever(g, ("float32", "float32", "int64"), least=1) for _ in range(g.integer(1, 2))]
    inner = Graph(g.random, g.opset, g.mood, g)
    heads = [inner.name("i"), inner.name("t"), *(inner.name("s") for _ in carried)]
    arrays = [np.asarray(0, np.int64), np.asarray(True), *(g.array(n) for n in carried)]
    inner.values.update({n: Known(a, exact=False) for n, a in zip(heads, arrays, strict=True)})
    inside(inner, g.integer(1, 3))
    made = [known.array for n, known in inner.values.items() if n.startswith("v") and inner.tame(known)]
    scanned = results(inner, made[-1:] if g.chance(0.6) else [])
    kept = inner.node("Identity", [heads[1]], exact=True) if g.chance(0.5) else inner.node(
        "Less", [heads[0], inner.setting(1)])  # fmt: skip
    ends = [*kept, *results(inner, arrays[2:]), *scanned]
    count = g.new(np.asarray(g.integer(0, 3), np.int64), g.chance(0.5))
    start = g.pick(("", g.setting(True, "bool")))
    g.node("Loop", [count, start, *carried], outputs=len(ends) - 1, body=body(inner, heads, ends, "body"))


CONTROL: tuple[Family, ...] = (branch, loop)
FLAT = (SPATIAL, (*LINEAR, einsum), ROWS, ELEMENTS, ELEMENTS, MOVES, MOVES, FOREIGN, BYTES)
ALL = (*FLAT, SPATIAL, ROWS, LINEAR, ELEMENTS, CONTROL)


def step(g: Graph, kinds: Sequence[Sequence[Family]] = ALL) -> None:
    """What one family writes, as far as ONNX Runtime takes it."""
    with contextlib.suppress(Dropped):
        g.pick(g.pick(kinds))(g)


def random_graph(seed: int) -> Graph:
    """The graph of a seed: 2 to 9 families one after the other, at any opset from 7 to 22."""
    random = np.random.default_rng(seed)
    g = Graph(random, int(random.integers(7, 23)), MOODS[int(random.integers(len(MOODS)))])
    for _ in range(g.integer(2, 9)):
        step(g)
    return g
