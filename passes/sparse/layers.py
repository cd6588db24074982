"""Products and convolutions with sparse weights: where these are not zero, and what they would cost as blocks."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost import roofline
from graphopt.cost.roofline import Machine
from graphopt.graph.edit import array_of, dims, is_op
from graphopt.passes.sparse.linear import by_output, has_groups


@dataclass(slots=True, eq=False)
class SparseLayer:
    """`support` [outputs, inputs] says which weights are not zero; each output is computed in `rows` places.

    The inputs of a convolution are channels, each with `taps` places of the window.
    """

    node: ir.Node
    support: NDArray[np.bool_]
    rows: int
    taps: int
    itemsize: int

    def squares(self, machine: Machine) -> tuple[int, ...]:
        """The sides of square blocks for which there are kernels."""
        if is_op(self.node, "Conv"):
            return tuple(side for side in machine.sparse_sides if self.channels % side == 0)
        return tuple(side for side in machine.squares if self.channels % side == 0)

    @property
    def channels(self) -> int:
        """Channels of the inputs."""
        return int(self.support.shape[1]) // self.taps

    def permuted(self, outputs: NDArray[np.int64] | None, inputs: NDArray[np.int64] | None) -> NDArray[np.bool_]:
        """The support with outputs and channels of inputs taken from these places."""
        support = self.support if outputs is None else self.support[outputs]
        if inputs is None:
            return support
        n, k = support.shape
        return support.reshape(n, -1, self.taps)[:, inputs].reshape(n, k)

    def sparse_seconds(self, machine: Machine, support: NDArray[np.bool_]) -> float:
        """Estimated seconds with the best shape of block; infinity where no kernel takes any."""
        (n, k), lanes = support.shape, machine.vector_lanes
        groups = grouped(support, lanes)
        shapes = [(int(groups.sum()), 1, lanes)] if machine.has_vectors else []
        for size in self.squares(machine):
            if size <= 2 * n:
                rows = groups if size == lanes else grouped(support, size)
                by_tap = rows.reshape(len(rows), self.channels, self.taps).transpose(1, 0, 2)
                shapes.append((int(grouped(by_tap, size).sum()), size, size))
        seconds = (roofline.block_sparse(machine, self.rows, n, k, shape, self.itemsize) for shape in shapes)
        return min(seconds, default=math.inf)

    def dense_seconds(self, machine: Machine) -> float:
        """Estimated seconds of the dense product."""
        n, k = self.support.shape
        return roofline.product(machine, self.rows, n, k, self.itemsize)


def grouped(support: NDArray[np.bool_], height: int) -> NDArray[np.bool_]:
    """[groups, columns]: the columns that each `height` rows need."""
    return np.logical_or.reduceat(support, np.arange(0, len(support), height), axis=0)


def read_layer(node: ir.Node) -> SparseLayer | None:
    """The layer that a MatMul, Gemm or Conv without groups computes, if its weights are constant floats."""
    stored = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    weight, out = None if stored is None else by_output(node, stored), dims(node.outputs[0])
    if stored is None or weight is None or out is None or has_groups(node):
        return None
    support = np.ascontiguousarray(weight != 0)
    if is_op(node, "Conv"):
        taps, rows = math.prod(stored.shape[2:]), math.prod((out[0], *out[2:]))
        return SparseLayer(node, support, rows, taps, stored.itemsize)
    return SparseLayer(node, support, math.prod(out[:-1]), 1, stored.itemsize)
