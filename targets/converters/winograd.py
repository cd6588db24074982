"""The Winograd convolution, `graphopt.Conv2dWinograd`: three kernels, or one that goes over blocks of tiles."""

from __future__ import annotations

from typing import Any

from graphopt.ops.winograd import matrices
from graphopt.program import ITEM_BYTES
from graphopt.targets.converters.base import EPILOGUE, OPAQUE, Context, dtype_of, shape_of
from graphopt.targets.kernels import conv_winograd, conv_winograd_fused


def winograd(c: Context, inputs: list[Any]) -> Any:
    """A Conv2dWinograd node, with the tile that was chosen for it or the one with the best estimate."""
    x, u, bias = inputs
    m = c.integer("m")
    top, left, bottom, right = c.integers("pads", (0, 0, 0, 0))
    pads = (top, left, bottom, right)
    rows, columns = c.out_shape[2:4]
    out = (rows, columns)
    at, g, bt = matrices(m)
    if c.tile:
        tile = conv_winograd.Tile.parse(c.tile)
    else:
        tile = conv_winograd_fused.tiles(out, m, shape_of(u)[2], shape_of(u)[1], shape_of(x)[0], c.machine)[0]
    if tile.rows:
        return c.te(
            "winograd_fused",
            lambda p, q, r: conv_winograd_fused.compute(p, q, r, m, pads, out, (at, g, bt), c.machine, tile),
            x,
            u,
            bias,
            pattern=EPILOGUE,
        )
    blocks = conv_winograd.Blocks.of(out, m)
    n, ci, _, _, lanes = shape_of(x)
    apart = blocks.apart(n * ci * lanes * ITEM_BYTES[dtype_of(x)])
    v = c.te("winograd_input", lambda p: conv_winograd.transform_input(p, apart, pads, bt), x, pattern=OPAQUE)
    mm = c.te(
        "winograd_product",
        lambda p, q: conv_winograd.product(p, q, c.machine, tile, tiles=blocks.places),
        v,
        u,
        pattern=OPAQUE,
    )
    return c.te(
        "winograd_output",
        lambda p, q: conv_winograd.transform_output(p, q, blocks, out, at),
        mm,
        bias,
        pattern=EPILOGUE,
    )
