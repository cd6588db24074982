"""The Winograd convolutions Conv2dWinograd and Conv2dWinogradAxis: three kernels, or one fused over blocks."""

from __future__ import annotations

from graphopt.ops.winograd import KERNEL, matrices, tile_of
from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.converters.base import EPILOGUE, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.cpu.kernels.conv import winograd, winograd_fused


def conv2d_winograd(c: Context, inputs: Inputs) -> Outputs:
    """Conv2dWinograd or Conv2dWinogradAxis, with the tile chosen for the node or the one with the best estimate."""
    x, u, bias = inputs
    kernel = _kernel(c, shape_of(u)[0])
    m = tile_of(c.integer("m"), kernel)
    top, left, bottom, right = c.integers("pads", (0, 0, 0, 0))
    pads = (top, left, bottom, right)
    rows, columns = c.out_shape[2:4]
    out = (rows, columns)
    of_rows, of_columns = matrices(m[0], kernel[0]), matrices(m[1], kernel[1])
    at, bt = (of_rows[0], of_columns[0]), (of_rows[2], of_columns[2])
    n, ci, _, _, lanes = shape_of(x)
    if c.tile:
        tile = winograd.Tile.parse(c.tile)
    else:
        taps, co = shape_of(u)[:2]
        tile = winograd_fused.tiles(out, m, taps, ci, co, n, c.machine)[0]
    if tile.rows:
        return c.te(
            "winograd_fused",
            lambda p, q, r: winograd_fused.compute(p, q, r, m, pads, out, at, bt, c.machine, tile),
            x,
            u,
            bias,
            pattern=EPILOGUE,
        )
    images = n if 1 in kernel else 1  # one row has few tiles
    blocks = winograd.Blocks.of(out, m, images=images)
    apart = blocks.apart(n // images * ci * lanes * ITEM_BYTES[dtype_of(x)])
    v = c.te("winograd_input", lambda p: winograd.transform_input(p, apart, pads, bt), x, pattern=OPAQUE)
    mm = c.te(
        "winograd_product",
        lambda p, q: winograd.product(p, q, c.machine, tile, tiles=blocks.places),
        v,
        u,
        pattern=OPAQUE,
    )
    return c.te(
        "winograd_output",
        lambda p, q: winograd.transform_output(p, q, blocks, out, at),
        mm,
        bias,
        pattern=EPILOGUE,
    )


def _kernel(c: Context, taps: int) -> tuple[int, int]:
    """Rows and columns of the kernel."""
    axis = c.integer("axis")
    if not axis:
        return KERNEL, KERNEL
    along = taps - c.integer("m") + 1
    return (along, 1) if axis == 2 else (1, along)
