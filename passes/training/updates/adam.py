"""Adam, AdamW, and the direction that LAMB shares with them."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.training.emit import Emitter
from graphopt.passes.training.step import Update


def adam(update: Update) -> ir.Value:
    """The new weight, as `torch.optim.Adam` has it; Kingma and Ba 2015. Weight decay is added to the gradient.

    w = w - lr * m' / (sqrt(v') + epsilon)
    """
    return _adam(update, update.decayed(), update.weight)


def adamw(update: Update) -> ir.Value:
    """The new weight, as `torch.optim.AdamW` has it; Loshchilov and Hutter 2019: the weight itself decays.

    w = w - lr * weight-decay * w - lr * m' / (sqrt(v') + epsilon)
    """
    weight = update.weight
    if decay := update.option("weight-decay"):

        def kept(emit: Emitter) -> ir.Value:
            return emit("Sub", 1.0, emit("Mul", update.step.rate(ir.DataType.DOUBLE), decay))

        weight = update.emit("Mul", weight, update.scalar("kept", kept))
    return _adam(update, update.gradient, weight)


def _adam(update: Update, gradient: ir.Value, weight: ir.Value) -> ir.Value:
    mean, deviation = moments(update, gradient)

    def rate(emit: Emitter) -> ir.Value:
        return emit("Div", update.step.rate(ir.DataType.DOUBLE), correction(update, "beta1", emit))

    emit = update.emit
    return emit("Sub", weight, emit("Mul", emit("Div", mean, deviation), update.scalar("corrected_rate", rate)))


def moments(update: Update, gradient: ir.Value) -> tuple[ir.Value, ir.Value]:
    """m, not corrected for its start at zero, and sqrt(v') + epsilon of the corrected second moment.

    m = beta1 * m + (1 - beta1) * g        v = beta2 * v + (1 - beta2) * g^2        v' = v / (1 - beta2^t)
    """

    def scale(emit: Emitter) -> ir.Value:
        return emit("Reciprocal", emit("Sqrt", correction(update, "beta2", emit)))

    emit = update.emit
    first, second = update.state("mean"), update.state("squares")
    mean = first.set(update.mix(first.old, gradient, update.option("beta1")))
    squares = second.set(update.mix(second.old, emit("Mul", gradient, gradient), update.option("beta2")))
    corrected = emit("Mul", emit("Sqrt", squares), update.scalar("scale", scale))
    return mean, emit("Add", corrected, update.option("epsilon"))


def correction(update: Update, name: str, emit: Emitter) -> ir.Value:
    """1 - beta^t in float64, for the option `name`."""
    return emit("Sub", 1.0, emit("Pow", update.option(name), update.step.count()))
