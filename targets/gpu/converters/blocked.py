"""The operators of the domain `graphopt` on blocked tensors x[N, CB, H, W, b], for GPUs.

The channels of a block are neighbours in memory, and so are the pixels of a block of channels. A convolution is then a
GEMM of pixels and channels (`kernels.conv_blocked`) whose operands a thread copies 16 bytes at a time, whatever the
padding; and neighbouring threads write neighbouring channels.

Why blocks and not all channels ([N, H, W, C]): a warp reads whole sectors of 32 bytes either way, because the next
pixel of the same channels follows at once; and a Concat of channels, which is most of what an inception or dense block
does besides convolving, is one copy, or none where the parts are written in place. Why 16: 16 of fp16 are a sector, and
the depth of one instruction of the tensor cores; larger blocks would waste more on channels that do not fill them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.cost.workload import KernelPlan
from graphopt.targets.common.converters.base import (
    FLOATS,
    HALF_DTYPES,
    INJECTIVE,
    OPAQUE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.converters.refusals import NotSupported
from graphopt.targets.common.kernels.blocks import const
from graphopt.targets.gpu import plans
from graphopt.targets.gpu.code import SYNCHRONIZED
from graphopt.targets.gpu.converters.views import seen_through
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.fusion import epilogue
from graphopt.targets.gpu.kernels import conv_blocked, transposes, window, winograd
from graphopt.targets.gpu.kernels.gemm import product
from graphopt.targets.gpu.kernels.gemm.axes import Axes, blocked
from graphopt.targets.gpu.kernels.gemm.tensor_cores import CHUNK_BYTES
from graphopt.targets.gpu.kernels.window import Window

BLOCK = 16
"""Channels per block."""

PLANE = 32
"""Pixels per plane from which on a change of layout goes through shared memory."""


def accumulator(dtype: str) -> str:
    """The dtype of sums of `dtype`: fp16 and bf16 are summed in fp32."""
    return "float32" if dtype in HALF_DTYPES else dtype


def _require_floats(c: Context, inputs: Inputs) -> None:
    if dtype_of(inputs[0]) not in (*FLOATS, *HALF_DTYPES):
        raise NotSupported(f"the kernel of {c.node.op_type} does not compute in {dtype_of(inputs[0])}")


def _window(c: Context, kernel: tuple[int, ...]) -> Window:
    """The window of a node over the two axes of an image."""
    ones = (1, 1)
    return Window(
        kernel,
        c.integers("strides", ones),
        c.integers("dilations", ones),
        c.integers("pads", (0, 0, 0, 0))[:2],
    )


def on_cores(c: Context, dtype: str) -> bool:
    """Whether tensor cores may multiply numbers of `dtype`; they want both operands along k."""
    device: GpuSpec = c.machine
    return bool(device.cuda) and (dtype in HALF_DTYPES or c.tf32)


def conv2d_blocked(c: Context, inputs: Inputs) -> Outputs:
    """Conv2dBlocked: pixels times channels, a GEMM for each group."""
    _require_floats(c, inputs)
    x, w, bias = inputs
    if on_cores(c, dtype_of(x)) and c.integer("group", 1) == 1:
        x, w = _gathered(c, x, w)
    blocks, deep, *kernel, lanes, b = shape_of(w)
    seen, groups, kept = _window(c, tuple(kernel)), c.integer("group", 1), accumulator(dtype_of(x))
    depth = deep * math.prod(kernel) * lanes
    weights = c.reshape(w, (blocks, depth, b))
    if on_cores(c, dtype_of(x)):  # constant, so it is done while compiling
        weights = c.reshape(c.builder.emit(relax.op.permute_dims(weights, [0, 2, 1])), (blocks * b, depth))
    return c.te(
        "conv",
        lambda v, u, s: conv_blocked.compute(v, u, s, seen, groups, c.out_shape, kept, c.tf32, c.tile),
        x,
        weights,
        bias,
        pattern=epilogue(c),
    )


def _gathered(c: Context, x: relax.Expr, w: relax.Expr) -> tuple[relax.Expr, relax.Expr]:
    """Few planes, as a first layer has, as one block of channels that is copied 16 bytes at a time; zeros beyond them.

    x[N, C, H, W, 1], w[CO, C, kh, kw, 1, b]  ->  x[N, 1, H, W, chunk], w[CO, 1, kh, kw, chunk, b]
    """
    (images, planes, height, width, lanes), dtype = shape_of(x), dtype_of(x)
    chunk = CHUNK_BYTES // (2 if dtype in HALF_DTYPES else 4)
    if lanes > 1 or planes > chunk:
        return x, w
    blocks, _, kh, kw, _, b = shape_of(w)
    zero = const(0, dtype)
    source, view = seen_through(c, x)  # a view between would keep what is before it, a cast say, in a kernel of its own

    def pixels(v: te.Tensor) -> te.Tensor:
        def element(n: Expr, _: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
            return tirx.if_then_else(lane < planes, v[tuple(view.index([n, lane, y, z, 0]))], zero)

        return te.compute((images, 1, height, width, chunk), element, name="gathered")

    def weights(u: te.Tensor) -> te.Tensor:
        return te.compute(
            (blocks, 1, kh, kw, chunk, b),
            lambda o, _, i, j, lane, q: tirx.if_then_else(lane < planes, u[o, lane, i, j, 0, q], zero),
            name="gathered",
        )

    return c.te("gather", pixels, source, pattern=INJECTIVE), c.te("gather_weights", weights, w, pattern=OPAQUE)


def winograd_blocked(c: Context, inputs: Inputs) -> Outputs:
    """Conv2dWinograd: the transform of the input, a GEMM for every tap, the transform of the output."""
    x, u, bias = inputs
    if dtype_of(x) not in ("float32", "float64"):
        raise NotSupported(f"the transforms of {c.node.op_type} would round to {dtype_of(x)}")
    dtype, out = dtype_of(x), c.out_shape
    taps, blocks, deep, lanes, b = shape_of(u)
    tiles = winograd.Tiles(c.integer("m"), out[0], (out[2], out[3]))
    pads = c.integers("pads", (0, 0, 0, 0))
    device: GpuSpec = c.machine
    plan = KernelPlan("winograd transform", layout=blocked(lanes))
    v = c.builder.emit_te(
        lambda p: winograd.transform_input(p, tiles, pads, device.threads_per_block),
        x,
        primfunc_name_hint="winograd_input",
        primfunc_attrs={"op_pattern": OPAQUE, **winograd.attributes(tiles), **plans.attribute(plan)},
    )
    mm = c.te(
        "winograd_product",
        lambda p, q: product.compute(
            lambda t, m, k: p[t, m, k],
            lambda t, k, n: q[t, tirx.floordiv(n, b), k, tirx.floormod(n, b)],
            (taps, tiles.count, blocks * b, deep * lanes),
            Axes.plain((taps, tiles.count, blocks * b), (1, 1, 1), tiles.count),
            dtype,
            tile=c.tile,
        ),
        v,
        c.reshape(u, (taps, blocks, deep * lanes, b)),
        pattern=OPAQUE,
    )

    def finish(p: te.Tensor, s: te.Tensor) -> te.Tensor:
        y = winograd.transform_output(p, tiles, out)
        return te.compute(out, lambda *i: y(*i) + s[i[1], i[4]], name="biased")

    return c.te("winograd_output", finish, mm, bias, pattern=epilogue(c))


def depthwise_blocked(c: Context, inputs: Inputs) -> Outputs:
    """DepthwiseConv2dBlocked: a thread sums the window of some neighbouring channels."""
    _require_floats(c, inputs)
    x, w, bias = inputs
    dtype, out = dtype_of(x), c.out_shape
    kept = accumulator(dtype)
    seen = _window(c, shape_of(w)[1:3])

    def define(v: te.Tensor, u: te.Tensor, s: te.Tensor) -> te.Tensor:
        sums = window.reduced(
            v, seen, out, te.sum, 0.0, kept, lambda value, block, y, z, lane: value * u[block, y, z, lane].astype(kept)
        )
        return te.compute(
            out, lambda *i: (sums(*i) + s[i[1], i[4]].astype(kept)).astype(dtype), name="finish"
        )  # fmt: skip

    return c.te("depthwise", define, x, w, bias, pattern=epilogue(c))


def pool_blocked(mode: str) -> Converter:
    """MaxPoolBlocked and AveragePoolBlocked."""

    def convert(c: Context, inputs: Inputs) -> Outputs:
        _require_floats(c, inputs)
        return _pool(c, inputs[0], mode, _window(c, c.integers("kernel_shape")), c.integers("pads", (0, 0, 0, 0)))

    return convert


def global_average_pool_blocked(c: Context, inputs: Inputs) -> Outputs:
    """GlobalAveragePoolBlocked: the mean of each plane."""
    _require_floats(c, inputs)
    image = shape_of(inputs[0])[2:4]
    return _pool(c, inputs[0], "average", Window(image, (1, 1), (1, 1), (0, 0)), (0, 0, 0, 0))


def _pool(c: Context, x: relax.Expr, mode: str, seen: Window, pads: tuple[int, ...]) -> relax.Expr:
    dtype, out = dtype_of(x), c.out_shape
    kept = accumulator(dtype)
    image = shape_of(x)[2:4]
    include = bool(c.integer("count_include_pad"))

    def define(v: te.Tensor) -> te.Tensor:
        if mode == "max":
            return window.reduced(v, seen, out, te.max, -math.inf, dtype)
        sums = window.reduced(v, seen, out, te.sum, 0.0, kept)

        def mean(n: Expr, block: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
            counted = [
                seen.count(axis, at, image[axis], (pads[axis], pads[axis + 2]) if include else (0, 0))
                for axis, at in enumerate((y, z))
            ]
            divisor = tirx.max(counted[0] * counted[1], 1)
            return (sums[n, block, y, z, lane] / divisor.astype(kept)).astype(dtype)

        return te.compute(out, mean, name="finish")

    return c.te(f"pool_{mode}", define, x, pattern=epilogue(c))


def lrn_blocked(c: Context, inputs: Inputs) -> Outputs:
    """LRNBlocked: the sum of squares goes across blocks."""
    _require_floats(c, inputs)
    x, dtype = inputs[0], dtype_of(inputs[0])
    kept = accumulator(dtype)
    channels, size, b = c.integer("channels"), c.integer("size"), shape_of(x)[4]
    alpha, beta, bias = c.real("alpha", 1e-4), c.real("beta", 0.75), c.real("bias", 1.0)

    def define(v: te.Tensor) -> te.Tensor:
        def element(n: Expr, block: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
            total: Expr = const(0, kept)
            for offset in range(size):
                channel = block * b + lane + (offset - (size - 1) // 2)
                value = v[n, tirx.floordiv(channel, b), y, z, tirx.floormod(channel, b)].astype(kept)
                inside = tirx.all(channel >= 0, channel < channels)
                total = total + tirx.if_then_else(inside, value * value, const(0, kept))
            base = total * const(alpha / size, kept) + const(bias, kept)
            return (v[n, block, y, z, lane].astype(kept) / tirx.pow(base, const(beta, kept))).astype(dtype)

        return te.compute(c.out_shape, element, name="lrn")

    return c.te("lrn", define, x, pattern=OPAQUE)


def to_blocked(c: Context, inputs: Inputs) -> Outputs:
    """ToBlocked: planes to pixels."""
    (x,) = inputs
    block = c.integer("block")
    shape = shape_of(x)
    if block == 1:
        return c.reshape(x, (*shape, 1))
    if math.prod(shape[2:]) >= PLANE:
        return _transposed(c, x, transposes.to_blocked(shape, block, dtype_of(x)))

    def element(v: te.Tensor, n: Expr, o: Expr, y: Expr, z: Expr, lane: Expr) -> Expr | te.TensorSlice:
        channel = o * block + lane
        value = v[n, channel, y, z]
        return tirx.if_then_else(channel < shape[1], value, const(0, v.dtype)) if shape[1] % block else value

    return c.te(
        "to_blocked",
        lambda v: te.compute(c.out_shape, lambda *i: element(v, *i), name="to_blocked"),
        x,
        pattern=INJECTIVE,
    )


def from_blocked(c: Context, inputs: Inputs) -> Outputs:
    """FromBlocked: pixels to planes."""
    (x,) = inputs
    b = shape_of(x)[4]
    if math.prod(shape_of(x)[2:4]) >= PLANE and b > 1:
        return _transposed(c, x, transposes.from_blocked(c.out_shape, b, dtype_of(x)))
    return c.te(
        "from_blocked",
        lambda v: te.compute(
            c.out_shape,
            lambda n, o, y, z: v[n, tirx.floordiv(o, b), y, z, tirx.floormod(o, b)],
            name="from_blocked",
        ),
        x,
        pattern=INJECTIVE,
    )


def _transposed(c: Context, x: relax.Expr, tile: transposes.Transpose) -> relax.Expr:
    device: GpuSpec = c.machine
    ends = "NCHW", blocked(tile.block)
    plan = KernelPlan("transpose", layout=" to ".join(ends if tile.to_blocked else ends[::-1]))
    return c.builder.emit_te(
        lambda v: transposes.compute(v, tile, c.out_shape, device.threads_per_block),
        x,
        primfunc_name_hint="transpose",
        primfunc_attrs={"op_pattern": OPAQUE, SYNCHRONIZED: 1, **plans.attribute(plan)},
    )


def no_kernel(c: Context, _: Inputs) -> Outputs:
    """Refuse an operator that is chosen for CPUs only.

    Raises:
        NotSupported: always.
    """
    raise NotSupported(f"{c.node.op_type} has no kernel for GPUs; compile the model that it was made from")


BLOCKED: Mapping[str, Converter] = {
    "graphopt.ToBlocked": to_blocked,
    "graphopt.FromBlocked": from_blocked,
    "graphopt.Conv2dBlocked": conv2d_blocked,
    "graphopt.Conv2dFft": no_kernel,
    "graphopt.Conv2dWinograd": winograd_blocked,
    "graphopt.Conv2dWinogradAxis": no_kernel,
    "graphopt.DepthwiseConv2dBlocked": depthwise_blocked,
    "graphopt.MaxPoolBlocked": pool_blocked("max"),
    "graphopt.AveragePoolBlocked": pool_blocked("average"),
    "graphopt.GlobalAveragePoolBlocked": global_average_pool_blocked,
    "graphopt.LRNBlocked": lrn_blocked,
}
