"""MaxPoolArgmax, MaxPoolGradient and AveragePoolGradient, on planar and on blocked tensors."""

from __future__ import annotations

from graphopt.targets.common.converters import pooling
from graphopt.targets.common.converters.base import EPILOGUE, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.cpu.converters.blocked import two
from graphopt.targets.cpu.kernels.conv import depthwise
from graphopt.targets.cpu.kernels.training import pools
from graphopt.targets.cpu.kernels.training.pools import Window


def _window(c: Context, image: tuple[int, ...], out: tuple[int, ...]) -> Window:
    ones = (1,) * len(image)
    strides, dilations = c.integers("strides", ones), c.integers("dilations", ones)
    begins = c.integers("pads", (0,) * 2 * len(image))[: len(image)]
    return Window(image, out, c.integers("kernel_shape"), strides, dilations, begins)


def max_pool_argmax(c: Context, inputs: Inputs) -> Outputs:
    """MaxPoolArgmax and MaxPoolArgmaxBlocked: the maxima, then the first tap that holds each."""
    (x,) = inputs
    rank = len(c.integers("kernel_shape"))
    shape = shape_of(x)
    if dtype_of(x) not in ("float32", "float64") or 0 in (*shape, *c.out_shape):
        return NotImplemented
    window = _window(c, shape[2 : 2 + rank], c.out_shape[2 : 2 + rank])
    if len(shape) > 2 + rank:
        pads = window.begins[0], window.begins[1], 0, 0
        arguments = two(window.kernel), two(window.strides), pads, two(window.dilations), two(window.out), False
        y = c.te("pool_max", lambda v: depthwise.pool(v, "max", *arguments), x, pattern=OPAQUE)
    else:
        y = c.te("pool_max", lambda v: pools.largest(v, window), x, pattern=OPAQUE)
    return [y, c.te("pool_argmax", lambda v, top: pools.argmax(v, top, window), x, y, pattern=OPAQUE)]


def max_pool_gradient(c: Context, inputs: Inputs) -> Outputs:
    """MaxPoolGradient and MaxPoolGradientBlocked."""
    dy, a = inputs[:2]
    rank = len(c.integers("kernel_shape"))
    if dtype_of(dy) not in ("float32", "float64") or 0 in (*shape_of(dy), *c.out_shape):
        return NotImplemented
    window = _window(c, c.out_shape[2 : 2 + rank], shape_of(dy)[2 : 2 + rank])
    return c.te("pool_max_gradient", lambda g, t: pools.max_gradient(g, t, window), dy, a, pattern=EPILOGUE)


def average_pool_gradient(c: Context, inputs: Inputs) -> Outputs:
    """AveragePoolGradient and AveragePoolGradientBlocked."""
    dy = inputs[0]
    rank = len(c.integers("kernel_shape"))
    if dtype_of(dy) not in ("float32", "float64") or 0 in (*shape_of(dy), *c.out_shape):
        return NotImplemented
    window = _window(c, c.out_shape[2 : 2 + rank], shape_of(dy)[2 : 2 + rank])
    ends = c.integers("pads", (0,) * 2 * rank)[rank:]
    bounds = pooling.Pool(window.out, window.kernel, window.strides, window.dilations, window.begins)
    counts = pooling.counts(c, window.image, bounds, ends, dtype_of(dy))
    return c.te(
        "pool_average_gradient", lambda g, n: pools.average_gradient(g, n, window), dy, counts, pattern=EPILOGUE
    )
