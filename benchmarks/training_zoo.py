"""Gradients and losses of every model of the zoo beside PyTorch: `python benchmarks/training_zoo.py [MODEL]...`.

For each model, from its own weights on one random batch: the gradients of all parameters as ONNX Runtime computes them
from the differentiated model, against PyTorch's; then the losses of five steps of SGD with momentum, computed by
PyTorch, by ONNX Runtime, and by the compiled program. Prints a table in Markdown. A gradient's error is the norm of the
difference over the norm of PyTorch's gradient; the table shows the largest one of a model.
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
    error, compared, count = gradient_error(task, feeds, peer)
    yield name
    yield f"{compared} of {count}"
    yield f"{error:.1e}"
    theirs = [float(peer.run(feeds)["loss"]) for _ in range(STEPS)]
    reference = ReferenceEngine(step.model)
    onnx = [float(reference.step(feeds)["loss"]) for _ in range(STEPS)]
    from graphopt.compiler import compile_model

    session = compile_model(step.model, verify="off").artifact.session()
    ours = [float(session.run(feeds)["loss"]) for _ in range(STEPS)]
    yield f"{theirs[0]:.4f} to {theirs[-1]:.4f}"
    yield f"{difference(onnx, theirs):.1e}"
    yield f"{difference(ours, theirs):.1e}"


def difference(losses: list[float], theirs: list[float]) -> float:
    """The largest relative difference of two sequences of losses."""
    return max(abs(one - other) / abs(other) for one, other in zip(losses, theirs, strict=True))


def gradient_error(task: tasks.Task, feeds: Mapping[str, Any], peer: TorchStep) -> tuple[float, int, int]:
    """The largest relative error of a gradient, how many were compared, and how many there are."""
    model = load(task.source, training=True).model
    Pipeline.parse(f"loss{{kind={task.loss}}},differentiate").run(model)
    gradients = {
        str(value.name): value.metadata_props[state.GRADIENT]
        for value in state.states(model.graph)
        if state.GRADIENT in value.metadata_props
    }
    first = {name: np.array(array) for name, array in ReferenceEngine(model).state().items() if name in gradients}
    given = {name: array for name, array in feeds.items() if name in {value.name for value in model.graph.inputs}}
    found = ReferenceEngine(model).step(given)
    theirs = peer.gradients(feeds)
    errors = []
    for name, output in gradients.items():
        expected, actual = counterpart(name, first[name], peer.parameters(), theirs), found[output]
        if expected is None:  # gates that the exporter put together in another order
            continue
        if expected.shape != actual.shape:
            expected = expected.T
        norm = float(np.linalg.norm(expected))
        errors.append(float(np.linalg.norm(actual - expected)) / norm if norm else float(np.abs(actual).max()))
    return max(errors), len(errors), len(gradients)


def counterpart(
    name: str, array: NDArray[Any], parameters: Mapping[str, Any], gradients: Mapping[str, Any]
) -> NDArray[Any] | None:
    """PyTorch's gradient of a parameter: of its name, or of its numbers, perhaps transposed."""
    if name in gradients:
        return gradients[name]
    for other, numbers in parameters.items():
        for turned in (numbers, numbers.T):
            if other in gradients and turned.shape == array.shape and np.array_equal(turned, array):
                return gradients[other]
    return None


def main() -> None:
    """Print the table of the models that are named, or of all."""
    os.environ.setdefault("GRAPHOPT_COSTS", "roofline")
    head = ("model", "gradients compared", "largest error", "loss", "ONNX Runtime's losses", "the program's losses")
    print("|", " | ".join(head), "|")
    print("|", " | ".join(["---"] * len(head)), "|", flush=True)
    for name in sys.argv[1:] or names():
        print("|", " | ".join(row(name)), "|", flush=True)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
