"""Add the update of all parameters to a model with gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.graph.edit import Editor
from graphopt.graph.state import GRADIENT, NEXT, Role, role, states
from graphopt.passes.training.clip import Clip
from graphopt.passes.training.gate import Select, gate, updated
from graphopt.passes.training.loss_scale import CLEAN, SCALE, adapt_scale, scale_of, unscale_loss
from graphopt.passes.training.parameters import Places, gradients_of, matching, new_input
from graphopt.passes.training.step import LEARNING_RATE, Rounding, Step, Update
from graphopt.passes.training.updates.table import FORMULAS, Kind
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option, suggest

NOTHING = "no parameter has a gradient to follow; run differentiate first"


@dataclass(frozen=True)
class Optimizer(Pass):
    """Every parameter with a gradient gets an update, and the learning rate becomes the input `lr`.

        outputs: loss, w.gradient   ->   w.next = Sub(w, Mul(w.gradient, lr))      outputs: loss, w.next

    The update of a parameter stands where its gradient exists and nothing else reads the parameter any more, so that it
    can be made in place, unless `clip-norm` needs all gradients first. It is elementwise, in float32 for parameters of
    16 bits; what all parameters share is computed once. Gradients of a scaled loss (mixed-precision) are scaled back,
    and where they overflow the step changes nothing but the scale. Formulas and defaults are PyTorch's, and those of
    the papers for lars and lamb: `passes/training/updates/`. A parameter without a gradient stays as it is.
    """

    name: ClassVar[str] = "optimizer"

    kind: Kind = option(Kind.SGD, "the formula of the update")
    momentum: float | None = option(None, "share of the last direction that is kept; sgd, rmsprop: 0, lars: 0.9")
    dampening: float | None = option(None, "share of the gradient that momentum leaves out; sgd: 0")
    nesterov: bool = option(False, "look ahead along the momentum; sgd")
    alpha: float | None = option(None, "share of the mean square that is kept; rmsprop: 0.99")
    beta1: float | None = option(None, "share of the mean that is kept; adam, adamw, lamb: 0.9")
    beta2: float | None = option(None, "share of the mean square that is kept; adam, adamw, lamb: 0.999")
    epsilon: float | None = option(None, "added to the divisor; adam, adamw, rmsprop: 1e-8, lamb: 1e-6, adagrad: 1e-10")
    trust: float | None = option(None, "step of a layer relative to its weights; lars: 0.001")
    weight_decay: float | None = option(None, "share of a weight added to its gradient; adamw: 0.01, others: 0")
    decay_skip: str = option(
        "", "parameters that do not decay: vectors (biases, norms), patterns (*.bias), with + between"
    )
    clip_value: float | None = option(None, "largest absolute element of a gradient")
    clip_norm: float | None = option(None, "largest L2 norm of all gradients together")
    rounding: Rounding = option(
        Rounding.NEAREST, "of parameters and state of 16 bits: nearest, or up or down at random"
    )
    half_state: bool = option(False, "optimizer state of 16-bit parameters has 16 bits too")
    select: Select = option(Select.IF, "how an overflow skips the update: if, or where, which computes it all the same")

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            GraphoptError: one is out of range, or unknown to the formula.
        """
        for name, value in self._given().items():
            if name not in FORMULAS[self.kind].defaults:
                reason = suggest(name, FORMULAS[self.kind].defaults)
                raise GraphoptError(f"the optimizer {self.kind} has no {name}; {reason}")
            if value < 0 or (name in ("beta1", "beta2", "alpha") and value >= 1):
                limit = "from 0 up to below 1" if name in ("beta1", "beta2", "alpha") else "from 0 on"
                raise GraphoptError(f"{name} of the optimizer must be a number {limit}, not {value:g}")
        if self.nesterov and not (self.momentum and not self.dampening):
            raise GraphoptError("nesterov needs a momentum above 0 and no dampening")
        for name, most in (("clip-value", self.clip_value), ("clip-norm", self.clip_norm)):
            if most is not None and most <= 0:
                raise GraphoptError(f"{name} must be above 0, not {most:g}; leave it out to clip nothing")

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph.

        Raises:
            GraphoptError: `decay-skip` names no parameter.
            ModelError: a gradient is missing or of another shape than its parameter, or the name `lr` is taken.
        """
        parameters = [value for value in states(model.graph) if role(value) is Role.PARAMETER]
        exempt = matching(self.decay_skip, parameters)
        gradients = gradients_of(parameters, model.graph)
        refusals = tuple(Refusal(str(value.name), _idle(value)) for value in parameters if value not in gradients)
        if not gradients:
            done = any(NEXT in value.metadata_props for value in parameters)
            return PassResult(model, False, refusals, notes=() if done else (NOTHING,))
        editor = Editor(model, self.name)
        scale = scale_of(model.graph)
        if scale is not None:
            unscale_loss(editor)
        places = Places(model.graph)
        rate = new_input(editor, LEARNING_RATE, ir.DataType.FLOAT)
        step = Step(editor, self._options(), rate, self.rounding, half_state=self.half_state)
        clip = Clip(step, self.clip_value, self.clip_norm, scale)
        for parameter, gradient in gradients.items():
            clip.take(parameter, gradient, places.after(gradient), places.after(gradient, parameter))
            del parameter.metadata_props[GRADIENT]
        for output in dict.fromkeys(gradients.values()):
            model.graph.outputs.remove(output)
        for parameter, gradient, before in clip.clipped():
            emit = step.emitter(before, str(parameter.name))
            update = Update(step, emit, parameter, gradient, exempt=parameter in exempt)
            new = FORMULAS[self.kind].new(update)
            step.becomes(parameter, step.narrow(emit, new, parameter.dtype or update.dtype))
        if clip.finite is not None:
            adapt_scale(step, step.emitter(None, "loss_scale"), clip.finite)
            kept = {CLEAN, SCALE}
            pairs = {state: new for state, new in updated(model.graph).items() if state.name not in kept}
            gate(step.emitter(None, "finite"), clip.finite, pairs, self.select)
        return PassResult(model, True, refusals)

    def _given(self) -> dict[str, float]:
        """The options of the formula that were given, by their spelling."""
        names = ("momentum", "dampening", "alpha", "beta1", "beta2", "epsilon", "trust", "weight_decay")
        given = {name.replace("_", "-"): getattr(self, name) for name in names}
        found = {name: value for name, value in given.items() if value is not None}
        return {**found, "nesterov": 1.0} if self.nesterov else found

    def _options(self) -> dict[str, float]:
        return {**FORMULAS[self.kind].defaults, **self._given()}


def _idle(parameter: ir.Value) -> str:
    if NEXT in parameter.metadata_props:
        return "it has an update already"
    return "it has no gradient, so it stays as it is; differentiate gives one to parameters that the loss depends on"
