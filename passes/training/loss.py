"""Put a loss behind an output of a model: what training makes small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

import onnx_ir as ir

from graphopt.errors import DifferentiationError
from graphopt.graph import state
from graphopt.graph.edit import Editor, dims, is_op
from graphopt.passes.training.gradients.context import Context, shape_of
from graphopt.pipeline.pass_base import Pass, PassResult, option


class Kind(StrEnum):
    """What is compared how."""

    CROSS_ENTROPY = "cross-entropy"
    NLL = "nll"
    MSE = "mse"
    L1 = "l1"
    BCE = "bce-with-logits"
    NONE = "none"


class Reduction(StrEnum):
    """How the losses of a batch become one."""

    MEAN = "mean"
    SUM = "sum"


@dataclass(frozen=True)
class Loss(Pass):
    """Add the loss of an output, and the input `labels` that it needs.

        y = f(x)  ->  y = f(x)   loss = SoftmaxCrossEntropyLoss(y, labels)   correct = how often ArgMax(y) = labels

    cross-entropy    y are logits: [N, C] or, with a plane, [N, C, H, W], and [N, T, C] of a language model; labels
                     are int64 without the axis of classes. A Softmax at the end is left out of the loss (y stays).
    nll              y are logarithms of probabilities, labels as for cross-entropy
    mse, l1          mean of squared, of absolute differences; labels have the shape of y
    bce-with-logits  y are logits (or end in a Sigmoid, which is left out); labels from 0 to 1 have the shape of y
    none             y is the loss: a scalar of the model's own
    """

    name: ClassVar[str] = "loss"

    kind: Kind = option(Kind.CROSS_ENTROPY, "what is compared how")
    output: str = option("", "name of the model's output that is compared; the first one if empty")
    labels: str = option("labels", "name of the new input")
    axis: int = option(0, "axis of the classes; 0: the last of [N, C] and [N, T, C], else 1")
    ignore_index: int = option(-100, "label that does not count")
    smoothing: float = option(0.0, "share of the target that is spread over all classes")
    reduction: Reduction = option(Reduction.MEAN, "how the losses of a batch become one")

    def call(self, model: ir.Model) -> PassResult:
        """Add the loss to the main graph.

        Raises:
            DifferentiationError: no such output, or one whose type or shape does not fit the loss.
        """
        graph = model.graph
        if state.LOSS in graph.metadata_props:
            return PassResult(model, False, notes=("the model has its loss already",))
        if not 0 <= self.smoothing < 1:
            raise DifferentiationError(f"smoothing is {self.smoothing:g}; it must be from 0 to below 1")
        y = self._output(graph)
        if self.kind is Kind.NONE:
            if math.prod(_extents(y)) != 1:
                raise DifferentiationError(
                    f"the output {y.name} is no scalar loss, its shape is {list(_extents(y))}; choose a kind of loss"
                )
            graph.metadata_props[state.LOSS] = str(y.name)
            return PassResult(model, True)
        ctx = Context(Editor(model, self.name))
        taken = {value.name for value in (*graph.inputs, *graph.initializers.values())}
        if self.labels in taken:
            raise DifferentiationError(f"the model has a value {self.labels} already; name the labels otherwise")
        if self.kind in (Kind.CROSS_ENTROPY, Kind.NLL):
            self._classification(ctx, y)
        else:
            self._regression(ctx, y)
        return PassResult(model, True)

    def _output(self, graph: ir.Graph) -> ir.Value:
        names = ", ".join(str(value.name) for value in graph.outputs)
        states = {value.metadata_props.get(state.NEXT) for value in state.states(graph)}
        own = [value for value in graph.outputs if value.name not in states]
        y = next((value for value in own if value.name == self.output or not self.output), None)
        if y is None:
            raise DifferentiationError(f"the model has no output {self.output}; it has {names}")
        if y.dtype is None or not y.dtype.is_floating_point():
            kind = "of an unknown type" if y.dtype is None else y.dtype.name
            raise DifferentiationError(f"the output {y.name} is {kind} and has no loss; choose one of floats: {names}")
        _extents(y)
        return y

    def _classification(self, ctx: Context, y: ir.Value) -> None:
        shape = _extents(y)
        if len(shape) < 2:
            raise DifferentiationError(
                f"the output {y.name} has shape {list(shape)}, which has no axis of classes; {self.kind} needs [N, C]"
            )
        scores, axis = self._scores(ctx, y, shape)
        if axis == 1 and all(extent == 1 for extent in shape[2:]):  # a plane of one place: [N, C, 1, 1] is [N, C]
            shape = shape[:2]
            scores, y = ctx.reshape(scores, shape), ctx.reshape(y, shape)
        rows = (*shape[:axis], *shape[axis + 1 :])
        labels = self._input(ctx, rows, ir.DataType.INT64)
        wide, flat_labels = ctx.cast(scores, _summed_in(scores)), labels
        if axis == len(shape) - 1:
            wide = ctx.reshape(wide, (math.prod(rows), shape[axis]))
            flat_labels = ctx.reshape(labels, [math.prod(rows)])
        else:
            wide = ctx.transpose(wide, [0, axis, *(each for each in range(1, len(shape)) if each != axis)])
        _publish(ctx, self._loss_of_classes(ctx, wide, flat_labels))
        self._count(ctx, y, labels, axis)

    def _scores(self, ctx: Context, y: ir.Value, shape: tuple[int, ...]) -> tuple[ir.Value, int]:
        """The logits behind `y` in its shape, and the axis of classes."""
        rank = len(shape)
        axis = self.axis % rank if self.axis else (rank - 1 if rank < 4 else 1)
        last = _behind(y, "Softmax", "LogSoftmax")
        logits = None if last is None else last.inputs[0]
        if last is not None and logits is not None and (own := dims(logits)) is not None:
            place = (last.attributes.get_int("axis", -1) or 0) % len(own)
            rows = math.prod(own[:place])
            alike = [a for a in range(1, rank) if shape[a] == own[place] and math.prod(shape[:a]) == rows]
            axis = axis if self.axis or axis in alike or not alike else alike[0]
            if axis in alike and self.kind is Kind.CROSS_ENTROPY:
                return ctx.reshape(logits, shape), axis
        if not axis:
            raise DifferentiationError(f"axis 0 of the output {y.name} holds the samples, not the classes")
        return y, axis

    def _loss_of_classes(self, ctx: Context, scores: ir.Value, labels: ir.Value) -> ir.Value:
        attributes = {"reduction": self.reduction.value, "ignore_index": self.ignore_index}
        if self.kind is Kind.NLL:
            return ctx.result("NegativeLogLikelihoodLoss", [scores, labels], attributes, shape=())
        loss, log_prob = ctx.results(
            "SoftmaxCrossEntropyLoss",
            [scores, labels],
            attributes,
            outputs=[((), scores.dtype), (shape_of(scores), scores.dtype)],
        )
        if not self.smoothing:
            return loss
        shape = shape_of(scores)
        counts = ctx.op("Not", ctx.op("Equal", labels, self.ignore_index))
        means = ctx.op("Neg", ctx.reduce("ReduceMean", log_prob, [1]))
        total = ctx.sum(ctx.where(counts, means, 0.0), range(len(shape) - 1))
        if self.reduction is Reduction.MEAN:
            total = ctx.op("Div", total, ctx.sum(ctx.cast(counts, scores.dtype), range(len(shape) - 1)))
        return ctx.op("Add", ctx.op("Mul", loss, 1 - self.smoothing), ctx.op("Mul", total, self.smoothing))

    def _count(self, ctx: Context, y: ir.Value, labels: ir.Value, axis: int) -> None:
        """The number of labels at which `y` is largest."""
        shape = shape_of(labels)
        best = ctx.result("ArgMax", [y], {"axis": axis, "keepdims": 0}, shape=shape, dtype=ir.DataType.INT64)
        right = ctx.cast(ctx.op("Equal", best, labels), ir.DataType.INT64)
        correct = ctx.sum(right, range(len(shape)))
        _name(ctx, correct, "correct", state.CORRECT)

    def _regression(self, ctx: Context, y: ir.Value) -> None:
        shape = _extents(y)
        scores, last = y, _behind(y, "Sigmoid")
        if self.kind is Kind.BCE and last is not None and last.inputs[0] is not None:
            scores = ctx.reshape(last.inputs[0], shape)
        scores = ctx.cast(scores, _summed_in(scores))
        assert scores.dtype is not None
        labels = self._input(ctx, shape, scores.dtype)
        if self.kind is Kind.BCE:
            # -t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x)) = softplus(x) - t x
            each = ctx.op("Sub", ctx.op("Softplus", scores), ctx.op("Mul", labels, scores))
        else:
            distance = ctx.op("Sub", scores, labels)
            each = ctx.op("Abs", distance) if self.kind is Kind.L1 else ctx.op("Mul", distance, distance)
        name = "ReduceMean" if self.reduction is Reduction.MEAN else "ReduceSum"
        loss = ctx.reduce(name, each, range(len(shape)))
        if loss is each:
            loss = ctx.op("Identity", each)
        _publish(ctx, loss)

    def _input(self, ctx: Context, shape: Sequence[int], dtype: ir.DataType) -> ir.Value:
        name = ctx.editor.fresh(self.labels)
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))
        ctx.editor.graph.inputs.append(value)
        ctx.editor.graph.metadata_props[state.LABELS] = name
        return value


def _extents(y: ir.Value) -> tuple[int, ...]:
    shape = dims(y)
    if shape is None:
        raise DifferentiationError(f"the output {y.name} has no static shape; give the inputs one with --shapes")
    return shape


def _summed_in(value: ir.Value) -> ir.DataType:
    """Losses of 16-bit outputs are computed in float32."""
    return ir.DataType.DOUBLE if value.dtype == ir.DataType.DOUBLE else ir.DataType.FLOAT


def _behind(y: ir.Value, *op_types: str) -> ir.Node | None:
    """The node of one of `op_types` that computed `y`, seen through views."""
    producer = y.producer()
    while producer is not None and is_op(producer, "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"):
        source = producer.inputs[0]
        producer = None if source is None else source.producer()
    return producer if is_op(producer, *op_types) else None


def _publish(ctx: Context, loss: ir.Value) -> None:
    _name(ctx, loss, "loss", state.LOSS)


def _name(ctx: Context, value: ir.Value, name: str, key: str) -> None:
    value.name = ctx.editor.fresh(name)
    ctx.editor.graph.outputs.append(value)
    ctx.editor.graph.metadata_props[key] = value.name
