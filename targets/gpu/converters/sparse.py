"""Products and convolutions with block-sparse weights on GPUs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.graph.constness import constant_array, is_constant
from graphopt.targets.common.converters.base import FLOATS, HALF_DTYPES, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.blocks import const, round_up
from graphopt.targets.common.kernels.groups import longest
from graphopt.targets.gpu.converters.blocked import accumulator, on_cores
from graphopt.targets.gpu.fusion import epilogue
from graphopt.targets.gpu.kernels.gemm import ragged, sparse
from graphopt.targets.gpu.kernels.gemm.axes import Axes

DEPTH, WIDTH = 8, 32
"""The inputs and outputs of a block are multiples of these: smaller ones leave the lanes of a tile idle."""


@dataclass(frozen=True, slots=True)
class _Pattern:
    """Blocks [B, depth, width] in `groups`: the columns that they read, in units of their depth, and `Ragged.order`."""

    columns: NDArray[np.int32]
    order: NDArray[np.int32]
    groups: int
    turned: bool

    @property
    def longest(self) -> int:
        """See `groups.longest`."""
        return longest(self.order, self.groups)


def _pattern(c: Context, blocks: relax.Expr, outputs: int, dtype: str) -> _Pattern | None:
    """The pattern of a node with the operands x, blocks, rows, starts; None where no kernel multiplies such blocks."""
    _, depth, width = shape_of(blocks)
    pattern = c.node.inputs[2:4]
    if dtype not in (*FLOATS, *HALF_DTYPES) or depth % DEPTH or width % WIDTH:
        return None
    arrays = [np.asarray(constant_array(value)) for value in pattern if is_constant(value)]
    if len(arrays) < len(pattern):
        return None
    rows, starts = arrays
    if (starts % depth).any():
        return None
    groups = round_up(outputs, width) // width
    return _Pattern((starts // depth).astype(np.int32), ragged.order(rows, groups), groups, on_cores(c, dtype))


def _weights(c: Context, blocks: relax.Expr, pattern: _Pattern) -> relax.Expr:
    """The blocks as the kernel reads them; constant, so it is done while compiling."""
    return c.builder.emit(relax.op.permute_dims(blocks, [0, 2, 1])) if pattern.turned else blocks


def block_sparse_matmul(c: Context, inputs: Inputs) -> Outputs:
    """BlockSparseMatMul with a constant pattern of blocks that begin at multiples of their depth."""
    x, blocks, _, _ = inputs
    dtype, shape = dtype_of(x), shape_of(x)
    count, depth, _ = shape_of(blocks)
    m, n = math.prod(shape[:-1]), c.out_shape[-1]
    pattern = _pattern(c, blocks, n, dtype)
    if pattern is None or 0 in shape:
        return NotImplemented
    if count == 0:
        return c.builder.emit(relax.op.zeros(c.out_shape, dtype))
    axes = Axes.plain(c.out_shape, (0, len(shape) - 1, 1), m)

    def define(v: te.Tensor, u: te.Tensor, columns: te.Tensor, bounds: te.Tensor) -> te.Tensor:
        return sparse.compute(
            lambda row, block, i: v[row, columns[block] * depth + i],
            u,
            bounds,
            (m, n, pattern.groups, pattern.longest),
            axes,
            dtype,
            None,
            accumulator(dtype),
            c.tf32,
            c.tile,
            pattern.turned,
        )

    x = c.reshape(x, (m, shape[-1]))
    places, bounds = relax.const(pattern.columns, "int32"), relax.const(pattern.order, "int32")
    return c.te("sparse_product", define, x, _weights(c, blocks, pattern), places, bounds, pattern=epilogue(c))


def block_sparse_conv(c: Context, inputs: Inputs) -> Outputs:
    """BlockSparseConv with a constant pattern: pixels times the blocks, whose inputs are channels at one tap."""
    x, blocks, _, _, bias = inputs
    dtype = dtype_of(x)
    count, depth, _ = shape_of(blocks)
    images, channel_blocks, height, width, lanes = shape_of(x)
    _, out_blocks, out_height, out_width, out_lanes = c.out_shape
    outputs = out_blocks * out_lanes
    pattern = _pattern(c, blocks, outputs, dtype)
    if pattern is None or 0 in (*shape_of(x), *c.out_shape) or (channel_blocks * lanes) % depth:
        return NotImplemented
    if count == 0:
        return c.broadcast(c.reshape(bias, (1, out_blocks, 1, 1, out_lanes)), c.out_shape)
    kernel = c.integers("kernel_shape")
    strides, dilations = c.integers("strides", (1, 1)), c.integers("dilations", (1, 1))
    pads = c.integers("pads", (0, 0, 0, 0))
    taps = np.stack(np.unravel_index(pattern.columns % math.prod(kernel), kernel))
    # the first channel of a block, and where its tap lies in a window
    seen = np.stack(
        [pattern.columns // math.prod(kernel), taps[0] * dilations[0] - pads[0], taps[1] * dilations[1] - pads[1]], 1
    ).astype(np.int32)
    axes = Axes(
        (
            (("m", images),),
            (("n", out_blocks),),
            (("m", out_height),),
            (("m", out_width),),
            (("n", out_lanes),),
        )
    )
    padded = any(pads)

    def define(v: te.Tensor, u: te.Tensor, places: te.Tensor, bounds: te.Tensor, b: te.Tensor) -> te.Tensor:
        def left(pixel: Expr, block: Expr, i: tirx.IterVar) -> Expr | te.TensorSlice:
            y = tirx.floormod(tirx.floordiv(pixel, out_width), out_height) * strides[0] + places[block, 1]
            z = tirx.floormod(pixel, out_width) * strides[1] + places[block, 2]
            channel = places[block, 0] * depth + i
            image = tirx.floordiv(pixel, out_height * out_width)
            value = v[image, tirx.floordiv(channel, lanes), y, z, tirx.floormod(channel, lanes)]
            if not padded:
                return value
            inside = tirx.all(y >= 0, y < height, z >= 0, z < width)
            return tirx.if_then_else(inside, value, const(0, dtype))

        return sparse.compute(
            left,
            u,
            bounds,
            (images * out_height * out_width, outputs, pattern.groups, pattern.longest),
            axes,
            dtype,
            lambda _, group, __, ___, lane: b[group, lane],
            accumulator(dtype),
            c.tf32,
            c.tile,
            pattern.turned,
        )

    places, bounds = relax.const(seen, "int32"), relax.const(pattern.order, "int32")
    return c.te("sparse_conv", define, x, _weights(c, blocks, pattern), places, bounds, bias, pattern=epilogue(c))
