"""An ONNX graph as a torch module: the table of `torch_operators`, applied node by node.

    y = Conv(x, w, b); z = Relu(y)   ->   torch.convolution(x, w, b, ...); torch.relu(y)

It covers the convolutional networks of the zoo, BERT, GPT-2, ViT, LSTMs, the perceptron and the single layers. It does
not prove that the functions are equivalent: compare the outputs before timing the module.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graphopt.bench.peers import torch_recurrent
from graphopt.bench.peers.torch_operators import TABLE, Function, Operator, UnsupportedError


class Graph(nn.Module):
    """The nodes of a graph in order; constants are buffers; inputs and outputs are in the graph's order."""

    def __init__(self, file: Path, dtype: torch.dtype = torch.float32) -> None:
        """Convert the model `file`, computing in `dtype` instead of float32.

        Raises:
            UnsupportedError: names the operator.
        """
        import onnx
        from onnx import numpy_helper

        super().__init__()
        graph = onnx.load(file).graph
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.input_names = tuple(value.name for value in graph.input if value.name not in constants)
        torch_recurrent.rearranged(graph.node, constants)
        self.output_names = tuple(value.name for value in graph.output)
        kinds = (value.type.tensor_type.elem_type for value in graph.output)
        self.output_dtypes = tuple(str(onnx.helper.tensor_dtype_to_np_dtype(kind)) for kind in kinds)
        slots: dict[str, int] = {}
        for index, (name, array) in enumerate(constants.items()):
            self.register_buffer(f"constant_{index}", narrowed(torch.from_numpy(array.copy()), dtype))
            slots[name] = index
        self._constants = len(slots)
        for name in self.input_names:
            slots[name] = len(slots)
        self._steps: list[tuple[Function, tuple[int, ...], tuple[int, ...]]] = []
        for node in graph.node:
            known = tuple(constants.get(name) if name else False for name in node.input)
            attributes = {
                attribute.name: _text(onnx.helper.get_attribute_value(attribute)) for attribute in node.attribute
            }
            operator = Operator(node.op_type, node.name or node.output[0], attributes, known, len(node.output), dtype)
            if node.domain not in ("", "ai.onnx", "graphopt") or node.op_type not in TABLE:
                raise UnsupportedError(f"the torch converter has no function for the operator {node.op_type}")
            function = TABLE[node.op_type](operator)
            read = tuple(slots[name] if name else -1 for name in node.input)
            for name in node.output:
                slots[name] = len(slots)
            self._steps.append((function, read, tuple(slots[name] for name in node.output)))
        self._slots = len(slots)
        self._results = tuple(slots[name] for name in self.output_names)

    @property
    def constants(self) -> list[Tensor]:
        """The constants in the order of `compute`."""
        return [getattr(self, f"constant_{index}") for index in range(self._constants)]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the graph's order."""
        return self.compute(self.constants, *inputs)

    def compute(self, constants: Sequence[Tensor], *inputs: Tensor) -> tuple[Tensor, ...]:
        """The outputs in the graph's order, with other tensors in place of the constants."""
        values: list[Any] = [None] * self._slots
        values[: self._constants] = constants
        values[self._constants : self._constants + len(inputs)] = inputs
        for function, read, write in self._steps:
            result = function(*(values[index] if index >= 0 else None for index in read))
            if isinstance(result, Tensor):
                values[write[0]] = result
            else:
                for index, tensor in zip(write, result, strict=True):
                    values[index] = tensor
        return tuple(values[index] for index in self._results)


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A float32 tensor in `dtype`; values above its maximum are clamped to it: masks stay finite."""
    if tensor.dtype != torch.float32 or dtype == torch.float32:
        return tensor
    limits = torch.finfo(dtype)
    return tensor.clamp(limits.min, limits.max).to(dtype)


def _text(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else value
