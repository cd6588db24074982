"""Resize in all its modes: along each axis a few weighted taps, both computed here once.

    y[.., o, ..] = sum_t weight[o, t] x[.., index[o, t], ..]

The definitions are those of ONNX's reference implementation (onnx/reference/ops/op_resize.py), written for all output
positions at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te

from graphopt.targets.converters.base import INJECTIVE, Context, Converter, dtype_of, shape_of
from graphopt.targets.converters.index import constant, known

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class _Axis:
    """One axis: extents, the scale, and the region of interest as fractions of the input."""

    length: int
    out: int
    scale: float
    start: float
    end: float


def resize(c: Context, inputs: list[Any]) -> Any:
    """Resize by scales or sizes that are known, on any axes."""
    x = inputs[0]
    axes = _read(c, shape_of(x))
    mode = c.text("mode", "nearest")
    dtype = dtype_of(x)
    if axes is None or 0 in shape_of(x) or (mode != "nearest" and dtype not in ("float16", "float32", "float64")):
        return NotImplemented
    working = "float32" if mode != "nearest" and dtype == "float16" else dtype
    y = x if working == dtype else c.builder.emit(relax.op.astype(x, working))
    for axis, spec in axes.items():
        positions, outside = _positions(c.text("coordinate_transformation_mode", "half_pixel"), spec)
        if mode == "nearest":
            index, weight = _nearest(c.text("nearest_mode", "round_prefer_floor"), positions, spec), None
        else:
            index, weight = _taps(c, mode, positions, spec)
        y = _along(c, y, axis, index, weight, outside, working)
    return y if working == dtype else relax.op.astype(y, dtype)


def _read(c: Context, shape: tuple[int, ...]) -> dict[int, _Axis] | None:
    """What changes on which axis; None where scales and sizes are not known yet."""
    values = [constant(c, i) for i in range(4)]
    given = [i < len(c.node.inputs) and c.node.inputs[i] is not None for i in range(4)]
    if any(present and value is None for present, value in list(zip(given, values, strict=True))[1:]):
        return None
    roi, scales, sizes = (None if v is None or not v.size else v.astype(np.float64) for v in values[1:])
    places = [axis % len(shape) for axis in c.integers("axes", tuple(range(len(shape))))]
    out = c.out_shape
    cropped = c.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    policy = c.text("keep_aspect_ratio_policy", "stretch")
    common = None
    if sizes is not None and policy != "stretch":
        ratios = [size / shape[axis] for size, axis in zip(sizes, places, strict=True)]
        common = min(ratios) if policy == "not_larger" else max(ratios)
    found = {}
    for position, axis in enumerate(places):
        scale = float(scales[position]) if scales is not None else common or out[axis] / shape[axis]
        start, end = 0.0, 1.0
        if cropped and roi is not None:
            start, end = float(roi[position]), float(roi[position + len(places)])
        if scale != 1.0 or out[axis] != shape[axis] or (start, end) != (0.0, 1.0):
            found[axis] = _Axis(shape[axis], out[axis], scale, start, end)
    return found


def _positions(mode: str, axis: _Axis) -> tuple[Doubles, NDArray[np.bool_] | None]:
    """Where each output lies in the input, and which outputs lie outside (tf_crop_and_resize only)."""
    y = np.arange(axis.out, dtype=np.float64)
    n, width = axis.length, axis.scale * axis.length
    if mode == "align_corners":
        return (np.zeros(axis.out) if width == 1 else y * (n - 1) / (width - 1)), None
    if mode == "asymmetric":
        return y / axis.scale, None
    if mode == "tf_crop_and_resize":
        span = (axis.end - axis.start) * (n - 1)
        inner = np.full(axis.out, span / 2) if width == 1 else y * span / (width - 1)
        inner = inner + axis.start * (n - 1)
        return inner, (inner < 0) | (inner > n - 1)
    if mode == "pytorch_half_pixel" and width == 1:
        return np.full(axis.out, -0.5), None
    half = (y + 0.5) / axis.scale - 0.5
    if mode == "half_pixel_symmetric":
        return half + n / 2 * (1 - axis.out / width), None
    return half, None


def _nearest(mode: str, x: Doubles, axis: _Axis) -> NDArray[np.int64]:
    """[out, 1] indices."""
    rounded = {
        "round_prefer_floor": np.ceil(x - 0.5),
        "round_prefer_ceil": np.floor(x + 0.5),
        "floor": np.floor(x),
        "ceil": np.ceil(x),
    }[mode]
    return np.clip(rounded, 0, axis.length - 1).astype(np.int64)[:, None]


def _taps(c: Context, mode: str, x: Doubles, axis: _Axis) -> tuple[NDArray[np.int64], Doubles]:
    """[out, taps] indices and weights of linear and cubic interpolation, widened when antialiasing."""
    shrink = min(axis.scale, 1.0) if c.integer("antialias") else 1.0
    reach = 1 if mode == "linear" else 2
    first = math.floor(-reach / shrink) + 1
    offsets = np.arange(first, 2 - 2 * first + first if mode == "linear" else 2 - first)
    base = np.floor(x)
    base = np.where(base == x, base - 1, base)  # an exact position is the right end of its interval
    distance = np.abs((base[:, None] + offsets[None, :] - x[:, None]) * shrink)
    a = c.real("cubic_coeff_a", -0.75)
    if mode == "linear":
        weight = np.clip(1 - distance, 0, 1)
    else:
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        weight = np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
    places = (base[:, None] + offsets[None, :]).astype(np.int64)
    if c.integer("antialias"):
        weight = weight / weight.sum(1, keepdims=True)
    if c.integer("exclude_outside"):
        weight = np.where((places < 0) | (places >= axis.length), 0.0, weight)
        weight = weight / weight.sum(1, keepdims=True)
    return np.clip(places, 0, axis.length - 1), weight


def _along(
    c: Context,
    x: Any,
    axis: int,
    index: NDArray[np.int64],
    weight: Doubles | None,
    outside: NDArray[np.bool_] | None,
    dtype: str,
) -> Any:
    shape = list(shape_of(x))
    shape[axis], taps = index.shape
    arguments = [x, known(index)]
    if weight is not None or (outside is not None and outside.any()):
        kept = np.ones(index.shape) if weight is None else weight
        kept = kept if outside is None else np.where(outside[:, None], 0.0, kept)
        beyond = np.zeros(len(index)) if outside is None else outside * c.real("extrapolation_value")
        arguments += [known(kept.astype(dtype)), known(beyond.astype(dtype))]

    def compute(v: Any, places: Any, weights: Any = None, beyond: Any = None) -> Any:
        def at(i: Any, tap: Any) -> Any:
            return v(*i[:axis], places(i[axis], tap), *i[axis + 1 :])

        def element(*i: Any) -> Any:
            if weights is None:
                return at(i, 0)
            total = beyond(i[axis])
            for tap in range(taps):
                total = total + at(i, tap) * weights(i[axis], tap)
            return total

        return te.compute(shape, element, name="resize")

    return c.te("resize", compute, *arguments, pattern=INJECTIVE)


STANDARD: dict[str, Converter] = {"Resize": resize}
