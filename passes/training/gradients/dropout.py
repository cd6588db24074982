"""Dropout in training: a mask that depends on its seed and the step alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from graphopt.graph.edit import array_of, scalar_of
from graphopt.passes.training.gradients.context import Context, Gradients, Kept, shape_of

Counter = Callable[[], ir.Value]
"""The state value that counts steps, added to the model when first asked for."""

_RATIO = 0.5


def trains(node: ir.Node) -> bool:
    """Whether a Dropout drops anything: its mode is a constant true."""
    mode = array_of(node.inputs[2]) if len(node.inputs) > 2 else None
    return mode is not None and bool(mode.reshape(()))


def _ratio(node: ir.Node) -> float | None:
    given = node.inputs[1] if len(node.inputs) > 1 else None
    return _RATIO if given is None else scalar_of(given)


def check(node: ir.Node) -> str | None:
    """Ratio and mode are constants."""
    mode = node.inputs[2] if len(node.inputs) > 2 else None
    if mode is not None and array_of(mode) is None:
        return "its training mode is not a constant"
    ratio = _ratio(node)
    return None if ratio is not None and 0 <= ratio <= 1 else "its ratio is not a constant from 0 to 1"


def keep_mask(counter: Counter, seeds: Callable[[], int]) -> Callable[[Context, ir.Node], None]:
    """What Dropout in training becomes.

    Y, mask = Dropout(X, ratio, true)
      ->  mask = DropoutMask(step, shape) {ratio, seed}    Y = Where(mask, X / (1 - ratio), 0)
    """

    def keep(ctx: Context, node: ir.Node) -> None:
        x, ratio = node.inputs[0], _ratio(node)
        assert x is not None
        if ratio is None or check(node) is not None:
            return
        shape = shape_of(x)
        mask = ctx.result(
            "DropoutMask",
            [counter(), ctx.ints(shape)],
            {"ratio": ratio, "seed": seeds()},
            shape=shape,
            dtype=ir.DataType.BOOL,
        )
        outputs = {0: ctx.where(mask, ctx.op("Mul", x, _factor(ratio)), 0.0)}
        if len(node.outputs) > 1:
            outputs[1] = mask
        ctx.kept[node] = Kept((mask,), outputs)

    return keep


def _factor(ratio: float) -> float:
    return 1.0 / (1.0 - ratio) if ratio < 1 else 0.0


def dropout(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """What was dropped has no gradient."""
    dy = dys[0]
    if dy is None:
        return {}
    if node not in ctx.kept:
        return {0: lambda: dy}
    (mask,) = ctx.kept[node].values
    return {0: lambda: ctx.where(mask, ctx.op("Mul", dy, _factor(_ratio(node) or 0.0)), 0.0)}
