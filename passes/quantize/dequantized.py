"""Recognise dequantized tensors, for the passes over quantized models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import array_of, dims, is_op

BYTES = (ir.DataType.UINT8, ir.DataType.INT8)


@dataclass(frozen=True, slots=True)
class Dequantized:
    """A float tensor that DequantizeLinear computes from `value`; `axis` is the axis of several scales."""

    node: ir.Node
    value: ir.Value
    scale: ir.Value
    scales: NDArray[np.float32]
    zero: ir.Value | None
    axis: int

    @classmethod
    def behind(cls, value: ir.Value | None) -> Dequantized | None:
        """The DequantizeLinear that produces `value`, with float32 constant scales; None without one."""
        node = None if value is None else value.producer()
        if node is None or not is_op(node, "DequantizeLinear") or node.attributes.get_int("block_size", 0) != 0:
            return None
        if node.outputs[0].dtype != ir.DataType.FLOAT:
            return None
        source, scale, zero = (*node.inputs, None)[:3]
        shape, numbers = dims(source), array_of(scale)
        if source is None or scale is None or shape is None or numbers is None or numbers.dtype != np.float32:
            return None
        if zero is not None and array_of(zero) is None:
            return None
        axis = (node.attributes.get_int("axis", 1) or 0) % max(len(shape), 1)
        if numbers.size != 1 and (not shape or numbers.shape != (shape[axis],)):
            return None
        return cls(node, source, scale, numbers, zero, axis)

    @property
    def single(self) -> bool:
        """Whether one scale holds for the whole tensor."""
        return self.scales.size == 1

    def along(self, axis: int) -> bool:
        """Whether one scale holds for the whole tensor, or one for each entry of `axis`."""
        return self.single or self.axis == axis
