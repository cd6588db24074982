"""Reverse mode: a model with a loss becomes one graph of the forward and the backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import DifferentiationError
from graphopt.graph import state
from graphopt.graph.constness import is_state
from graphopt.graph.edit import Editor, is_op
from graphopt.passes.training.flow import Flow, find_loss, trace
from graphopt.passes.training.gradients import dropout, moves, normalization, unroll
from graphopt.passes.training.gradients.context import Context
from graphopt.passes.training.gradients.table import RULES
from graphopt.pipeline.pass_base import Pass, PassResult, option

COUNTER = "graphopt.step"
"""The state value that counts steps, where something in the model is random."""


@dataclass(frozen=True)
class Differentiate(Pass):
    """Add the gradients of the loss by all parameters.

        loss = f(x, w)   w: parameter  ->  loss, w.gradient = f(x, w), df/dw     w: graphopt.gradient = w.gradient

    The loss is the output that `loss` marked. The backward pass follows the forward pass, in standard operators and
    functions of graphopt; each of its nodes is of phase input-gradient, or weight-gradient if no other layer waits for
    it. Training BatchNormalization and Dropout are taken apart, so that statistics and masks are kept, and operators
    on the way of a gradient are replaced where others keep less (MaxPool) or more (LSTM, GRU).
    """

    name: ClassVar[str] = "differentiate"

    unbiased: bool = option(True, "running variances are unbiased as PyTorch's; ONNX takes those of the batch")
    seed: int = option(0, "seed of the masks of Dropout")

    def call(self, model: ir.Model) -> PassResult:
        """Differentiate the main graph.

        Raises:
            DifferentiationError: no scalar loss is marked, no parameter reaches it, or operators between have no
                gradient; names all of these.
        """
        graph = model.graph
        parameters = [value for value in state.states(graph) if state.role(value) is state.Role.PARAMETER]
        if any(state.GRADIENT in value.metadata_props for value in parameters):
            return PassResult(model, False, notes=("the model has its gradients already",))
        loss = find_loss(graph)
        flow = trace(graph, loss, parameters)
        editor = Editor(model, self.name)
        if recurrences := [node for node in flow.nodes if unroll.applies(node)]:
            for node in recurrences:
                unroll.unroll(editor, node)
            flow = trace(graph, loss, parameters)
        ctx = Context(editor)
        self._prepare(ctx, flow)
        gradients = _backward(ctx, flow, loss)
        reached = [value for value in parameters if value in gradients]
        if not reached:
            raise DifferentiationError(_unreached(loss, parameters))
        _publish(ctx, reached, gradients)
        _drop_unused(ctx)
        _set_phases(ctx, flow, gradients)
        for node, kept in ctx.kept.items():
            for place, new in kept.outputs.items():
                editor.replace(node.outputs[place], new)
            if kept.outputs:
                editor.erase(node)
        missed = [str(value.name) for value in parameters if value not in gradients]
        notes = (
            (f"the loss does not depend on {', '.join(missed)}; training leaves them as they are",) if missed else ()
        )
        return PassResult(model, True, notes=notes)

    def _prepare(self, ctx: Context, flow: Flow) -> None:
        """Let forward nodes keep what their rules need; those that are random or have statistics, all of them."""
        numbers = iter(range(1 << 30))
        counter: list[ir.Value] = []

        def counting() -> ir.Value:
            counter[:] = counter or [_counter(ctx.editor)]
            return counter[0]

        statistics = normalization.batch_statistics(self.unbiased)
        mask = dropout.keep_mask(counting, lambda: self.seed * 65_537 + next(numbers))
        on_the_way = set(flow.nodes)
        for node in list(ctx.editor.graph):
            prepare = None
            if is_op(node, "BatchNormalization") and normalization.trains(node):
                prepare = statistics
            elif is_op(node, "Dropout") and dropout.trains(node):
                prepare = mask
            elif node in on_the_way:
                prepare = RULES[node.op_type].prepare
            if prepare is not None:
                with ctx.forward(node):
                    prepare(ctx, node)


def _counter(editor: Editor) -> ir.Value:
    """A state value that is 0 in the first step and one more in each that follows."""
    known = editor.graph.initializers.get(COUNTER)
    if known is not None:
        return known
    value = editor.constant(np.array(0, np.int64), COUNTER)
    state.mark(value, state.Role.COUNTER)
    one = editor.constant(np.array(1, np.int64), f"{COUNTER}.one")
    (after,) = editor.emit(
        None, "Add", [value, one], outputs=[(f"{COUNTER}.next", (), ir.DataType.INT64)], name=f"{COUNTER}.count"
    )
    node = after.producer()
    assert node is not None
    node.metadata_props[state.PHASE] = state.Phase.UPDATE.value
    editor.graph.outputs.append(after)
    value.metadata_props[state.NEXT] = str(after.name)
    return value


def _backward(ctx: Context, flow: Flow, loss: ir.Value) -> dict[ir.Value, ir.Value]:
    """The gradient of the loss by each value on the way from a parameter to it."""
    assert loss.dtype is not None
    one = np.ones(loss.shape.numpy() if loss.shape is not None else (), loss.dtype.numpy())
    gradients = {loss: ctx.editor.constant(one, f"{loss.name}.gradient")}

    def add(value: ir.Value, part: ir.Value) -> None:
        gradients[value] = ctx.op("Add", gradients[value], part) if value in gradients else part

    for node in reversed(flow.nodes):
        for output in node.outputs:
            if output in ctx.slices:
                add(output, moves.joined(ctx, output))
        arriving = [gradients.get(output) for output in node.outputs]
        if all(each is None for each in arriving):
            continue
        with ctx.of(node):
            emits = RULES[node.op_type].rule(ctx, node, arriving)
            for place in _weights_first(node.inputs, flow):
                value = node.inputs[place]
                part = emits[place]() if place in emits else None
                if value is not None and part is not None:
                    add(value, part)
    for value in list(ctx.slices):
        add(value, moves.joined(ctx, value))
    seed = gradients[loss]
    if not seed.uses():
        ctx.editor.graph.initializers.pop(str(seed.name))
    return gradients


def _weights_first(inputs: Sequence[ir.Value | None], flow: Flow) -> list[int]:
    """The places of inputs that need a gradient; a weight's is emitted as soon as it can be."""
    needed = [place for place, value in enumerate(inputs) if value in flow.needed]
    return sorted(needed, key=lambda place: inputs[place] in flow.fed)


def _publish(ctx: Context, parameters: Sequence[ir.Value], gradients: dict[ir.Value, ir.Value]) -> None:
    """Each parameter's gradient becomes a graph output of its own."""
    graph = ctx.editor.graph
    for parameter in parameters:
        gradient = gradients[parameter]
        producer = gradient.producer()
        if gradient.is_graph_output() or producer is None or producer not in ctx.backward:
            shape = () if gradient.shape is None else gradient.shape.numpy()
            gradient = ctx.result("Identity", [gradient], shape=shape)
            gradients[parameter] = gradient
        gradient.name = ctx.editor.fresh(f"{parameter.name}.gradient")
        graph.outputs.append(gradient)
        parameter.metadata_props[state.GRADIENT] = gradient.name


def _drop_unused(ctx: Context) -> None:
    """Remove views of gradients that turned out to be read from their source."""
    for node in reversed(list(ctx.backward)):
        if not any(value.uses() or value.is_graph_output() for value in node.outputs):
            ctx.editor.graph.remove(node, safe=True)
            del ctx.backward[node]
    initializers = ctx.editor.graph.initializers
    for value in [value for value in initializers.values() if not value.uses() and not is_state(value)]:
        if not value.is_graph_output() and not value.is_graph_input():
            del initializers[str(value.name)]


def _set_phases(ctx: Context, flow: Flow, gradients: dict[ir.Value, ir.Value]) -> None:
    """Nodes that the gradient of a fed value needs are on the critical path; all others belong to weights."""
    pending = [gradient.producer() for value, gradient in gradients.items() if value in flow.fed]
    critical: set[ir.Node] = set()
    while pending:
        node = pending.pop()
        if node is not None and node in ctx.backward and node not in critical:
            critical.add(node)
            pending += [value.producer() for value in node.inputs if value is not None]
    for node in ctx.backward:
        phase = state.Phase.INPUT_GRADIENT if node in critical else state.Phase.WEIGHT_GRADIENT
        node.metadata_props[state.PHASE] = phase.value


def _unreached(loss: ir.Value, parameters: Sequence[ir.Value]) -> str:
    names = ", ".join(str(value.name) for value in parameters) or "none are marked"
    return (
        f"no parameter reaches the loss {loss.name} (parameters: {names}); choose an output that depends on them, "
        "or freeze fewer"
    )
