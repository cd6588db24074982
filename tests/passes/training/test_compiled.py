"""Step models compile, and their programs do what ONNX Runtime does, step after step."""

from __future__ import annotations

import numpy as np
import pytest

import graphopt
from graphopt.pipeline.pipeline import Pipeline
from tests.helpers.steps import Trainer, feeds_of, random_arrays, slopes

SHAPES = {"w": (4, 3), "b": (3,)}


@pytest.mark.parametrize(
    "passes",
    [
        "optimizer{kind=lamb,clip-norm=0.5}",
        "optimizer{kind=adamw},microbatch{count=2}",
        "optimizer{momentum=0.9},microbatch{count=2,select=where}",
    ],
)
def test_a_program_trains_as_onnxruntime_does(passes: str) -> None:
    trains_as_onnxruntime(passes, "llvm")


@pytest.mark.usefixtures("opencl")
def test_a_program_of_a_gpu_does_too() -> None:
    trains_as_onnxruntime("optimizer{kind=adam,clip-norm=0.5},microbatch{count=2,select=where}", "opencl")


def trains_as_onnxruntime(passes: str, target: str) -> None:
    model = slopes(random_arrays(SHAPES, 0, np.float32))
    Pipeline.parse(passes).run(model)
    reference = Trainer(model)
    session = graphopt.compile(model, target=target, costs="roofline").session()
    pieces = any(value.name == "apply" for value in model.graph.inputs)
    for number, feeds in enumerate(feeds_of(SHAPES, 6, np.float32)):
        given = {**feeds, "lr": np.float32(0.1), **({"apply": np.bool_(number % 2)} if pieces else {})}
        given = {name: np.asarray(array) for name, array in given.items()}
        reference.step(**given)
        session.run(given)
        for name, array in session.state().items():
            np.testing.assert_allclose(array, reference.state[name], rtol=2e-5, atol=1e-6, err_msg=f"{name} {number}")
