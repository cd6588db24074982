"""Extents of convolutions, pools and resized images as ONNX Runtime computes them, also where onnx's inference differs.

A program must compute what ONNX Runtime computes, and the consumers of such a node must fit its extents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.constness import constant_array, constant_tensor, is_constant
from graphopt.graph.shapes.operands import Extents, Rule, Typed, Unknown, extents, integer, kind_of, operand


def windows(node: ir.Node, image: Extents, kernel: Extents, pool: bool = False) -> Extents:
    """Extents of a convolution or pool over `image`, as ONNX Runtime computes them.

    SAME_UPPER and SAME_LOWER of a pool pad for its kernel as it is without dilations.
    """
    rank = len(image)
    strides = node.attributes.get_ints("strides") or (1,) * rank
    dilations = node.attributes.get_ints("dilations") or (1,) * rank
    pads = node.attributes.get_ints("pads") or (0,) * (2 * rank)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    out = []
    for axis in range(rank):
        begin, end = (0, 0) if mode == "VALID" else (pads[axis], pads[rank + axis])
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            same = -(-image[axis] // strides[axis])
            if not pool:
                out.append(same)
                continue
            begin, end = split_pads(mode, (same - 1) * strides[axis] + kernel[axis] - image[axis])
        room = image[axis] + begin + end - dilations[axis] * (kernel[axis] - 1) - 1
        extent = room // strides[axis] + 1
        if integer(node, "ceil_mode", 0):
            extent = math.ceil(np.float32(room) / np.float32(strides[axis])) + 1
            if (extent - 1) * strides[axis] >= image[axis] + begin:  # every window begins inside the image
                extent -= 1
        out.append(extent)
    return tuple(out)


def split_pads(mode: str, total: int) -> tuple[int, int]:
    """Padding before and after an axis that lacks `total` elements, for SAME_UPPER and SAME_LOWER."""
    small, large = max(0, total) // 2, max(0, total) - max(0, total) // 2
    return (small, large) if mode == "SAME_UPPER" else (large, small)


def convolved(weight: int, last: bool = False) -> Rule:
    """Rule of a convolution with its weights at operand `weight`; `last`: channels are the last axis."""

    def rule(node: ir.Node) -> Sequence[Typed]:
        x, w = extents(node, 0), extents(node, weight)
        if last:
            return [(kind_of(node, 0), (x[0], *windows(node, x[1:-1], w[2:]), w[0]))]
        return [(kind_of(node, 0), (x[0], w[0], *windows(node, x[2:], w[2:])))]

    return rule


def pooled(last: bool) -> Rule:
    """Rule of a pool; `last`: channels are the last axis."""

    def rule(node: ir.Node) -> Sequence[Typed]:
        x, kernel = extents(node, 0), tuple(node.attributes.get_ints("kernel_shape") or ())
        last_here = last or integer(node, "channels_last", 0) != 0
        image = x[1:-1] if last_here else x[2:]
        if len(image) != len(kernel):
            raise Unknown
        out = windows(node, image, kernel, pool=True)
        y = (x[0], *out, x[-1]) if last_here else (*x[:2], *out)
        return [(kind_of(node, 0), y), (ir.DataType.INT64, y)]

    return rule


def _resized(node: ir.Node) -> Sequence[Typed]:
    """Resize by scales: extents are multiplied in float32, where onnx multiplies in float64."""
    x = extents(node, 0)
    given = operand(node, 1 if len(node.inputs) == 2 else 2)
    if not is_constant(given) or not constant_tensor(given).size:
        raise Unknown
    scales = constant_array(given).astype(np.float32)
    axes = [axis % len(x) for axis in node.attributes.get_ints("axes") or range(len(x))]
    out = list(x)
    for axis, scale in zip(axes, scales, strict=True):
        out[axis] = int(scale * np.float32(x[axis]))
    return [(kind_of(node, 0), tuple(out))]


def _ceiled(node: ir.Node) -> Sequence[Typed]:
    """Pools with ceil_mode, of which onnx counts windows that begin in the padding, or with auto_pad and dilations."""
    dilated = any(step != 1 for step in node.attributes.get_ints("dilations") or ())
    if not integer(node, "ceil_mode", 0) and not (dilated and "auto_pad" in node.attributes):
        raise Unknown
    return pooled(last=False)(node)


def _padded_transposed(node: ir.Node) -> Sequence[Typed]:
    """ConvTranspose that pads to input times stride: output_padding is part of what the padding takes away."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode not in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in node.attributes:
        raise Unknown
    x, w = extents(node, 0), extents(node, 1)
    rank = len(x) - 2
    strides = node.attributes.get_ints("strides") or (1,) * rank
    dilations = node.attributes.get_ints("dilations") or (1,) * rank
    extra = node.attributes.get_ints("output_padding") or (0,) * rank
    out = []
    for axis in range(rank):
        full = (x[2 + axis] - 1) * strides[axis] + extra[axis] + (w[2 + axis] - 1) * dilations[axis] + 1
        out.append(full - max(0, full - x[2 + axis] * strides[axis]))
    return [(kind_of(node, 0), (x[0], w[1] * integer(node, "group", 1), *out))]


def _spectra(node: ir.Node) -> Sequence[Typed]:
    """STFT[B, frames, bins, 2]: half of the bins if one-sided, where onnx counts all of a length that is a constant."""
    signal, step = extents(node, 0), operand(node, 1)
    window, length = operand(node, 2), operand(node, 3)
    if not is_constant(step):
        raise Unknown
    if length is not None:
        if not is_constant(length):
            raise Unknown
        size = int(constant_array(length).reshape(-1)[0])
    elif window is not None:
        size = extents(node, 2)[0]
    else:
        raise Unknown
    frames = (signal[1] - size) // int(constant_array(step).reshape(-1)[0]) + 1
    bins = size // 2 + 1 if integer(node, "onesided", 1) else size
    return [(kind_of(node, 0), (signal[0], frames, bins, 2))]


def _counted(node: ir.Node) -> Sequence[Typed]:
    """Range of fp16 and bf16, whose elements onnx does not count."""
    ends = [operand(node, index) for index in range(3)]
    if kind_of(node, 0) not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        raise Unknown
    if any(not is_constant(value) for value in ends):
        raise Unknown
    start, limit, step = (float(constant_array(v).reshape(())) for v in ends if is_constant(v))
    if not step or not all(map(math.isfinite, (start, limit, step))):
        raise Unknown
    return [(kind_of(node, 0), (max(math.ceil((limit - start) / step), 0),))]


OTHERWISE: dict[str, Rule] = {
    "AveragePool": _ceiled,
    "ConvTranspose": _padded_transposed,
    "LpPool": _ceiled,
    "MaxPool": _ceiled,
    "Range": _counted,
    "Resize": _resized,
    "STFT": _spectra,
    "Upsample": _resized,
}
"""Shape rules by operator of ONNX's own domain."""
