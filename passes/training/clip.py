"""Clip gradients: each element, or the norm of all of them together; undo the scale of the loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.passes.training.emit import Emitter
from graphopt.passes.training.step import DOUBLE, Step

FLOAT = ir.DataType.FLOAT
TINY = 1e-6
"""Added to the norm that is divided by, as `torch.nn.utils.clip_grad_norm_` does."""


@dataclass(frozen=True)
class _Taken:
    parameter: ir.Value
    gradient: ir.Value
    before: ir.Node | None


@dataclass
class Clip:
    """Collects gradients of scale * loss, and gives those of the loss, clipped, in the type of their update.

        g = gradient / scale        g' = min(max(g, -value), value)        g'' = g' * min(1, norm / (|all g'| + 1e-6))

    None is no limit, and no scale. Where something depends on all gradients, only sums over a gradient are computed
    when it exists, and its update stands at the end. `finite` tells then whether all numbers are.
    """

    step: Step
    value: float | None
    norm: float | None
    scale: ir.Value | None
    finite: ir.Value | None = None
    _taken: list[_Taken] = field(default_factory=list)
    _squares: list[ir.Value] = field(default_factory=list)
    _sizes: list[ir.Value] = field(default_factory=list)

    def take(self, parameter: ir.Value, gradient: ir.Value, exists: ir.Node | None, before: ir.Node | None) -> None:
        """`gradient` is there before the node `exists`; its update may stand before the node `before`."""
        emit = self.step.emitter(exists, str(parameter.name))
        kind = _wide(parameter)
        if self.norm is not None:
            limited = self._limited(emit, emit.cast(gradient, kind))
            self._squares.append(emit("ReduceSumSquare", limited, shape=(), keepdims=0))
        if self.scale is not None and (self.norm is None or self.value is not None):  # a limit hides an infinity
            self._sizes.append(emit("ReduceL1", emit.cast(gradient, kind), shape=(), keepdims=0))
        self._taken.append(_Taken(parameter, gradient, before))

    def clipped(self) -> Iterator[tuple[ir.Value, ir.Value, ir.Node | None]]:
        """(parameter, its gradient, the node before which its update stands)."""
        factor = self._factor(self.step.emitter(None, "clip"))
        for taken in self._taken:
            before = taken.before if factor is None else None
            emit = self.step.emitter(before, str(taken.parameter.name))
            kind = _wide(taken.parameter)
            gradient = self._limited(emit, emit.cast(taken.gradient, kind))
            yield taken.parameter, gradient if factor is None else emit("Mul", gradient, factor[kind]), before

    def _limited(self, emit: Emitter, gradient: ir.Value) -> ir.Value:
        """Each element within the limits, which are scaled as the gradient is."""
        if self.value is None:
            return gradient
        if self.scale is None:
            return emit("Clip", gradient, -self.value, self.value)
        low, high = (self._scaled(limit, gradient.dtype or FLOAT) for limit in (-self.value, self.value))
        return emit("Clip", gradient, low, high)

    def _scaled(self, limit: float, dtype: ir.DataType) -> ir.Value:
        assert self.scale is not None
        wide = self.step.wide(self.scale, "step.loss_scale")
        return self.step.scalar(f"step.limit{limit:g}", dtype, lambda emit: emit("Mul", wide, limit))

    def _factor(self, emit: Emitter) -> dict[ir.DataType, ir.Value] | None:
        """What all gradients are multiplied by, as float32 and float64; None for nothing."""
        undo = None
        if self.scale is not None:
            wide = self.step.wide(self.scale, "step.loss_scale")
            undo = self.step.scalar("step.unscale", DOUBLE, lambda emit: emit("Reciprocal", wide))
            sums = self._sizes or self._squares
            self.finite = emit("Less", emit("Sum", *(emit.cast(each, DOUBLE) for each in sums)), math.inf)
        if self.norm is None:
            factor = undo
        else:
            total = emit("Sqrt", emit("Sum", *(emit.cast(each, DOUBLE) for each in self._squares)))
            total = total if undo is None else emit("Mul", total, undo)
            factor = emit("Min", emit("Div", self.norm, emit("Add", total, TINY)), 1.0)
            factor = factor if undo is None else emit("Mul", factor, undo)
        return None if factor is None else {DOUBLE: factor, FLOAT: emit.cast(factor, FLOAT)}


def _wide(parameter: ir.Value) -> ir.DataType:
    """The type that the update of a parameter is computed in: float32 for 16 bits."""
    return DOUBLE if parameter.dtype == DOUBLE else FLOAT
