"""Products with a constant matrix, as the passes on sparse weights read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import array_of, dims, is_op


@dataclass(frozen=True, slots=True, eq=False)
class Linear:
    """y = x times `weight` [K, N], plus a bias if `has_bias`; `rows` are all but the last axis of x."""

    node: ir.Node
    weight: NDArray[Any]
    has_bias: bool
    rows: int

    @property
    def x(self) -> ir.Value:
        """The current first operand: what produced it may have been replaced since it was read."""
        x = self.node.inputs[0]
        assert x is not None
        return x

    @property
    def bias(self) -> ir.Value | None:
        """The current bias, None where there is none."""
        return self.node.inputs[2] if self.has_bias else None

    @property
    def density(self) -> float:
        """The share of weights that are not zero."""
        return float(np.count_nonzero(self.weight)) / self.weight.size


def read_linear(node: ir.Node, floats: Sequence[str]) -> Linear | None:
    """The product that a MatMul or Gemm computes, if its matrix is constant and its shapes are static."""
    if not is_op(node, "MatMul", "Gemm") or node.inputs[0] is None:
        return None
    weight = array_of(node.inputs[1])
    shape, out = dims(node.inputs[0]), dims(node.outputs[0])
    if weight is None or weight.ndim != 2 or shape is None or len(shape) < 2 or out is None or 0 in (*shape, *out):
        return None
    if weight.dtype.name not in floats:
        return None
    has_bias = False
    if node.op_type == "Gemm":
        attributes = node.attributes
        if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1.0:
            return None
        has_bias = len(node.inputs) > 2 and node.inputs[2] is not None
        if has_bias and attributes.get_float("beta", 1.0) != 1.0:
            return None
        weight = weight.T if attributes.get_int("transB", 0) else weight
    return Linear(node, weight, has_bias, math.prod(shape[:-1]))


def by_output(node: ir.Node, weight: NDArray[Any]) -> NDArray[Any] | None:
    """The weights of a product or a convolution as [outputs, inputs], those of a group alike; None if it is neither."""
    if not is_op(node, "MatMul", "Gemm", "Conv") or weight.ndim < 2 or not weight.size:
        return None
    if weight.dtype.kind != "f" and weight.dtype.name != "bfloat16":
        return None
    if is_op(node, "Conv"):
        return weight.reshape(weight.shape[0], -1)
    if weight.ndim != 2:
        return None
    return weight if is_op(node, "Gemm") and node.attributes.get_int("transB", 0) == 1 else weight.T


def has_groups(node: ir.Node) -> bool:
    """Whether it is a convolution whose outputs read a part of the channels."""
    return is_op(node, "Conv") and (node.attributes.get_int("group", 1) or 1) > 1
