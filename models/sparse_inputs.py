"""Perceptrons whose hidden numbers are zero to a share that their name says.

sparse/mlp2048x7-z80      7 layers of 2048, batch 1, ReLU between them: 80 % of the inputs of all but the first are zero
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

_NAME = re.compile(r"mlp(?P<width>[1-9]\d{0,4})x(?P<depth>[2-9]|[1-9]\d)-z(?P<percent>\d{1,2})")
PERCENT = (0, 50, 80, 90)
CALIBRATION = 64
"""Inputs, drawn from a normal distribution, by which biases are set."""


@dataclass(frozen=True)
class ReluStack:
    """`depth` layers of `width`; `percent` of the numbers between them are zero."""

    name: str
    width: int
    depth: int
    percent: int

    @property
    def title(self) -> str:
        """A line about it."""
        return f"{self.depth} layers of {self.width}, {self.percent} % of the inputs of all but the first zero"

    @property
    def spelled(self) -> str:
        """What is multiplied."""
        return f"{self.depth} x {self.width}, 1 row"

    @property
    def block(self) -> str:
        """What is zero."""
        return "inputs"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of x."""
        return (1, self.width)


def parse(name: str) -> ReluStack | None:
    """The model of that name, without the prefix; None if it is no such name."""
    match = _NAME.fullmatch(name)
    return None if match is None else ReluStack(name, *(int(match[part]) for part in ("width", "depth", "percent")))


def grid() -> list[str]:
    """The names of the benchmark."""
    return [f"mlp2048x7-z{percent}" for percent in PERCENT]


def build(stack: ReluStack, seed: int) -> ir.Model:
    """The model: input x, output y, normal weights drawn from `seed`.

    The outputs of a layer are about normal, with the same spread for all inputs of the same length. So one number is
    added to all of them, below which as many lie as should be zero.
    """
    import numpy as np
    import onnx_ir as ir

    generator = np.random.default_rng(seed)
    width = stack.width
    hidden = generator.standard_normal((CALIBRATION, width), dtype=np.float32)
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = value = ir.Value(name="x", shape=ir.Shape(stack.shape), type=kind)
    nodes, initializers = [], []
    scale = np.float32(1)
    for number in range(stack.depth):
        last = number == stack.depth - 1
        weight = generator.standard_normal((width, width), dtype=np.float32) / np.float32(np.sqrt(width))
        weight *= scale
        sums = hidden @ weight
        lowest = np.quantile(sums, stack.percent / 100) if stack.percent else sums.min() - sums.std()
        bias = np.full(width, 0.0 if last else -lowest, np.float32)
        hidden = np.maximum(sums + bias, 0)
        scale = np.float32(1 / np.sqrt(np.square(hidden).mean()))  # numbers keep their size from layer to layer
        operands = []
        for array, name in ((weight, f"w{number}"), (bias, f"b{number}")):
            stored = ir.Tensor(array, name=name)
            operands.append(ir.Value(name=name, shape=ir.Shape(array.shape), type=kind, const_value=stored))
        initializers += operands
        nodes.append(ir.node("Gemm", [value, *operands], name=f"layer{number}"))
        if not last:
            nodes.append(ir.node("Relu", [nodes[-1].outputs[0]], name=f"relu{number}"))
        value = nodes[-1].outputs[0]
    value.name, value.type, value.shape = "y", kind, ir.Shape(stack.shape)
    graph = ir.Graph([x], [value], nodes=nodes, initializers=initializers, opset_imports={"": 20}, name="relu_stack")
    return ir.Model(graph, ir_version=11)
