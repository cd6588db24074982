"""A PyTorch module as an ONNX model, by PyTorch's own exporter."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.frontend.shapes import one_line
from graphopt.graph.constness import stored
from graphopt.graph.opsets import OPSET

if TYPE_CHECKING:
    import torch


def export(module: torch.nn.Module, example_inputs: Any, folded: bool = True) -> ir.Model:
    """Export a PyTorch module in inference mode; its training flag is restored.

    Args:
        folded: let the exporter fold constants, which takes BatchNormalization away and merges equal parameters.
    """
    import torch

    if example_inputs is None:
        raise ModelError("a torch.nn.Module needs example inputs; pass example_inputs=(tensor, ...)")
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        kwargs = dict(example_inputs)
    elif isinstance(example_inputs, tuple | list):
        args = tuple(example_inputs)
    else:
        args = (example_inputs,)
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter about itself
            program = torch.onnx.export(
                module, args, kwargs=kwargs, dynamo=True, opset_version=OPSET, optimize=folded, verbose=False
            )
    except Exception as error:
        raise ModelError(
            f"torch.onnx.export cannot export {type(module).__name__} ({one_line(str(error))}); "
            "change the module or export it yourself"
        ) from error
    finally:
        for part, mode in modes:
            part.training = mode
    assert program is not None
    if not folded:
        from onnxscript import optimizer

        optimizer.fold_constants_ir(program.model)  # of constants alone: zeros for layers without a bias
    for graph in program.model.graphs():
        for value in graph.initializers.values():  # a snapshot: training the module goes on with its own memory
            if (tensor := stored(value)) is not None:
                value.const_value = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype)
    return program.model
