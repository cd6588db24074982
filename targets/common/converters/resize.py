"""Resize in all its modes: along each axis a few weighted taps, both computed here once.

    y[.., o, ..] = sum_t weight[o, t] x[.., index[o, t], ..]

Coordinates are computed in float32 in the order in which ONNX Runtime computes them (its upsamplebase.h): rounding
decides which pixel is nearest, and its definition is the one that models are judged by where ONNX leaves it open.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import (
    FLOATS,
    INJECTIVE,
    Context,
    Converter,
    Inputs,
    Outputs,
    dtype_of,
    shape_of,
)
from graphopt.targets.common.converters.index import constant, known
from graphopt.targets.common.converters.refusals import NotSupported

Singles = NDArray[np.float32]

ONE, HALF = np.float32(1), np.float32(0.5)

TIE = np.float32(1e-6)
"""Positions this close to halfway between two pixels count as halfway, as in ONNX Runtime."""


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: extents, the scale, and the region of interest as fractions of the input."""

    length: int
    out: int
    scale: np.float32
    start: np.float32
    end: np.float32


def resize(c: Context, inputs: Inputs) -> Outputs:
    """Resize by scales or sizes that are known, on any axes.

    Raises:
        NotSupported: the inferred extents are not those that ONNX Runtime gives, or it interpolates integers.
    """
    x = inputs[0]
    shape, dtype, mode = shape_of(x), dtype_of(x), c.text("mode", "nearest")
    axes = _read(c, shape)
    if axes is None or 0 in shape:
        return NotImplemented
    if c.out_shape == shape:  # also where a region of interest or a scale near 1 would move pixels
        return x
    if mode != "nearest" and dtype not in FLOATS:
        raise NotSupported(f"Resize of {dtype} in mode {mode} rounds as ONNX Runtime's integer arithmetic does")
    working = "float32" if mode != "nearest" and dtype == "float16" else dtype
    y = x if working == dtype else c.builder.emit(relax.op.astype(x, working))
    for axis, spec in axes.items():
        positions, outside = _positions(c.text("coordinate_transformation_mode", "half_pixel"), spec)
        if mode == "nearest":
            index, weight = _nearest(c.text("nearest_mode", "round_prefer_floor"), positions, spec), None
        elif c.integer("antialias"):
            index, weight = _antialiased(c, mode, positions, spec)
        else:
            index, weight = (_linear if mode == "linear" else _cubic)(c, positions, spec)
        y = _along(c, y, axis, index, weight, outside, working)
    return y if working == dtype else relax.op.astype(y, dtype)


def _read(c: Context, shape: tuple[int, ...]) -> dict[int, _Axis] | None:
    """The axes to resample; None where scales and sizes are not constant."""
    values = [constant(c, i) for i in range(4)]
    given = [i < len(c.node.inputs) and c.node.inputs[i] is not None for i in range(4)]
    if any(present and value is None for present, value in list(zip(given, values, strict=True))[1:]):
        return None
    roi, scales, sizes = (None if v is None or not v.size else v for v in values[1:])
    places = [axis % len(shape) for axis in c.integers("axes") or range(len(shape))]
    if scales is not None:
        factors = dict(zip(places, scales.astype(np.float32), strict=True))
    elif sizes is not None:
        factors = {a: np.float32(s) / np.float32(shape[a]) for a, s in zip(places, sizes, strict=True) if shape[a]}
        policy = c.text("keep_aspect_ratio_policy", "stretch")
        if policy != "stretch":
            common = (min if policy == "not_larger" else max)(factors.values())
            factors = dict.fromkeys(factors, common)
    else:
        return None
    cropped = c.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    resized = {}
    for position, axis in enumerate(places):
        scale, out = factors.get(axis, ONE), c.out_shape[axis]
        exact = scale * np.float32(shape[axis])
        if scales is not None and int(exact) != out:
            raise NotSupported(f"ONNX Runtime gives axis {axis} of Resize the extent {int(exact)}, not {out}")
        ends = [np.float32(0), ONE]
        if cropped and roi is not None:
            ends = [np.float32(roi[position + i]) for i in (0, len(places))]
        # An axis that keeps its scale keeps its pixels, whatever the region of interest; so does an extent that stays
        # as it is where a filter is widened.
        if scale != ONE and not (c.integer("antialias") and out == shape[axis]):
            resized[axis] = _Axis(shape[axis], out, scale, *ends)
    return resized


def _positions(mode: str, axis: _Axis) -> tuple[Singles, NDArray[np.bool_] | None]:
    """Where each output lies in the input, and which outputs lie outside (tf_crop_and_resize only)."""
    y = np.arange(axis.out, dtype=np.float32)
    n, out, last = np.float32(axis.length), np.float32(axis.out), np.float32(axis.length - 1)
    if mode == "align_corners":
        return (y * last / (out - ONE) if axis.out > 1 else y * 0), None
    if mode == "asymmetric":
        return y / axis.scale, None
    if mode == "tf_half_pixel_for_nn":
        return (y + HALF) / axis.scale, None
    if mode == "tf_crop_and_resize":
        if axis.out > 1:
            inner = axis.start * last + y * (axis.end - axis.start) * last / (out - ONE)
        else:
            inner = np.array([0.5 * np.float64((axis.start + axis.end) * ONE) * last], np.float32)
        return inner, (inner < 0) | (inner > last)
    if mode == "pytorch_half_pixel" and axis.out == 1:
        return y * 0, None
    if mode == "half_pixel_symmetric":
        offset = n / np.float32(2) * (ONE - out / (axis.scale * n))
        return (np.float64(offset) + (y + 0.5) / np.float64(axis.scale) - 0.5).astype(np.float32), None
    return (y + HALF) / axis.scale - HALF, None


def _nearest(mode: str, x: Singles, axis: _Axis) -> NDArray[np.int64]:
    """[out, 1] indices."""
    below = np.floor(x)
    if mode == "ceil":
        below = np.ceil(x)
    elif mode != "floor":
        rest = x - below
        halfway = np.abs(rest - HALF) <= TIE
        below = below + np.where(halfway, mode == "round_prefer_ceil", rest > HALF)
    return np.clip(below, 0, axis.length - 1).astype(np.int64)[:, None]


def _linear(c: Context, x: Singles, axis: _Axis) -> tuple[NDArray[np.int64], Singles]:
    """[out, 2] indices and weights; where both are the last pixel, each weighs 0.5."""
    inside = np.clip(x, np.float32(0), np.float32(axis.length - 1))
    first = inside.astype(np.int64)
    second = np.minimum(first + 1, axis.length - 1)
    weight = np.stack([np.abs(inside - second.astype(np.float32)), np.abs(inside - first.astype(np.float32))], 1)
    return np.stack([first, second], 1), np.where((first == second)[:, None], HALF, weight)


def _cubic(c: Context, x: Singles, axis: _Axis) -> tuple[NDArray[np.int64], Singles]:
    """[out, 4] indices and weights (R. G. Keys, Cubic convolution interpolation for digital image processing)."""
    base = np.floor(x)
    places = base.astype(np.int64)[:, None] + np.arange(-1, 3)
    weight = _keys(np.abs(np.arange(-1, 3, dtype=np.float32) - (x - base)[:, None]), c.real("cubic_coeff_a", -0.75))
    if c.integer("exclude_outside"):
        weight = np.where((places < 0) | (places >= axis.length), np.float32(0), weight)
        weight = weight / weight.sum(1, keepdims=True)
    return np.clip(places, 0, axis.length - 1), weight


def _keys(distance: Singles, coefficient: float) -> Singles:
    a = np.float32(coefficient)
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, np.float32(0))).astype(np.float32)


def _antialiased(c: Context, mode: str, x: Singles, axis: _Axis) -> tuple[NDArray[np.int64], Singles]:
    """[out, taps] indices and weights of a filter that is widened by as much as the image shrinks."""
    step = ONE / axis.scale
    widened = np.maximum(step, ONE)
    reach, centre = np.float32(1 if mode == "linear" else 2) * widened, HALF + x
    first = np.floor(centre - reach + HALF).astype(np.int64)
    taps = np.clip(np.floor(centre + reach + HALF).astype(np.int64) - first, 0, 2 * math.ceil(reach) + 1)
    places = first[:, None] + np.arange(max(1, int(taps.max())))
    distance = np.abs((places.astype(np.float32) - centre[:, None] + HALF) * (ONE / widened))
    if mode == "linear":
        weight = np.maximum(ONE - distance, np.float32(0))
    else:
        weight = _keys(distance, c.real("cubic_coeff_a", -0.75))
    used = np.arange(places.shape[1]) < taps[:, None]
    inside = used & (places >= 0) & (places < axis.length)
    weight = np.where(inside if c.integer("exclude_outside") else used & inside.any(1, keepdims=True), weight, 0)
    total = weight.sum(1, keepdims=True, dtype=np.float32)
    weight = weight / np.where(total == 0, ONE, total)
    return np.clip(places, 0, axis.length - 1), weight.astype(np.float32)


def _along(
    c: Context,
    x: relax.Expr,
    axis: int,
    index: NDArray[np.int64],
    weight: Singles | None,
    outside: NDArray[np.bool_] | None,
    dtype: str,
) -> relax.Var:
    shape = list(shape_of(x))
    shape[axis], taps = index.shape
    arguments = [x, known(index)]
    weighted, bounded = weight is not None, outside is not None and bool(outside.any())
    if weight is not None:
        arguments.append(known(weight.astype(dtype)))
    if bounded:
        arguments.append(known(np.asarray(outside)))
    beyond = tirx.const(np.float32(c.real("extrapolation_value")).astype(dtype).item(), dtype)

    def compute(v: te.Tensor, places: te.Tensor, *rest: te.Tensor) -> te.Tensor:
        def value(i: Sequence[Expr]) -> Expr:
            pixels = [v(*i[:axis], places(i[axis], tap), *i[axis + 1 :]) for tap in range(taps)]
            if not weighted:
                return pixels[0]
            total = pixels[0] * rest[0](i[axis], 0)
            for tap in range(1, taps):
                total = total + pixels[tap] * rest[0](i[axis], tap)
            return total

        def element(*i: Expr) -> Expr:
            return tirx.if_then_else(rest[-1](i[axis]), beyond, value(i)) if bounded else value(i)

        return te.compute(shape, element, name="resize")

    return c.te("resize", compute, *arguments, pattern=INJECTIVE)


STANDARD: dict[str, Converter] = {"Resize": resize}
