"""Stochastic gradient descent, with momentum and Nesterov's form of it."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.training.emit import Emitter
from graphopt.passes.training.step import DOUBLE, Update


def sgd(update: Update) -> ir.Value:
    """The new weight, as `torch.optim.SGD` has it.

        g = gradient + weight-decay * w        v = momentum * v + (1 - dampening) * g, at first v = g
        w = w - lr * v                         with Nesterov: w - lr * (g + momentum * v)

    Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning", with lr outside of v.
    """
    emit, direction = update.emit, update.decayed()
    if momentum := update.option("momentum"):
        velocity = update.state("momentum")
        damped = direction
        if dampening := update.option("dampening"):

            def share(emit: Emitter) -> ir.Value:
                first = emit("Equal", update.step.count(), 1.0)
                return emit("Where", first, 1.0, 1 - dampening, dtype=DOUBLE)

            damped = emit("Mul", direction, update.scalar("share", share))
        moved = velocity.set(emit("Add", emit("Mul", velocity.old, momentum), damped))
        direction = emit("Add", direction, emit("Mul", moved, momentum)) if update.option("nesterov") else moved
    return emit("Sub", update.weight, emit("Mul", direction, update.rate))
