"""Training steps of micro-batches on GPUs: native, with the losses and the state of ONNX Runtime; and machine code."""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir
import pytest
import torch

from graphopt.compiler import compile_model
from graphopt.frontend.load import load
from graphopt.pipeline.pipeline import Pipeline
from tests.helpers.networks import NETWORKS, exported
from tests.helpers.steps import Trainer

NAMES = ("lenet", "residual", "transformer")


@functools.cache
def step_of(name: str, mixed: str = "") -> ir.Model:
    make, x, _ = NETWORKS[name]
    torch.manual_seed(0)
    model = load(exported(make(), torch.from_numpy(x)), training=True).model
    Pipeline.parse(f"loss,{mixed}differentiate,masks,optimizer{{momentum=0.9}},microbatch{{count=2}}").run(model)
    return model


@pytest.mark.usefixtures("opencl")
@pytest.mark.parametrize("name", NAMES)
def test_two_updates_are_those_of_onnxruntime(name: str) -> None:
    _, x, classes = NETWORKS[name]
    model = step_of(name)
    reference = Trainer(model)
    compiled = compile_model(model.clone(), target="opencl", fallback=False)
    assert not [note for note in compiled.notes if note.startswith("kernel")]
    session = compiled.artifact.session()
    rows = next(value for value in model.graph.inputs if value.name == "labels").shape
    assert rows is not None
    draw = np.random.default_rng(1)
    for number in range(4):  # two micro-batches for each update
        labels = draw.integers(0, classes, rows.numpy())
        feeds = {str(model.graph.inputs[0].name): x, "labels": labels, "lr": np.asarray(0.1, np.float32)}
        feeds["apply"] = np.asarray(number % 2 == 1)
        expected, found = reference.step(**feeds), session.run(feeds)
        np.testing.assert_allclose(found["loss"], expected["loss"], rtol=1e-5)
        for value, array in session.state().items():
            np.testing.assert_allclose(array, reference.state[value], rtol=2e-4, atol=5e-6, err_msg=value)


@pytest.mark.parametrize("level", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", NAMES)
def test_machine_code(name: str, level: str) -> None:
    is_native(step_of(name), level)


@pytest.mark.parametrize(("name", "to"), [("residual", "bf16"), ("lenet", "fp16")])
def test_machine_code_of_halves(name: str, to: str) -> None:
    is_native(step_of(name, f"mixed-precision{{to={to}}},"), "sm_90")


def is_native(model: ir.Model, level: str) -> None:
    """The assembler takes every kernel, and there are kernels for every node."""
    compiled = compile_model(model.clone(), target="cuda", level=level, fallback=False)
    assert not [note for note in compiled.notes if note.startswith("kernel")]
    assert compiled.artifact.program.stages
