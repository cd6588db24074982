"""LAMB: Adam with a learning rate for each layer."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.passes.training.emit import Emitter
from graphopt.passes.training.step import Update
from graphopt.passes.training.updates.adam import correction, moments
from graphopt.passes.training.updates.lars import where_positive


def lamb(update: Update) -> ir.Value:
    """The new weight; You et al. 2020, "Large batch optimization for deep learning", algorithm 2.

    u = m' / (sqrt(v') + epsilon) + weight-decay * w        w = w - lr * |w| / |u| * u

    m' and v' are Adam's. Norms are over one parameter; their ratio is 1 where one of them is zero.
    """

    def scale(emit: Emitter) -> ir.Value:
        return emit("Reciprocal", correction(update, "beta1", emit))

    emit, rate = update.emit, update.rate
    mean, deviation = moments(update, update.gradient)
    direction = emit("Div", emit("Mul", mean, update.scalar("mean_scale", scale)), deviation)
    if decay := update.option("weight-decay"):
        direction = emit("Add", direction, emit("Mul", update.weight, decay))
    if not update.exempt:
        weight, change = update.norm(update.weight), update.norm(direction)
        rate = emit("Mul", rate, where_positive(update, weight, change, emit("Div", weight, change)))
    return emit("Sub", update.weight, emit("Mul", direction, rate))
