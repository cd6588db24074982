"""Gradients of Softmax, LogSoftmax and the losses."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import AttributeValue
from graphopt.passes.training.gradients.context import Context, Gradients, Kept, Operand, shape_of

_NOT_A_LABEL = -(2**31)


def softmax(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """From the result alone."""
    dy, y = dys[0], node.outputs[0]
    assert dy is not None
    shape = shape_of(y)
    axis = (node.attributes.get_int("axis", -1) or 0) % len(shape)
    return {0: lambda: ctx.result(f"{node.op_type}Gradient", [dy, y], {"axis": axis}, shape=shape)}


def keep_log_probabilities(ctx: Context, node: ir.Node) -> None:
    """loss = SoftmaxCrossEntropyLoss(..)  ->  loss, log_prob = SoftmaxCrossEntropyLoss(..), unless it has both."""
    if len(node.outputs) > 1:
        ctx.kept[node] = Kept((node.outputs[1],))
        return
    logits, loss = node.inputs[0], node.outputs[0]
    assert logits is not None
    attributes = {name: each.value for name, each in node.attributes.items()}
    results = ctx.results(
        "SoftmaxCrossEntropyLoss",
        node.inputs,
        attributes,
        outputs=[(shape_of(loss), loss.dtype), (shape_of(logits), logits.dtype)],
    )
    ctx.kept[node] = Kept((results[1],), {0: results[0]})


def cross_entropy(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """CrossEntropyGradient; what comes back through log_prob passes LogSoftmaxGradient."""
    logits, labels, weight = ([*node.inputs, None])[:3]
    assert logits is not None
    dloss, dlog = ([*dys, None])[:2]
    (log_prob,) = ctx.kept[node].values

    def emit() -> ir.Value | None:
        parts = []
        if dloss is not None:
            name = "CrossEntropyGradient" + ("" if weight is None else "Weighted")
            operands = [dloss, log_prob, labels, *([] if weight is None else [weight])]
            attributes: dict[str, AttributeValue] = {
                "reduction": node.attributes.get_string("reduction", "mean") or "mean",
                "ignore_index": node.attributes.get_int("ignore_index", _NOT_A_LABEL) or 0,
            }
            parts.append(ctx.result(name, operands, attributes, shape=shape_of(logits), dtype=logits.dtype))
        if dlog is not None:
            parts.append(ctx.result("LogSoftmaxGradient", [dlog, log_prob], {"axis": 1}, shape=shape_of(logits)))
        return parts[0] if len(parts) == 1 else ctx.op("Add", *parts)

    return {0: emit}


def likelihood(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """NegativeLogLikelihoodLoss: minus the weight at each label, over the sum of weights for the mean."""
    x, labels, weight = ([*node.inputs, None])[:3]
    dy = dys[0]
    assert x is not None
    assert labels is not None
    assert dy is not None
    reduction = node.attributes.get_string("reduction", "mean")
    shape = shape_of(x)
    rest = math.prod(shape[2:])
    rows = (shape[0], 1, rest)

    def emit() -> ir.Value:
        wide = ctx.reshape(labels, rows)
        counts = ctx.op("Not", ctx.op("Equal", wide, node.attributes.get_int("ignore_index", _NOT_A_LABEL) or 0))
        own: Operand = 1.0
        if weight is not None:
            known = ctx.where(counts, wide, 0)
            own = ctx.result("Gather", [weight, known], {"axis": 0}, shape=rows)
        one = ctx.number(1.0, x)
        weights = ctx.where(counts, own if isinstance(own, ir.Value) else one, 0.0)
        if reduction == "none":
            factor = ctx.op("Mul", weights, ctx.reshape(dy, rows))
        else:
            total = ctx.op("Div", weights, ctx.sum(weights, (0, 1, 2))) if reduction == "mean" else weights
            factor = ctx.op("Mul", total, dy)
        classes = ctx.constant(np.arange(shape[1], dtype=_numpy(labels)).reshape(1, -1, 1))
        chosen = ctx.op("And", ctx.op("Equal", wide, classes), counts)
        return ctx.reshape(ctx.where(chosen, ctx.op("Neg", factor), 0.0), shape)

    return {0: emit}


def _numpy(value: ir.Value) -> np.dtype[np.generic]:
    assert value.dtype is not None
    return value.dtype.numpy()
