"""Whole networks: loss, gradients and running statistics of a step, against PyTorch with the same numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from graphopt.frontend.load import load
from graphopt.graph import state
from graphopt.passes import Differentiate, Loss
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.networks import NETWORKS, exported


@pytest.mark.parametrize("name", NETWORKS)
def test_one_step(name: str) -> None:
    make, x, classes = NETWORKS[name]
    torch.manual_seed(0)
    module = make()
    model = load(exported(module, torch.from_numpy(x)), training=True).model
    numbers = dict(module.named_parameters())
    Loss()(model)
    assert Differentiate()(model).notes == ()

    rows = next(value for value in model.graph.inputs if value.name == "labels").shape
    assert rows is not None
    labels = np.random.default_rng(1).integers(0, classes, rows.numpy())
    outputs = run_onnxruntime(model, {str(model.graph.inputs[0].name): x, "labels": labels})  # before statistics change

    logits = module.train()(torch.from_numpy(x))
    loss = F.cross_entropy(logits.reshape(-1, classes), torch.from_numpy(labels).reshape(-1))
    loss.backward()
    np.testing.assert_allclose(outputs["loss"], loss.item(), rtol=1e-5)
    parameters = [value for value in state.states(model.graph) if state.role(value) is state.Role.PARAMETER]
    assert len(parameters) == len(numbers)
    for value in parameters:
        gradient = numbers[str(value.name)].grad
        assert gradient is not None
        found = outputs[value.metadata_props[state.GRADIENT]]
        np.testing.assert_allclose(found, gradient.numpy(), rtol=1e-4, atol=2e-6, err_msg=str(value.name))
    buffers = dict(module.named_buffers())
    for value in state.states(model.graph):
        if state.role(value) is state.Role.STATISTIC:
            after = outputs[value.metadata_props[state.NEXT]]
            np.testing.assert_allclose(after, buffers[str(value.name)].numpy(), rtol=1e-5, atol=1e-6)
