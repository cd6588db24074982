"""Clip gradients: each element, or the norm of all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.passes.training.step import Step

TINY = 1e-6
"""Added to the norm that is divided by, as `torch.nn.utils.clip_grad_norm_` does."""


@dataclass(frozen=True)
class _Taken:
    parameter: ir.Value
    gradient: ir.Value
    before: ir.Node | None


class Clip:
    """Collects gradients in the type of their update, and gives them back clipped.

    g' = min(max(g, -value), value)        g'' = g' * min(1, norm / (|all g'| + 1e-6))
    """

    def __init__(self, step: Step, value: float | None, norm: float | None) -> None:
        """None does not clip."""
        self._step = step
        self._value = value
        self._norm = norm
        self._taken: list[_Taken] = []
        self._squares: list[ir.Value] = []

    def take(self, parameter: ir.Value, gradient: ir.Value, exists: ir.Node | None, before: ir.Node | None) -> None:
        """`gradient` is there before the node `exists`; its update is to stand before the node `before`."""
        emit = self._step.emitter(before if self._norm is None else exists, str(parameter.name))
        double = parameter.dtype == ir.DataType.DOUBLE
        gradient = emit.cast(gradient, ir.DataType.DOUBLE if double else ir.DataType.FLOAT)
        if self._value is not None:
            gradient = emit("Clip", gradient, -self._value, self._value)
        if self._norm is not None:
            self._squares.append(emit("ReduceSumSquare", gradient, shape=(), keepdims=0))
        self._taken.append(_Taken(parameter, gradient, before))

    def clipped(self) -> Iterator[tuple[ir.Value, ir.Value, ir.Node | None]]:
        """(parameter, its gradient, the node before which its update stands)."""
        if self._norm is None:
            yield from ((taken.parameter, taken.gradient, taken.before) for taken in self._taken)
            return
        emit = self._step.emitter(None, "clip")
        total = emit("Sqrt", emit("Sum", *(emit.cast(each, ir.DataType.DOUBLE) for each in self._squares)))
        factor = emit("Min", emit("Div", self._norm, emit("Add", total, TINY)), 1.0)
        factors = {ir.DataType.DOUBLE: factor, ir.DataType.FLOAT: emit.cast(factor, ir.DataType.FLOAT)}
        for taken in self._taken:
            assert taken.gradient.dtype is not None
            own = self._step.emitter(None, str(taken.parameter.name))
            yield taken.parameter, own("Mul", taken.gradient, factors[taken.gradient.dtype]), None
