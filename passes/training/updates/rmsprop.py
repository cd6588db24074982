"""RMSprop."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.training.step import Update


def rmsprop(update: Update) -> ir.Value:
    """The new weight, as `torch.optim.RMSprop` has it; Hinton 2012, lecture 6e.

    g = gradient + weight-decay * w        s = alpha * s + (1 - alpha) * g^2
    v = momentum * v + g / (sqrt(s) + epsilon)        w = w - lr * v
    """
    emit, gradient = update.emit, update.decayed()
    squares = update.state("squares")
    mean = squares.set(update.mix(squares.old, emit("Mul", gradient, gradient), update.option("alpha")))
    direction = emit("Div", gradient, emit("Add", emit("Sqrt", mean), update.option("epsilon")))
    if momentum := update.option("momentum"):
        velocity = update.state("momentum")
        direction = velocity.set(emit("Add", emit("Mul", velocity.old, momentum), direction))
    return emit("Sub", update.weight, emit("Mul", direction, update.rate))
