"""What the updates of a training step share, and what the formula of an optimizer is given for one parameter."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt import ops
from graphopt.graph.edit import Editor, dims
from graphopt.graph.state import NEXT, Role, mark
from graphopt.passes.training.emit import Emitter, Numbers

LEARNING_RATE = "lr"
"""The input of a step model that is the learning rate, a float32 scalar."""
UPDATES = "graphopt.updates"
"""The state value that counts the updates made, an int64 scalar; steps that skip the update do not count."""

DOUBLE = ir.DataType.DOUBLE
HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class Rounding(enum.StrEnum):
    """How a float32 number becomes one of 16 bits."""

    NEAREST = "nearest"
    STOCHASTIC = "stochastic"


class Step:
    """Options, learning rate, and scalars that are computed once in a step, in float64 before the first node.

    Float64, because 1 - beta^t of the first steps would keep only four digits in float32.
    """

    def __init__(
        self,
        editor: Editor,
        options: Mapping[str, float],
        rate: ir.Value,
        rounding: Rounding = Rounding.NEAREST,
        *,
        half_state: bool = False,
    ) -> None:
        """`options` are those of the formula, `rate` is the learning rate.

        `rounding` is that of what is stored in 16 bits; with `half_state` that is optimizer state too.
        """
        self.rounding = rounding
        self.half_state = half_state
        self._seeds = 0
        self.editor = editor
        self.options = options
        self.numbers = Numbers(editor)
        self._first = next(iter(editor.graph), None)
        self._rate = rate
        self._scalars: dict[tuple[str, ir.DataType], ir.Value] = {}

    def emitter(self, before: ir.Node | None, prefix: str) -> Emitter:
        """Emits before the node `before`, at the end for None."""
        return Emitter(self.editor, self.numbers, before, prefix)

    def rate(self, dtype: ir.DataType) -> ir.Value:
        """The learning rate as `dtype`."""
        return self._once("step.rate", dtype, lambda emit: emit.cast(self._rate, dtype))

    def scalar(self, name: str, dtype: ir.DataType, build: Callable[[Emitter], ir.Value]) -> ir.Value:
        """The float64 scalar that `build` emits when it is first asked for, as `dtype`."""
        wide = self._once(name, DOUBLE, build)
        return self._once(name, dtype, lambda emit: emit.cast(wide, dtype))

    def wide(self, value: ir.Value, name: str) -> ir.Value:
        """The scalar `value`, which exists before the first node, in float64; `name` is its own."""
        return self._once(name, DOUBLE, lambda emit: emit.cast(value, DOUBLE))

    def updates(self) -> ir.Value:
        """The number t of this update, from 1 on, an int64 scalar."""

        def build(emit: Emitter) -> ir.Value:
            before = self.new_state(UPDATES, np.zeros((), np.int64), Role.COUNTER)
            after = emit("Add", before, 1)
            self.becomes(before, after)
            return after

        return self._once("step.updates", ir.DataType.INT64, build)

    def count(self) -> ir.Value:
        """`updates` in float64."""
        return self.wide(self.updates(), "step.count")

    def narrow(self, emit: Emitter, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """`value` as the type that is stored; 16 bits are rounded as `rounding` says, each value with its own seed."""
        if dtype not in HALVES or value.dtype == dtype or self.rounding is Rounding.NEAREST:
            return emit.cast(value, dtype)
        self._seeds += 1
        return emit(
            "StochasticCast",
            value,
            self.updates(),
            dtype=dtype,
            shape=dims(value) or (),
            domain=ops.DOMAIN,
            seed=self._seeds,
            to=dtype.value,
        )

    def _once(self, name: str, dtype: ir.DataType, build: Callable[[Emitter], ir.Value]) -> ir.Value:
        if (name, dtype) not in self._scalars:
            self._scalars[name, dtype] = build(self.emitter(self._first, name))
        return self._scalars[name, dtype]

    def new_state(self, name: str, start: np.ndarray, role: Role) -> ir.Value:
        """A state value that is `start` before the first step."""
        value = self.editor.constant(start, name)
        mark(value, role)
        return value

    def becomes(self, state: ir.Value, new: ir.Value) -> None:
        """Make `new` the value of `state` after the step: a graph output `<state>.next`."""
        new.name = self.editor.fresh(f"{state.name}.next")
        state.metadata_props[NEXT] = new.name
        self.editor.graph.outputs.append(new)


class Update:
    """One parameter, its gradient and its optimizer state, in the type that the update is computed in.

    `exempt` parameters take no weight decay, and no layer-wise adaption of the learning rate.
    """

    def __init__(self, step: Step, emit: Emitter, parameter: ir.Value, gradient: ir.Value, *, exempt: bool) -> None:
        """`gradient` has the type to compute in."""
        assert gradient.dtype is not None
        self.step = step
        self.emit = emit
        self.parameter = parameter
        self.gradient = gradient
        self.dtype = gradient.dtype
        self.weight = emit.cast(parameter, self.dtype)
        self.exempt = exempt

    def option(self, name: str) -> float:
        """An option of the formula; the weight decay of an exempt parameter is 0."""
        return 0.0 if self.exempt and name == "weight-decay" else self.step.options[name]

    @property
    def rate(self) -> ir.Value:
        """The learning rate."""
        return self.step.rate(self.dtype)

    def scalar(self, name: str, build: Callable[[Emitter], ir.Value]) -> ir.Value:
        """`Step.scalar` in the type of this update."""
        return self.step.scalar(f"step.{name}", self.dtype, build)

    def state(self, name: str) -> State:
        """The optimizer state `<parameter>.<name>`, zeros before the first step."""
        extents = dims(self.parameter)
        assert extents is not None
        own = self.parameter.dtype
        kind = own if own is not None and self.step.half_state else self.dtype
        zeros = np.zeros(extents, kind.numpy())
        stored = self.step.new_state(f"{self.parameter.name}.{name}", zeros, Role.OPTIMIZER)
        return State(self, stored)

    def decayed(self) -> ir.Value:
        """gradient + weight-decay * weight, as an L2 penalty adds it."""
        decay = self.option("weight-decay")
        if not decay:
            return self.gradient
        return self.emit("Add", self.gradient, self.emit("Mul", self.weight, decay))

    def mix(self, old: ir.Value, new: ir.Value, beta: float) -> ir.Value:
        """beta * old + (1 - beta) * new."""
        return self.emit("Add", self.emit("Mul", old, beta), self.emit("Mul", new, 1 - beta))

    def norm(self, value: ir.Value) -> ir.Value:
        """The L2 norm of a tensor, a scalar."""
        return self.emit("ReduceL2", value, shape=(), keepdims=0)


class State:
    """A state of the optimizer: `old` before the step, `set` after it."""

    def __init__(self, update: Update, stored: ir.Value) -> None:
        """`stored` is the initializer."""
        self._update = update
        self._stored = stored
        self.old = update.emit.cast(stored, update.dtype)

    def set(self, new: ir.Value) -> ir.Value:
        """Make `new` the value after the step, rounded to the type of the state; returns `new`, which is not."""
        step, kind = self._update.step, self._stored.dtype
        assert kind is not None
        step.becomes(self._stored, step.narrow(self._update.emit, new, kind))
        return new
