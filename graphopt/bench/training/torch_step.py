"""A training step of PyTorch: the module that the zoo's model was exported from, with the same weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.bench.training.task import LEARNING_RATE, MOMENTUM, Task


class TorchStep:
    """Forward pass, loss, backward pass and update, as a user of PyTorch writes them."""

    def __init__(self, task: Task, inputs: list[str], labels: str, compiled: bool) -> None:
        """Make the module, in training mode.

        Args:
            inputs: names of the model's inputs in order.
            labels: name of the labels or targets.
            compiled: compile the computation of the loss, with its backward pass, by torch.compile.
        """
        from graphopt import models

        self._module = models.zoo.module(task.info.name).train()
        self._inputs, self._labels = inputs, labels
        self._optimizer = torch.optim.SGD(self._module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
        compute = _cross_entropy if task.loss == "cross-entropy" else functional.mse_loss

        def loss(inputs: list[Tensor], labels: Tensor) -> Tensor:
            return compute(self._module(*inputs), labels)

        self._loss: Callable[[list[Tensor], Tensor], Tensor] = torch.compile(loss) if compiled else loss

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """One step; returns the loss."""
        inputs = [torch.from_numpy(feeds[name]) for name in self._inputs]
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._loss(inputs, torch.from_numpy(feeds[self._labels]))
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        return {"loss": np.array(loss.item(), np.float32)}

    def gradients(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """The gradients of the loss by parameter; no step is made."""
        self._optimizer.zero_grad(set_to_none=True)
        inputs = [torch.from_numpy(feeds[name]) for name in self._inputs]
        self._loss(inputs, torch.from_numpy(feeds[self._labels])).backward()  # type: ignore[no-untyped-call]
        named = self._module.named_parameters()
        return {name: value.grad.numpy().copy() for name, value in named if value.grad is not None}

    def in_double(self) -> TorchStep:
        """The same step, in float64 from now on."""
        self._module.double()
        return self

    def parameters(self) -> dict[str, Any]:
        """The weights by the names that the exporter gives them."""
        return {name: value.detach().numpy().copy() for name, value in self._module.named_parameters()}


def _cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(scores.flatten(0, -2), labels.flatten())
