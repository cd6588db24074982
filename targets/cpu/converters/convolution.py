"""Conv of any rank on the plain layout (NCHW): a GEMM of the weights and the patches (im2col) per group."""

from __future__ import annotations

import math

from tvm import relax

from graphopt.targets.common.converters.base import EPILOGUE, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.pads import conv_begin_pads
from graphopt.targets.cpu.converters.products import product
from graphopt.targets.cpu.kernels import gemm


def conv(c: Context, inputs: Inputs) -> Outputs:
    """Conv of any rank and grouping on the plain layout: patches packed straight into panels, one GEMM per group."""
    x, w = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    if dtype_of(x) not in ("float32", "float64"):
        return NotImplemented
    groups, out = c.integer("group", 1), c.out_shape
    image = shape_of(x)[2:]
    kernel = shape_of(w)[2:] if len(shape_of(w)) > 2 else c.integers("kernel_shape")
    rank = len(kernel)
    if rank == 0:
        return NotImplemented
    strides, dilations = c.integers("strides", (1,) * rank), c.integers("dilations", (1,) * rank)
    begins = conv_begin_pads(c, image, kernel, strides, dilations, out[2:])
    batch, channels = shape_of(x)[:2]
    per_group = out[1] // groups
    if groups == 1 and math.prod(out[2:]) == 1 and kernel == image and not any(begins):
        # One output position that sees the full image: a GEMM with the weights on the streaming side.
        depth = channels * math.prod(kernel)
        y = product(c, c.reshape(x, (batch, depth)), c.reshape(w, (out[1], depth)), out, True, 1 + rank)
        if bias is None:
            return y
        return c.builder.emit(relax.op.add(y, c.reshape(bias, (1, out[1], *(1,) * rank))))
    depth, positions = channels // groups * math.prod(kernel), math.prod(out[2:])
    a = c.reshape(w, (groups, per_group, depth))
    tile = gemm.choose_tile(per_group, positions, depth, c.machine, dtype_of(x), c.tile)
    panels = c.te(
        "patches",
        lambda v: gemm.pack_patches(v, groups, kernel, strides, begins, dilations, out[2:], tile.width),
        x,
        pattern=OPAQUE,
    )
    parts = (1, 1, rank)
    if bias is None:
        return c.te("gemm", lambda p, q: gemm.compute(p, q, out, parts, tile.rows, groups), a, panels, pattern=EPILOGUE)
    return c.te(
        "gemm", lambda p, q, r: gemm.compute(p, q, out, parts, tile.rows, groups, r), a, panels, bias, pattern=EPILOGUE
    )
