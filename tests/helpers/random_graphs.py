"""A random graph as it grows, every node of which ONNX Runtime has run.

Each node is run alone as soon as it is written, so its results' shapes, types and numbers are known to what comes after
it, and what ONNX Runtime does not take is dropped: `Dropped` is raised and the family of that node tries no further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from graphopt.errors import VerificationError
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.random_programs import proto

Array = NDArray[Any]

MOODS = ("ordinary", "ordinary", "ordinary", "special", "plain")
"""What floats are drawn as: ordinary numbers; NaN, infinities and denormals among them; constants, zeros, denormals."""

LARGEST = {"float16": 30.0}
"""Above this (1,000 in wider floats) a result is an output and goes no further, lest rounding is all that is left."""


class Dropped(Exception):
    """ONNX Runtime does not take the node, or no operand fits."""


@dataclass
class Known:
    """A value: its numbers here, whether no rounding came before, and whether it is a constant."""

    array: Array
    exact: bool = True
    constant: bool = False


@dataclass
class Graph:
    """A graph or a subgraph of `parent`, whose values it may read. Sibling subgraphs use equal names."""

    random: np.random.Generator
    opset: int
    mood: str
    parent: Graph | None = None
    nodes: list[Any] = field(default_factory=list)
    values: dict[str, Known] = field(default_factory=dict)
    feeds: dict[str, Array] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    _count: int = 0

    @property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.random.integers(len(items)))]

    def chance(self, share: float) -> bool:
        return bool(self.random.random() < share)

    def integer(self, first: int, last: int) -> int:
        """Of first to last, both included."""
        return int(self.random.integers(first, last + 1))

    def axis(self, rank: int) -> int:
        """Any axis, counted from either end."""
        if not rank:
            raise Dropped
        return self.integer(-rank if self.opset >= 11 else 0, rank - 1)

    def visible(self) -> dict[str, Known]:
        return {**(self.parent.visible() if self.parent else {}), **self.values}

    def array(self, name: str) -> Array:
        return self.visible()[name].array

    def name(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{'_' * self.depth}{self._count}"

    def draw(self, dtype: str, shape: Sequence[int], finite: bool = False) -> Array:
        """Numbers in the graph's mood."""
        kind, shape = np.dtype(dtype), tuple(shape)
        if kind.kind == "b":
            return np.asarray(self.random.integers(0, 2, shape).astype(bool))
        if kind.kind in "iu":
            return np.asarray(self.random.integers(0 if kind.kind == "u" else -9, 10, shape).astype(kind))
        drawn = np.asarray(self.random.standard_normal(shape).astype(kind))
        tiny = np.finfo(kind).smallest_subnormal
        if self.mood == "special":
            pool = np.array([0.0, -0.0, 1.0, tiny, -tiny, *(() if finite else (np.nan, np.inf, -np.inf))], kind)
            return np.where(self.random.random(shape) < 0.06, self.random.choice(pool, shape), drawn).astype(kind)
        if self.mood == "plain" and self.chance(0.5):
            return np.full(shape, self.pick((0.0, -0.0, 1.0, -0.5, 7 * tiny)), kind)
        return drawn

    def new(self, array: Array, constant: bool | None = None) -> str:
        """An input or a constant: an initializer, or a node."""
        if constant is None:
            constant = self.chance(0.15)
        array = np.asarray(array)
        if constant or self.parent is not None:
            name = self.name("c")
            if self.chance(0.3):
                self.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
            else:
                self.constants[name] = array
            self.values[name] = Known(array, constant=True)
        else:
            self.feeds[name := self.name("x")] = array
            self.values[name] = Known(array)
        return name

    def operand(
        self,
        dtype: str,
        shape: Sequence[int],
        fits: Callable[[Array], bool] | None = None,
        exact: bool = False,
        finite: bool = False,
    ) -> str:
        """A value of this dtype that fits (has this shape if nothing else is asked for), else a new one.

        `exact`: not rounded before, for what makes steps of it. `finite`: for operators whose kernels in ONNX Runtime
        keep or lose NaN depending on where in a vector it stands (MaxPool, LSTM), or multiply it by 0 (Resize).
        """
        fits = fits or (lambda array: array.shape == tuple(shape))
        found = [
            name
            for name, known in self.visible().items()
            if str(known.array.dtype) == dtype and (known.exact or not exact) and self.tame(known) and fits(known.array)
            if not finite or np.isfinite(known.array).all()
        ]
        if found and self.chance(0.75):
            return str(self.pick(found[-8:]))
        return self.new(self.draw(dtype, shape, finite))

    def weight(self, dtype: str, shape: Sequence[int], scale: float = 0.5) -> str:
        """A constant of this shape, perhaps one that others read too; seldom an input."""
        shape = tuple(int(extent) for extent in shape)
        known = [n for n, array in self.constants.items() if array.shape == shape and str(array.dtype) == dtype]
        shared = [n for n in known if np.isfinite(self.constants[n]).all()]
        if shared and self.chance(0.5):
            return str(self.pick(shared))
        array = self.draw(dtype, shape, finite=True)  # padding times NaN is NaN or nothing, as an algorithm likes it
        if array.dtype.kind == "f":
            array = array * array.dtype.type(scale)
        return self.new(array, self.chance(0.9))

    def setting(self, numbers: Any, dtype: str = "int64") -> str:
        """A constant that says sizes, axes and the like."""
        return self.new(np.asarray(numbers, dtype), True)

    def tame(self, known: Known) -> bool:
        """Whether other nodes may read it."""
        array = known.array
        if array.dtype.kind != "f" or known.constant:
            return True
        finite = array[np.isfinite(array)].astype(np.float64)
        usual = self.mood == "special" or finite.size == array.size
        return usual and np.abs(finite).max(initial=0.0) <= LARGEST.get(str(array.dtype), 1e3)

    def node(
        self, op: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", exact: bool = False, **attributes: Any
    ) -> list[str]:
        """Write a node and run it alone; the names of its results. `exact`: it rounds nothing."""
        names = [self.name("v") for _ in range(outputs)]
        made = helper.make_node(op, inputs, names, name=f"node{len(self.nodes)}", domain=domain, **attributes)
        known = self.visible()
        read = [n for n in dict.fromkeys([*inputs, *_captured(made)]) if n]
        fixed = {n: known[n].array for n in read if known[n].constant}
        alone = self.proto([made], {n: known[n].array for n in read if n not in fixed}, dict.fromkeys(names), fixed)
        try:
            results = run_onnxruntime(alone, {n: known[n].array for n in read if n not in fixed})
        except VerificationError as error:
            raise Dropped(f"{op}: {error}") from error
        exact = exact and all(known[n].exact for n in read)
        for name in names:
            if not isinstance(results[name], np.ndarray):
                raise Dropped(f"{op}: a result is no tensor")
            self.values[name] = Known(results[name], exact)
        self.nodes.append(made)
        return names

    def proto(
        self,
        nodes: Sequence[Any],
        feeds: dict[str, Array],
        outputs: dict[str, Array | None],
        constants: dict[str, Array],
        version: int = 8,
    ) -> Any:
        """A model; an output without an array has no type, and before IR version 4 constants are inputs too."""
        graph = helper.make_graph(
            nodes,
            "random",
            [info(n, a) for n, a in {**feeds, **(constants if version < 4 else {})}.items()],
            [info(n, a) for n, a in outputs.items()],
            [numpy_helper.from_array(a, n) for n, a in constants.items()],
        )
        domains = [helper.make_opsetid("", self.opset), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=domains, ir_version=version)

    def model(self) -> Any:
        """What no node reads is an output, and now and then what one reads; some outputs have no type."""
        read = {name for node in self.nodes for name in (*node.input, *_captured(node))}
        made = [name for node in self.nodes if node.op_type != "Constant" for name in node.output]
        outputs = [name for name in made if name not in read or self.chance(0.15)]
        nested = any(a.type == onnx.AttributeProto.GRAPH for node in self.nodes for a in node.attribute)
        version = 3 if self.opset < 9 and not nested and self.chance(0.5) else 8
        typed: dict[str, Array | None] = {n: None if self.chance(0.15) else self.values[n].array for n in outputs}
        return self.proto(self.nodes, self.feeds, typed, self.constants, version)


def info(name: str, array: Array | None) -> Any:
    if array is None:
        return onnx.ValueInfoProto(name=name)
    return helper.make_tensor_value_info(name, proto(str(array.dtype)), array.shape)


def _captured(node: Any) -> list[str]:
    """What the subgraphs of a node read from outside."""
    found: list[str] = []
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            graph = attribute.g
            inside = {v.name for v in (*graph.input, *graph.initializer)} | {n for e in graph.node for n in e.output}
            read = [n for each in graph.node for n in (*each.input, *_captured(each))]
            found += [n for n in (*read, *(v.name for v in graph.output)) if n and n not in inside]
    return found
