"""From a torch.nn.Module to an ONNX model, with the exporter that users have.

The exporter's own optimizer folds BatchNorm into convolutions. Folding is this compiler's work and has to be exercised,
so a module that holds BatchNorm gets constant folding only; every other module gets the exporter's default graph.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from graphopt.models.weights import draw

if TYPE_CHECKING:
    import onnx_ir as ir

OPSET = 20
"""The lowest opset with Gelu. From 23 on the exporter writes Attention, which most runtimes of today lack."""


def instantiate(builder: Callable[[], nn.Module], seed: int) -> nn.Module:
    """The module in evaluation mode, every weight drawn from `seed`.

    It is laid out on the meta device first: torch's own initialisation would take longer than ours, for nothing.
    """
    with torch.device("meta"):
        module = builder()
    module.to_empty(device="cpu")
    draw(module, seed)
    return module.eval()


def to_onnx(
    module: nn.Module, name: str, inputs: Mapping[str, tuple[str, Sequence[int]]], outputs: Sequence[str]
) -> ir.Model:
    """Export `module` at fixed shapes; `inputs` gives each input's dtype (a name of torch's) and shape."""
    import onnx_ir
    import onnx_ir.passes.common as common
    from onnxscript import optimizer

    examples = tuple(torch.zeros(*shape, dtype=getattr(torch, dtype)) for dtype, shape in inputs.values())
    normalised = any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())
    with silence():
        program = torch.onnx.export(
            module,
            examples,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            optimize=not normalised,
            verbose=False,
        )
        assert program is not None
        model = program.model
        if normalised:
            optimizer.fold_constants_ir(model)
            onnx_ir.passes.Sequential(
                common.RemoveUnusedNodesPass(),
                common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
                common.DeduplicateInitializersPass(),
                common.NameFixPass(),
            )(model)
    model.graph.name = name
    strip(model)
    return model


def strip(model: ir.Model) -> None:
    """Remove the exporter's notes: they hold stack traces with the paths of this machine, and no two machines agree."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    values = [*model.graph.inputs, *model.graph.initializers.values()]
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        value.doc_string = None


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the exporter's warnings about optional packages and its own deprecations from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
