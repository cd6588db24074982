"""The optimizers: formula and options of each, with their defaults, which are PyTorch's where it has the optimizer."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.passes.training.step import Update
from graphopt.passes.training.updates.adagrad import adagrad
from graphopt.passes.training.updates.adam import adam, adamw
from graphopt.passes.training.updates.lamb import lamb
from graphopt.passes.training.updates.lars import lars
from graphopt.passes.training.updates.rmsprop import rmsprop
from graphopt.passes.training.updates.sgd import sgd


class Kind(enum.StrEnum):
    """The optimizers by name."""

    SGD = "sgd"
    ADAGRAD = "adagrad"
    RMSPROP = "rmsprop"
    ADAM = "adam"
    ADAMW = "adamw"
    LARS = "lars"
    LAMB = "lamb"


@dataclass(frozen=True)
class Formula:
    """`new(update)` emits the new weight; `defaults` are the options that it knows."""

    new: Callable[[Update], ir.Value]
    defaults: Mapping[str, float]


_BETAS = {"beta1": 0.9, "beta2": 0.999}

FORMULAS: Mapping[Kind, Formula] = {
    Kind.SGD: Formula(sgd, {"momentum": 0.0, "dampening": 0.0, "nesterov": 0.0, "weight-decay": 0.0}),
    Kind.ADAGRAD: Formula(adagrad, {"epsilon": 1e-10, "weight-decay": 0.0}),
    Kind.RMSPROP: Formula(rmsprop, {"alpha": 0.99, "epsilon": 1e-8, "momentum": 0.0, "weight-decay": 0.0}),
    Kind.ADAM: Formula(adam, {**_BETAS, "epsilon": 1e-8, "weight-decay": 0.0}),
    Kind.ADAMW: Formula(adamw, {**_BETAS, "epsilon": 1e-8, "weight-decay": 0.01}),
    Kind.LARS: Formula(lars, {"momentum": 0.9, "trust": 0.001, "weight-decay": 0.0}),
    Kind.LAMB: Formula(lamb, {**_BETAS, "epsilon": 1e-6, "weight-decay": 0.0}),
}
