"""Shapes that inference leaves open, learned from ONNX Runtime, which runs the node once on the static shapes.

A node is run if its operands' shapes are static and its results' shapes follow from them (`value_dependence`), on
several inputs, which must give the same shapes. What it learns is kept with the value and inferred from ever after.
The shapes that a model declares for computed values are claims: they are checked by a run, not believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from graphopt.graph.analysis import nbytes
from graphopt.graph.constness import is_constant
from graphopt.graph.fallback_models import extract
from graphopt.graph.segments import NodeRun, read_by
from graphopt.graph.shapes.settle import LEARNED
from graphopt.graph.value_dependence import depends_on_values
from graphopt.verify import draw_demands
from graphopt.verify.draws import Array, random_array

MAX_BYTES = 1 << 30
"""Operands above this many bytes are not tried."""

NODE_SECONDS = 3.0
TOTAL_SECONDS = 30.0
"""Time limits of one run and of all runs."""


class Learner:
    """Completes nodes whose results have no static shape."""

    def __init__(self, model: ir.Model) -> None:
        """Learn for the nodes of the main graph of `model`."""
        self._model = model
        self._demands = draw_demands.Model(model)
        self._tried: set[ir.Node] = set()
        self._left = TOTAL_SECONDS

    def __call__(self, node: ir.Node) -> bool:
        """Give the outputs of `node` the types and shapes that ONNX Runtime gives; True if they are known now."""
        if (
            node in self._tried
            or not node.outputs[0].name
            or self._left <= 0
            or not _is_open(node)
            or not _can_run(node)
        ):
            return False
        self._tried.add(node)
        if depends_on_values(node):
            return False
        started = time.perf_counter()
        types = self._observe(node)
        self._left -= time.perf_counter() - started
        if types is None:
            return False
        for value, (dtype, shape) in zip(_named(node), types, strict=True):
            value.type, value.shape = ir.TensorType(dtype), ir.Shape(shape)
            value.meta[LEARNED] = True
        return True

    def _observe(self, node: ir.Node) -> list[tuple[ir.DataType, tuple[int, ...]]] | None:
        """Types and shapes of the outputs, if several inputs give the same."""
        from graphopt.runtime.onnx_session import open_session, run_bounded

        inputs = tuple(dict.fromkeys(v for v in read_by(node) if not is_constant(v)))
        run = NodeRun((node,), inputs, tuple(_named(node)), ((str(node.name), ""),))
        agreed: list[tuple[ir.DataType, tuple[int, ...]]] | None = None
        successes = 0
        try:
            proto, weights = extract(self._model, run)
            session = open_session(proto.SerializeToString(), weights, 1)
        except Exception:  # ONNX Runtime rejects the node: compilation reports it, with the reason
            return None
        for draw in self._draws(inputs):
            try:
                results = run_bounded(session, {str(v.name): draw(v) for v in inputs}, NODE_SECONDS)
            except Exception:  # the node does not accept these numbers
                continue
            if not all(isinstance(array, np.ndarray) and array.dtype != object for array in results.values()):
                return None
            types = [(ir.DataType.from_numpy(a.dtype), a.shape) for a in results.values()]
            if agreed is not None and types != agreed:
                return None
            agreed, successes = types, successes + 1
        return agreed if successes > 1 or (successes and not inputs) else None

    def _draws(self, inputs: tuple[ir.Value, ...]) -> Iterator[Callable[[ir.Value], Array]]:
        """Ways to fill the inputs: two draws of random numbers that the model accepts, ones, zeros."""
        for seed in range(2):
            generator = np.random.default_rng(seed)
            yield lambda value, g=generator: random_array(value, self._demands.demand(value), g)  # type: ignore[misc]
        if any(value.dtype is not None and not value.dtype.is_floating_point() for value in inputs):
            yield lambda value: _filled(value, 1)
            yield lambda value: _filled(value, 0)


def _filled(value: ir.Value, number: int) -> Array:
    assert value.shape is not None
    assert value.dtype is not None
    return np.full(value.shape.numpy(), number, value.dtype.numpy())


def _named(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.outputs if value.name)


def _is_open(node: ir.Node) -> bool:
    return any(value.shape is None or value.dtype is None or not value.shape.is_static() for value in _named(node))


def _can_run(node: ir.Node) -> bool:
    """Whether all operands are tensors of known type and shape, and together fit into memory.

    An If with a constant condition is excluded: its branch replaces it anyway, and ONNX Runtime, which inlines the
    branch when it opens the model, has crashed doing so.
    """
    if node.op_type == "If" and is_constant(node.inputs[0]):
        return False
    total = 0
    for value in set(read_by(node)):
        if not is_constant(value):
            known = isinstance(value.type, ir.TensorType) and value.shape is not None and value.shape.is_static()
            if not known or value.dtype in (None, ir.DataType.UNDEFINED, ir.DataType.STRING):
                return False
        total += nbytes(value)
    return total <= MAX_BYTES
