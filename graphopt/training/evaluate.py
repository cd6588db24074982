"""Loss and accuracy of the user's own model with the parameters of a training, on data that it does not see."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.frontend.fold import lift_constants
from graphopt.graph.constness import stored
from graphopt.training.data.dataset import Dataset
from graphopt.training.engine import Array
from graphopt.verify.evaluate import ends_in_softmax
from graphopt.verify.oracle import open_onnxruntime, own_copy

if TYPE_CHECKING:
    import onnx

CROSS_ENTROPY = frozenset({"cross-entropy", "nll"})


class Evaluator:
    """Runs an inference model in ONNX Runtime; parameters are inputs, so that one session serves all epochs."""

    def __init__(
        self,
        model: Path | onnx.ModelProto | ir.Model,
        names: frozenset[str],
        *,
        output: str,
        loss: str,
        labels: str | None,
        ignored: int | None = None,
        batch: int = 32,
        threads: int | None = None,
    ) -> None:
        """Open the model.

        Args:
            model: the inference model, which is not modified.
            names: state values; those that the model has as initializers are given to it.
            output: what the loss compares with the labels.
            loss: kind of the loss: mse and l1 have no accuracy, and of kinds that are not known nothing is.
            labels: name of the labels in the data.
            ignored: a label that does not count.
            batch: samples of a run, where the model leaves its batch open.
            threads: threads of each operator; None leaves it to ONNX Runtime.

        Raises:
            GraphoptError: the model has no such output.
            VerificationError: ONNX Runtime rejects it.
        """
        open_model = with_open_weights(own_copy(model), names)
        graph = open_model.graph
        self._dtypes = {str(value.name): _dtype(value) for value in graph.inputs if value.name in names}
        self._softmax = ends_in_softmax(open_model, output)
        if output not in {value.name for value in graph.outputs}:
            raise GraphoptError(
                f"the model has no output {output!r} to compare with the labels; it has "
                f"{', '.join(str(value.name) for value in graph.outputs)}"
            )
        self._output, self._loss, self._labels, self._ignored = output, loss, labels, ignored
        with contextlib.ExitStack() as stack:
            self._session: Any = stack.enter_context(open_onnxruntime(open_model, optimize=True, threads=threads))
            stack.pop_all()  # ONNX Runtime reads large weights from the files until the session ends
        self._inputs = {each.name: each.shape for each in self._session.get_inputs() if each.name not in names}
        fixed = [shape[0] for shape in self._inputs.values() if shape and isinstance(shape[0], int)]
        self._batch, self._fixed = (min(fixed), True) if fixed else (batch, False)

    def __call__(
        self, state: Mapping[str, Array], dataset: Dataset, progress: Callable[[str], None] | None = None
    ) -> tuple[float, float]:
        """Mean loss and accuracy over a data set; NaN for what the kind of loss does not have.

        Raises:
            GraphoptError: ONNX Runtime cannot run the model on it, or scores and labels do not fit.
        """
        weights = {name: np.asarray(state[name], dtype) for name, dtype in self._dtypes.items()}
        totals = np.zeros(3)  # sum of the losses, number of right ones, number of both
        for start in range(0, len(dataset), self._batch):
            if progress is not None:
                progress(f"evaluating {start} of {len(dataset)} samples")
            taken = dataset.take(slice(start, start + self._batch))
            count = min(self._batch, len(dataset) - start)
            feeds = {name: self._padded(taken[name], count) for name in self._inputs if name in taken}
            try:
                (scores,) = self._session.run([self._output], {**feeds, **weights})
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise GraphoptError(
                    f"the model cannot be run on {dataset.where}: {' '.join(str(error).split())}"
                ) from error
            if self._labels is not None:
                totals += self._judge(np.asarray(scores)[:count], taken[self._labels])
        loss, right, number = totals.tolist()
        if not number:
            return math.nan, math.nan
        return loss / number, right / number

    def _padded(self, array: Array, count: int) -> Array:
        if not self._fixed or count == self._batch:
            return array
        return np.concatenate([array, np.repeat(array[-1:], self._batch - count, axis=0)])

    def _judge(self, scores: Array, labels: Array) -> Array:
        if self._loss in CROSS_ENTROPY:
            return cross_entropy(scores, labels, self._ignored, probabilities=self._softmax)
        if self._loss == "bce-with-logits":
            losses = np.logaddexp(0, scores.astype(np.float64)) - scores * labels.reshape(scores.shape)
            return np.array([losses.sum(), ((scores > 0) == (labels.reshape(scores.shape) > 0.5)).sum(), losses.size])
        error = {"mse": np.square, "l1": np.abs}.get(self._loss)
        if error is None:
            return np.zeros(3)
        difference = scores.astype(np.float64) - labels.reshape(scores.shape)
        return np.array([error(difference).sum(), math.nan, difference.size])


def cross_entropy(scores: Array, labels: Array, ignored: int | None = None, *, probabilities: bool = False) -> Array:
    """Sum of the cross entropies in nats, number of right classes, and number of labels that count.

    Classes are on axis 1 of `scores`, or on the last where the labels have the extents of all axes before it.
    """
    last = labels.shape == scores.shape[:-1]
    table = np.moveaxis(scores, -1 if last else 1, -1).reshape(-1, scores.shape[-1 if last else 1]).astype(np.float64)
    flat = labels.reshape(-1)
    counted = np.ones(len(flat), bool) if ignored is None else flat != ignored
    table, flat = table[counted], flat[counted]
    if probabilities:
        with np.errstate(divide="ignore"):
            table = np.log(table)
    shifted = table - table.max(axis=1, keepdims=True, initial=-np.inf)
    logarithms = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    right = (table.argmax(axis=1) == flat).sum() if len(flat) else 0
    return np.array([-logarithms[np.arange(len(flat)), flat].sum(), right, len(flat)])


def with_open_weights(model: ir.Model, names: frozenset[str]) -> ir.Model:
    """`model`, changed so that its initializers with these names are inputs that have default values."""
    lift_constants(model)  # older exporters write weights as Constant nodes
    given = set(model.graph.inputs)
    model.ir_version = max(model.ir_version, 4)  # before, every initializer was an input
    for name, value in model.graph.initializers.items():
        if name in names and value not in given:
            model.graph.inputs.append(value)
    return model


def _dtype(value: ir.Value) -> np.dtype[Any]:
    tensor = stored(value)
    assert tensor is not None
    return np.dtype(tensor.dtype.numpy())
