"""LARS: a learning rate for each layer."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.training.step import Update


def lars(update: Update) -> ir.Value:
    """The new weight; You et al. 2017, "Large batch training of convolutional networks", algorithm 1.

        r = trust * |w| / (|g| + weight-decay * |w|)
        v = momentum * v + lr * r * (g + weight-decay * w)        w = w - v

    Norms are over one parameter. r is 1 where a norm is zero, so that weights that begin at zero learn.
    """
    emit, rate = update.emit, update.rate
    if not update.exempt:
        weight, gradient = update.norm(update.weight), update.norm(update.gradient)
        decay = update.option("weight-decay")
        divisor = emit("Add", gradient, emit("Mul", weight, decay)) if decay else gradient
        ratio = emit("Div", emit("Mul", weight, update.option("trust")), divisor)
        rate = emit("Mul", rate, where_positive(update, weight, gradient, ratio))
    velocity = update.state("momentum")
    step = emit("Mul", update.decayed(), rate)
    moved = velocity.set(emit("Add", emit("Mul", velocity.old, update.option("momentum")), step))
    return emit("Sub", update.weight, moved)


def where_positive(update: Update, first: ir.Value, second: ir.Value, ratio: ir.Value) -> ir.Value:
    """`ratio` where both norms are above zero, else 1."""
    emit = update.emit
    both = emit("And", emit("Greater", first, 0.0), emit("Greater", second, 0.0))
    return emit("Where", both, ratio, 1.0)
