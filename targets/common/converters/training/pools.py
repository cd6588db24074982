"""MaxPoolArgmax, MaxPoolGradient and AveragePoolGradient."""

from __future__ import annotations

from collections.abc import Callable

from tvm import relax

from graphopt.targets.common.converters import pooling
from graphopt.targets.common.converters.base import EPILOGUE, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.kernels.training import pools
from graphopt.targets.common.kernels.training.pools import PLAIN, Tiles, Window

Largest = Callable[[Context, relax.Expr, Window], relax.Expr]
"""(context, x, window) -> the maxima."""


def window_of(c: Context, image: tuple[int, ...], out: tuple[int, ...]) -> Window:
    """The window that the attributes of the node describe."""
    ones = (1,) * len(image)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    begins = c.integers("pads", (0,) * 2 * len(image))[: len(image)]
    return Window(image, out, c.integers("kernel_shape"), strides, dilations, begins)


def largest(c: Context, x: relax.Expr, window: Window) -> relax.Expr:
    """The maxima of a planar tensor."""
    return c.te("pool_max", lambda v: pools.largest(v, window), x, pattern=OPAQUE)


def max_pool_argmax(c: Context, inputs: Inputs, maxima: Largest = largest, tiles: Tiles = PLAIN) -> Outputs:
    """MaxPoolArgmax: the maxima, then the first tap that holds each."""
    (x,) = inputs
    rank = len(c.integers("kernel_shape"))
    shape = shape_of(x)
    if dtype_of(x) not in ("float32", "float64") or 0 in (*shape, *c.out_shape):
        return NotImplemented
    window = window_of(c, shape[2 : 2 + rank], c.out_shape[2 : 2 + rank])
    y = maxima(c, x, window)
    return [y, c.te("pool_argmax", lambda v, top: pools.argmax(v, top, window, tiles), x, y, pattern=OPAQUE)]


def max_pool_gradient(c: Context, inputs: Inputs, tiles: Tiles = PLAIN) -> Outputs:
    """MaxPoolGradient."""
    dy, a = inputs[:2]
    rank = len(c.integers("kernel_shape"))
    if dtype_of(dy) not in ("float32", "float64") or 0 in (*shape_of(dy), *c.out_shape):
        return NotImplemented
    window = window_of(c, c.out_shape[2 : 2 + rank], shape_of(dy)[2 : 2 + rank])
    return c.te("pool_max_gradient", lambda g, t: pools.max_gradient(g, t, window, tiles), dy, a, pattern=EPILOGUE)


def average_pool_gradient(c: Context, inputs: Inputs, tiles: Tiles = PLAIN) -> Outputs:
    """AveragePoolGradient."""
    dy = inputs[0]
    rank = len(c.integers("kernel_shape"))
    if dtype_of(dy) not in ("float32", "float64") or 0 in (*shape_of(dy), *c.out_shape):
        return NotImplemented
    window = window_of(c, c.out_shape[2 : 2 + rank], shape_of(dy)[2 : 2 + rank])
    ends = c.integers("pads", (0,) * 2 * rank)[rank:]
    bounds = pooling.Pool(window.out, window.kernel, window.strides, window.dilations, window.begins)
    counts = pooling.counts(c, window.image, bounds, ends, dtype_of(dy))
    return c.te(
        "pool_average_gradient", lambda g, n: pools.average_gradient(g, n, window, tiles), dy, counts, pattern=EPILOGUE
    )
