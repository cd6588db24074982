"""Add up the gradients of several micro-batches, and update once."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph.constness import is_input
from graphopt.graph.edit import Editor, dims, is_op, nbytes
from graphopt.graph.segments import read_by
from graphopt.graph.state import Role, role, states
from graphopt.passes.training.emit import Emitter
from graphopt.passes.training.gate import Select, gate, is_update, updated
from graphopt.passes.training.parameters import Places, new_input
from graphopt.passes.training.step import DOUBLE, LEARNING_RATE, Step
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal, option

APPLY = "apply"
"""The input of a step model that says whether this micro-batch is the last before an update, a bool scalar."""
PIECES = "graphopt.pieces"
"""The state value that counts the micro-batches in the sums, an int64 scalar."""


class Reduction(enum.StrEnum):
    """What the loss is over the examples of a batch."""

    MEAN = "mean"
    SUM = "sum"


@dataclass(frozen=True)
class Microbatch(Pass):
    """Gradients add up over `count` micro-batches; the update is made where the new input `apply` is true.

        w.next = Sub(w, Mul(gradient, lr))
        ->   w.sum.next = Add(Where(pieces == 0, 0, w.sum), gradient / count)
             w.next = If(apply)<then: Sub(w, Mul(w.sum.next * count / pieces, lr)), else: Identity(w)>

    It runs after `optimizer`, on a model whose batch axis is that of one micro-batch. With a loss that is a mean, the
    micro-batches of one update equal one step on all of them, but for rounding and for batch statistics, which are
    those of each piece. `count` is what one update usually has: fewer or more are averaged right as well, so that the
    rest of an epoch counts in full. Sums are float32, or with `half-sums` of the type of a 16-bit gradient. Counters
    that the update does not move (of random numbers) move in each micro-batch.
    """

    name: ClassVar[str] = "microbatch"

    count: int = option(1, "micro-batches of an update; 1 leaves the model as it is")
    reduction: Reduction = option(Reduction.MEAN, "what the loss is over a batch")
    half_sums: bool = option(False, "sums of 16-bit gradients have 16 bits too")
    select: Select = option(Select.IF, "if: the update is skipped; where: it is computed and not taken (GPUs)")

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            GraphoptError: the count is not positive.
        """
        if self.count < 1:
            raise GraphoptError(f"the count of micro-batches must be from 1 on, not {self.count}")

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph.

        Raises:
            ModelError: no parameter is updated, or the name `apply` is taken.
        """
        if self.count == 1:
            return PassResult(model, False)
        if PIECES in model.graph.initializers:
            return PassResult(model, False, (Refusal(PIECES, "the model adds up gradients already"),))
        pairs = updated(model.graph)
        if not pairs:
            raise ModelError("microbatch finds no update to put off; run optimizer before it")
        gradients = _gradients(model.graph)
        editor = Editor(model, self.name)
        apply = new_input(editor, APPLY, ir.DataType.BOOL)
        step = Step(editor, {}, apply)
        places = Places(model.graph)
        pieces = step.new_state(PIECES, np.zeros((), np.int64), Role.COUNTER)
        front = step.emitter(next(iter(model.graph)), "pieces")
        first = front("Equal", pieces, 0)
        counted = front("Add", pieces, 1)
        share = front("Div", float(self.count), front.cast(counted, DOUBLE))
        narrow = front.cast(share, ir.DataType.FLOAT)
        for gradient, readers in gradients.items():
            emit = step.emitter(places.after(gradient), str(gradient.name).removesuffix(".gradient"))
            total = self._sum(step, emit, gradient, first)
            if self.reduction is Reduction.MEAN:
                total = emit("Mul", total, share if total.dtype == DOUBLE else narrow)
            _connect(editor, gradient, total, readers)
        step.becomes(pieces, front("Where", apply, 0, counted))
        gate(step.emitter(None, self.name), apply, pairs, self.select)
        sums = [value for value in states(model.graph) if role(value) is Role.GRADIENT]
        note = f"an update for {self.count} micro-batches; sums of gradients of {sum(map(nbytes, sums)) / 1e6:.4g} MB"
        return PassResult(model, True, notes=(note,))

    def _sum(self, step: Step, emit: Emitter, gradient: ir.Value, first: ir.Value) -> ir.Value:
        """The sum of the gradients up to now, where each counts as 1 / count of a mean."""
        double = gradient.dtype == ir.DataType.DOUBLE
        wide = ir.DataType.DOUBLE if double else ir.DataType.FLOAT
        kind = gradient.dtype if self.half_sums else wide
        assert kind is not None
        extents = dims(gradient)
        if extents is None:
            raise ModelError(f"the gradient {gradient.name} has no static shape; give the model one before microbatch")
        stored = step.new_state(f"{emit.prefix}.sum", np.zeros(extents, kind.numpy()), Role.GRADIENT)
        before = emit.cast(emit("Where", first, 0.0, stored), wide)
        added = emit.cast(gradient, wide)
        if self.reduction is Reduction.MEAN:
            added = emit("Mul", added, 1 / self.count)
        total = emit("Add", before, added)
        step.becomes(stored, emit.cast(total, kind))
        return total


def _gradients(graph: ir.Graph) -> dict[ir.Value, list[ir.Node]]:
    """What the update reads of the rest of the model, by what it is read."""
    found: dict[ir.Value, list[ir.Node]] = {}
    for node in filter(is_update, graph):
        for value in dict.fromkeys(read_by(node)):
            producer = value.producer()
            given = is_input(value) and value.name != LEARNING_RATE
            if given or (producer is not None and not is_update(producer)):
                found.setdefault(value, []).append(node)
    return found


def _connect(editor: Editor, gradient: ir.Value, mean: ir.Value, readers: list[ir.Node]) -> None:
    """Let `readers` read `mean` instead of `gradient`; a Cast to its type is left out."""
    for node in readers:
        if is_op(node, "Cast") and node.outputs[0].dtype == mean.dtype:
            node.outputs[0].replace_all_uses_with(mean)
            editor.graph.remove(node, safe=True)
            continue
        for user, index in tuple(gradient.uses()):
            if user is node or user.graph is not editor.graph and is_update(user):
                user.replace_input_with(index, mean)
