"""Adagrad."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.training.step import Update


def adagrad(update: Update) -> ir.Value:
    """The new weight, as `torch.optim.Adagrad` has it; Duchi et al. 2011.

    g = gradient + weight-decay * w        s = s + g^2        w = w - lr * g / (sqrt(s) + epsilon)
    """
    emit, gradient = update.emit, update.decayed()
    squares = update.state("squares")
    total = squares.set(emit("Add", squares.old, emit("Mul", gradient, gradient)))
    scale = emit("Add", emit("Sqrt", total), update.option("epsilon"))
    return emit("Sub", update.weight, emit("Div", emit("Mul", gradient, update.rate), scale))
