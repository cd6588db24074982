"""SoftmaxCrossEntropyLoss, NegativeLogLikelihoodLoss and the gradient of the cross entropy."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import relax

from graphopt.targets.common.converters.base import (
    OPAQUE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.kernels.training import losses

_NEVER = -(1 << 62)
"""No label: what `ignore_index` is where it is not given."""


def cross_entropy(log_softmax: Callable[[Context, relax.Expr], relax.Expr]) -> Converter:
    """SoftmaxCrossEntropyLoss: the logarithms of the probabilities, then the likelihood of the labels.

    Args:
        log_softmax: of rows [N, C].
    """

    def convert(c: Context, inputs: Inputs) -> Outputs:
        logits = inputs[0]
        shape = shape_of(logits)
        if dtype_of(logits) not in ("float32", "float64") or 0 in shape or len(shape) < 2:
            return NotImplemented
        n, classes, count = losses.places(shape)
        if count == 1:
            log_prob = c.reshape(log_softmax(c, c.reshape(logits, (n, classes))), shape)
        else:
            log_prob = c.builder.emit(relax.op.nn.log_softmax(logits, 1))
        loss = _likelihood(c, log_prob, inputs)
        return [loss, log_prob] if len(c.node.outputs) > 1 else loss

    return convert


def likelihood(c: Context, inputs: Inputs) -> Outputs:
    """NegativeLogLikelihoodLoss."""
    shape = shape_of(inputs[0])
    if dtype_of(inputs[0]) not in ("float32", "float64") or 0 in shape or len(shape) < 2:
        return NotImplemented
    return _likelihood(c, inputs[0], inputs)


def _likelihood(c: Context, log_prob: relax.Expr, inputs: Inputs) -> relax.Expr:
    labels, given = inputs[1], inputs[2] if len(inputs) > 2 else None
    n, classes, count = losses.places(shape_of(log_prob))
    reduction = c.text("reduction", "mean")
    flat = c.reshape(log_prob, (n, classes, count))
    marked = c.reshape(labels, (n, count))
    weight = _weights(c, marked, given, classes, dtype_of(log_prob))
    each = c.te("picked", losses.picked, flat, marked, weight, pattern=OPAQUE)
    if reduction == "none":
        return c.reshape(each, c.out_shape)
    arguments = [each, weight] if reduction == "mean" else [each]
    return c.reshape(c.te("loss", losses.total, *arguments, pattern=OPAQUE), c.out_shape)


def _weights(c: Context, labels: relax.Expr, given: relax.Expr | None, classes: int, dtype: str) -> relax.Expr:
    ignored = c.integer("ignore_index", _NEVER)
    arguments = [labels] if given is None else [labels, given]
    return c.te(
        "label_weights", lambda a, w=None: losses.weights(a, w, ignored, classes, dtype), *arguments, pattern=OPAQUE
    )


def cross_entropy_gradient(c: Context, inputs: Inputs) -> Outputs:
    """CrossEntropyGradient and CrossEntropyGradientWeighted."""
    dl, log_prob, labels = inputs[:3]
    given = inputs[3] if len(inputs) > 3 else None
    shape, dtype = shape_of(log_prob), dtype_of(log_prob)
    if dtype not in ("float32", "float64") or 0 in shape or dtype_of(dl) != dtype:
        return NotImplemented
    n, classes, count = losses.places(shape)
    marked = c.reshape(labels, (n, count))
    weight = _weights(c, marked, given, classes, dtype)
    single = math.prod(shape_of(dl)) == 1
    arguments = [weight, c.reshape(dl, (1,) if single else (n, count))]
    if c.text("reduction", "mean") == "mean":
        arguments.append(c.te("weight_sum", losses.total, weight, pattern=OPAQUE))
    factor = c.te("coefficients", lambda w, g, d=None: losses.coefficients(w, g, d), *arguments, pattern=OPAQUE)
    flat = c.reshape(log_prob, (n, classes, count))
    return c.reshape(c.te("cross_entropy_gradient", losses.gradient, flat, marked, factor, pattern=OPAQUE), shape)
