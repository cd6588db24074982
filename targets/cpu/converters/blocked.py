"""The operators of the domain `graphopt` on the blocked layout."""

from __future__ import annotations

import math

from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    EPILOGUE,
    INJECTIVE,
    OPAQUE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.cpu.kernels import lrn, squares, tiling
from graphopt.targets.cpu.kernels.conv import depthwise, direct


def to_blocked(c: Context, inputs: Inputs) -> Outputs:
    """ToBlocked by squares transposed in registers, with a preceding channel shuffle; else element by element.

    An input that is a transposition of a channels-last tensor is read from that tensor, in full vectors.
    """
    block = c.integer("block")
    if block == 1:
        return c.reshape(inputs[0], (*shape_of(inputs[0]), 1))
    _, channels, _, _ = shape = shape_of(inputs[0])
    if (last := _channels_last(c, inputs[0])) is not None:
        return c.te("to_blocked", lambda x: _from_channels_last(x, block), last, pattern=INJECTIVE)
    if squares.possible(shape, block, dtype_of(inputs[0])):
        x, groups = _before_shuffle(c, inputs[0])
        return c.function("to_blocked", squares.to_blocked(shape, block, dtype_of(x), groups), c.out_shape, x)

    def compute(x: te.Tensor) -> te.Tensor:
        n, _, h, w = (int(d) for d in x.shape)

        def element(i: Expr, o: Expr, y: Expr, z: Expr, lane: Expr) -> Expr | te.TensorSlice:
            channel = o * block + lane
            value = x[i, channel, y, z]
            return (
                value if channels % block == 0 else tirx.if_then_else(channel < channels, value, tirx.const(0, x.dtype))
            )

        return te.compute((n, -(-channels // block), h, w, block), element, name="to_blocked")

    return c.te("to_blocked", compute, inputs[0], pattern=INJECTIVE)


def _from_channels_last(x: te.Tensor, block: int) -> te.Tensor:
    """y[N, CB, H, W, b] of x[N, H, W, C]."""
    n, h, w, channels = (int(d) for d in x.shape)

    def element(i: Expr, o: Expr, y: Expr, z: Expr, lane: Expr) -> Expr | te.TensorSlice:
        channel = o * block + lane
        value = x[i, y, z, channel]
        return value if channels % block == 0 else tirx.if_then_else(channel < channels, value, tirx.const(0, x.dtype))

    return te.compute((n, -(-channels // block), h, w, block), element, name="to_blocked")


def _channels_last(c: Context, x: relax.Expr) -> relax.Expr | None:
    """[N, H, W, C], a view of the tensor that x[N, C, H, W] is a transposition of; None if it is not.

    Between the two may be Reshapes of the plane, and axes of one element anywhere.
    """
    n, channels, h, w = shape_of(x)
    moved = x
    while (before := _argument(c, moved, "relax.reshape")) is not None:
        moved = before
    source = _argument(c, moved, "relax.permute_dims")
    axes = None if source is None else c.builder.lookup_binding(moved).attrs.axes
    if source is None or axes is None or channels == 1 or h * w == 1:
        return None
    extents = shape_of(source)
    longer = [int(axis) for axis in axes if extents[int(axis)] > 1]
    first = next((i for i, axis in enumerate(longer) if axis == max(longer)), 0)
    others = longer[:first] + longer[first + 1 :]
    images = math.prod(extents[axis] for axis in longer[:first])
    if images != n or extents[longer[first]] != channels or others != sorted(others):
        return None
    return c.reshape(source, (n, h, w, channels))


def _before_shuffle(c: Context, x: relax.Expr) -> tuple[relax.Expr, int]:
    """The tensor that was shuffled to give `x`, and in how many groups; `x` itself and 1 if it is no channel shuffle.

    A shuffle is Reshape to [N, groups, C / groups, H, W], Transpose of axes 1 and 2, Reshape back.
    """
    n, channels, h, w = shape_of(x)
    moved = _argument(c, x, "relax.reshape")
    split = _argument(c, moved, "relax.permute_dims")
    source = _argument(c, split, "relax.reshape")
    if source is None or shape_of(source) != (n, channels, h, w) or len(shape_of(split)) != 5:
        return x, 1
    axes = c.builder.lookup_binding(moved).attrs.axes
    groups = shape_of(split)[1]
    if axes is None or [int(axis) for axis in axes] != [0, 2, 1, 3, 4]:
        return x, 1
    return (source, groups) if shape_of(split) == (n, groups, channels // groups, h, w) else (x, 1)


def _argument(c: Context, x: relax.Expr | None, operator: str) -> relax.Expr | None:
    """The first operand of `x` if it is the result of `operator`; else None."""
    bound = c.builder.lookup_binding(x) if isinstance(x, relax.Var) else None
    if isinstance(bound, relax.Call) and str(getattr(bound.op, "name", "")) == operator:
        return bound.args[0]
    return None


def from_blocked(c: Context, inputs: Inputs) -> Outputs:
    """FromBlocked by squares transposed in registers where they fit, else element by element."""
    channels = c.integer("channels")
    if squares.possible(c.out_shape, shape_of(inputs[0])[4], dtype_of(inputs[0])):
        kernel = squares.from_blocked(c.out_shape, shape_of(inputs[0])[4], dtype_of(inputs[0]))
        return c.function("from_blocked", kernel, c.out_shape, inputs[0])

    def compute(x: te.Tensor) -> te.Tensor:
        n, _, h, w, b = (int(d) for d in x.shape)
        return te.compute(
            (n, channels, h, w),
            lambda i, o, y, z: x[i, tirx.floordiv(o, b), y, z, tirx.floormod(o, b)],
            name="from_blocked",
        )

    return c.te("from_blocked", compute, inputs[0], pattern=INJECTIVE)


def _four(pads: tuple[int, ...]) -> tuple[int, int, int, int]:
    top, left, bottom, right = pads
    return top, left, bottom, right


def two(values: tuple[int, ...]) -> tuple[int, int]:
    """A pair, for type checkers."""
    first, second = values
    return first, second


def pad(c: Context, x: relax.Expr, pads: tuple[int, ...]) -> relax.Expr:
    """The blocked image with its padding; nothing where it has none."""
    if not any(pads):
        return x
    return c.te("pad", lambda v: tiling.pad_input(v, _four(pads)), x, pattern=INJECTIVE)


def conv2d_blocked(c: Context, inputs: Inputs) -> Outputs:
    """Conv2dBlocked: the direct convolution of the padded input, with a bias."""
    x, w, bias = inputs
    tile = direct.Tile.parse(c.tile) if c.tile else None
    padded = pad(c, x, c.integers("pads", (0, 0, 0, 0)))  # once: every tile of output channels reads all of it
    strides, dilations = two(c.integers("strides", (1, 1))), two(c.integers("dilations", (1, 1)))
    return c.te(
        "conv_direct",
        lambda p, q, r: direct.compute(p, q, r, strides, dilations, c.machine, tile),
        padded,
        w,
        bias,
        pattern=EPILOGUE,
    )


def depthwise_blocked(c: Context, inputs: Inputs) -> Outputs:
    """DepthwiseConv2dBlocked, with a bias."""
    x, w, bias = inputs
    pads = _four(c.integers("pads", (0, 0, 0, 0)))
    strides, dilations = two(c.integers("strides", (1, 1))), two(c.integers("dilations", (1, 1)))
    return c.te(
        "depthwise",
        lambda p, q, r: depthwise.depthwise(p, q, r, strides, dilations, pads),
        x,
        w,
        bias,
        pattern=EPILOGUE,
    )


def pool_blocked(mode: str) -> Converter:
    """MaxPoolBlocked (`mode` "max") and AveragePoolBlocked ("average")."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        kernel = two(c.integers("kernel_shape"))
        strides, pads = two(c.integers("strides", (1, 1))), _four(c.integers("pads", (0, 0, 0, 0)))
        dilations, out = two(c.integers("dilations", (1, 1))), two(c.out_shape[2:4])
        include = bool(c.integer("count_include_pad"))
        return c.te(
            f"pool_{mode}",
            lambda x: depthwise.pool(x, mode, kernel, strides, pads, dilations, out, include),
            inputs[0],
            pattern=EPILOGUE,
        )

    return convert


def global_average_pool_blocked(c: Context, inputs: Inputs) -> Outputs:
    """GlobalAveragePoolBlocked as one window over the plane."""
    kernel = two(shape_of(inputs[0])[2:4])
    return c.te(
        "pool_global",
        lambda x: depthwise.pool(x, "average", kernel, (1, 1), (0, 0, 0, 0), (1, 1), (1, 1), False),
        inputs[0],
        pattern=EPILOGUE,
    )


def lrn_blocked(c: Context, inputs: Inputs) -> Outputs:
    """LRNBlocked across `channels` channels."""
    channels, size = c.integer("channels"), c.integer("size")
    alpha, beta, bias = c.real("alpha", 1e-4), c.real("beta", 0.75), c.real("bias", 1.0)

    return c.te("lrn", lambda x: lrn.compute(x, channels, size, alpha, beta, bias), inputs[0], pattern=OPAQUE)
