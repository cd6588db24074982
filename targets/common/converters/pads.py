"""Padding before each axis, from the attribute `pads` of a node or from its `auto_pad`."""

from __future__ import annotations

from graphopt.graph.shapes.extents import split_pads
from graphopt.targets.common.converters.base import Context


def conv_begin_pads(
    c: Context,
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    out: tuple[int, ...],
) -> tuple[int, ...]:
    """The padding before each axis, from the attribute `pads` or from `auto_pad`."""
    rank = len(kernel)
    mode = c.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return c.integers("pads", (0,) * (2 * rank))[:rank]
    begins = []
    for axis in range(rank):
        total = max(0, (out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - image[axis])
        begins.append(0 if mode == "VALID" else total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return tuple(begins)


def conv_transpose_begin_pads(
    c: Context,
    image: list[int],
    kernel: list[int],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    out: tuple[int, ...],
) -> tuple[int, ...]:
    """Padding before each axis; derived from the output's size where the node gives that instead."""
    rank = len(kernel)
    mode = c.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", "") and "output_shape" not in c.node.attributes:
        return c.integers("pads", (0,) * (2 * rank))[:rank]
    extra = c.integers("output_padding", (0,) * rank)
    begins = []
    for axis in range(rank):
        full = strides[axis] * (image[axis] - 1) + extra[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = max(0, full - out[axis])
        # The odd one goes before the image in every mode but SAME_UPPER, also where only output_shape is given.
        begins.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return tuple(begins)


def pool_pads(
    c: Context, image: tuple[int, ...], kernel: tuple[int, ...], strides: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Padding of a pool before and after each axis."""
    rank, mode = len(image), c.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        pads = c.integers("pads", (0,) * (2 * rank))
        return pads[:rank], pads[rank:]
    if mode == "VALID":
        return (0,) * rank, (0,) * rank
    total = [(-(-n // s) - 1) * s + k - n for n, k, s in zip(image, kernel, strides, strict=True)]
    pairs = [split_pads(mode, missing) for missing in total]
    return tuple(pair[0] for pair in pairs), tuple(pair[1] for pair in pairs)
