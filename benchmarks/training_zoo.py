"""Gradients and losses of every model of the zoo beside PyTorch: `python benchmarks/training_zoo.py [MODEL]...`.

For each model, from its own weights on one random batch: the gradients of all parameters as ONNX Runtime computes them
from the differentiated model, and as PyTorch computes them, both against PyTorch in float64; then the losses of five
steps of SGD with momentum, computed by PyTorch, by ONNX Runtime, and by the compiled program. Prints a table in
Markdown. A gradient's error is the norm of the difference over the norm of the gradient; the table shows the largest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch  # before TVM: the other order aborts the process
from numpy.typing import NDArray

from graphopt import models
from graphopt.bench.training import task as tasks
from graphopt.bench.training.torch_step import TorchStep
from graphopt.frontend.load import load
from graphopt.graph import state
from graphopt.pipeline.pipeline import Pipeline
from graphopt.training.reference import ReferenceEngine

STEPS = 5
BATCH = {"lenet5": 32, "wideresnet28-2": 16, "mlp": 32, "lstm": 4, "bilstm": 4}
"""Samples of a step, where it is not 2."""


def names() -> list[str]:
    """The models that come from a torch module, at a batch of their own."""
    built = [name for name in models.names() if models.describe(name).source == "built" and name != "mlp-b128"]
    return [f"{name}-b{BATCH.get(name, 2)}" for name in built]


def row(name: str) -> Iterator[str]:
    """The cells of one model."""
    task = tasks.of(f"zoo:{name}")
    step = task.step()
    feeds = tasks.feeds(step)
    labels = step.signature.labels
    assert labels is not None
    inputs = [port.name for port in step.signature.ports if port.name != labels]
    peer = TorchStep(task, inputs, labels, compiled=False)
    ours, torchs, compared, count = gradient_errors(task, feeds, TorchStep(task, inputs, labels, compiled=False))
    yield name
    yield f"{compared} of {count}"
    yield f"{ours:.1e}"
    yield f"{torchs:.1e}"
    theirs = [float(peer.run(feeds)["loss"]) for _ in range(STEPS)]
    reference = ReferenceEngine(step.model)
    onnx = [float(reference.step(feeds)["loss"]) for _ in range(STEPS)]
    from graphopt.compiler import compile_model

    session = compile_model(step.model, verify="off").artifact.session()
    program = [float(session.run(feeds)["loss"]) for _ in range(STEPS)]
    yield f"{theirs[0]:.4f} to {theirs[-1]:.4f}"
    yield f"{difference(onnx, theirs):.1e}"
    yield f"{difference(program, theirs):.1e}"


def difference(losses: list[float], theirs: list[float]) -> float:
    """The largest relative difference of two sequences of losses."""
    return max(abs(one - other) / abs(other) for one, other in zip(losses, theirs, strict=True))


def gradient_errors(task: tasks.Task, feeds: Mapping[str, Any], peer: TorchStep) -> tuple[float, float, int, int]:
    """The largest relative error of a gradient, that of PyTorch in float32, how many were compared, how many there are.

    Both are compared with PyTorch in float64. Gradients far below the others (of a bias before a BatchNormalization:
    zero but for rounding) count relative to a millionth of the norm of all.
    """
    model = load(task.source, training=True).model
    Pipeline.parse(f"loss{{kind={task.loss}}},differentiate").run(model)
    gradients = {
        str(value.name): value.metadata_props[state.GRADIENT]
        for value in state.states(model.graph)
        if state.GRADIENT in value.metadata_props
    }
    engine = ReferenceEngine(model)
    first = {name: array for name, array in engine.state().items() if name in gradients}
    given = {name: array for name, array in feeds.items() if name in {value.name for value in model.graph.inputs}}
    found, theirs, parameters = engine.step(given), peer.gradients(feeds), peer.parameters()
    exact = peer.in_double().gradients({name: _double(array) for name, array in feeds.items()})
    floor = 1e-6 * float(np.sqrt(sum(np.square(array).sum() for array in exact.values())))
    ours, torchs = [], []
    for name, output in gradients.items():
        other = counterpart(name, first[name], parameters)
        if other is None:  # gates that the exporter put together in another order
            continue
        expected, actual = exact[other], found[output]
        turned = expected if expected.shape == actual.shape else expected.T
        norm = max(float(np.linalg.norm(expected)), floor)
        ours.append(float(np.linalg.norm(actual - turned)) / norm)
        torchs.append(float(np.linalg.norm(theirs[other] - expected)) / norm)
    return max(ours), max(torchs), len(ours), len(gradients)


def _double(array: NDArray[Any]) -> NDArray[Any]:
    return array.astype(np.float64) if array.dtype == np.float32 else array


def counterpart(name: str, array: NDArray[Any], parameters: Mapping[str, Any]) -> str | None:
    """PyTorch's name of a parameter: its own, or that of the same numbers, perhaps transposed."""
    if name in parameters:
        return name
    for other, numbers in parameters.items():
        if any(turned.shape == array.shape and np.array_equal(turned, array) for turned in (numbers, numbers.T)):
            return other
    return None


def main() -> None:
    """Print the table of the models that are named, or of all."""
    os.environ.setdefault("GRAPHOPT_COSTS", "roofline")
    head = (
        "model",
        "gradients compared",
        "largest error",
        "PyTorch's",
        "loss",
        "ONNX Runtime's losses",
        "the program's losses",
    )
    print("|", " | ".join(head), "|")
    print("|", " | ".join(["---"] * len(head)), "|", flush=True)
    for name in sys.argv[1:] or names():
        print("|", " | ".join(row(name)), "|", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
