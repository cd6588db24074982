"""RoiAlign: each output pixel is the mean, or the largest, of samples in its bin of a region of interest.

The sampling points are those of Mask R-CNN (https://arxiv.org/abs/1703.06870); where a point lies more than a pixel
outside the image it counts as 0.
"""

from __future__ import annotations

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.converters.base import OPAQUE, Context, Converter, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.refusals import NotSupported


def roi_align(c: Context, inputs: Inputs) -> Outputs:
    """y[r, c, h, w] over x[n, c, H, W] and rois[r, 4] = (x1, y1, x2, y2) in the image batch_indices[r].

    Raises:
        NotSupported: the number of samples depends on the regions.
    """
    x, rois, batch = inputs
    n, _, height, width = shape_of(x)
    dtype, samples = dtype_of(x), c.integer("sampling_ratio")
    if dtype not in ("float32", "float64") or 0 in (*shape_of(x), *c.out_shape):
        return NotImplemented
    if samples <= 0:
        raise NotSupported(
            "sampling_ratio 0 of RoiAlign takes as many samples as a region has pixels, which no loop knows"
        )
    half = c.text("coordinate_transformation_mode", "half_pixel") == "half_pixel"
    mean = c.text("mode", "avg") == "avg"
    scale, zero, one = (tirx.const(value, dtype) for value in (c.real("spatial_scale", 1.0), 0, 1))
    _, _, rows, columns = c.out_shape

    def point(r: Expr, bin_: Expr, sample: tirx.IterVar, rois: te.Tensor, axis: int, bins: int) -> Expr:
        """Coordinate of a sample along y (axis 1) or x (axis 0)."""
        offset = tirx.const(0.5 if half else 0, dtype)
        start, end = rois(r, axis) * scale - offset, rois(r, axis + 2) * scale - offset
        extent = end - start if half else tirx.max(end - start, one)
        step = extent / tirx.const(bins, dtype)
        inside = (sample.astype(dtype) + tirx.const(0.5, dtype)) * step / tirx.const(samples, dtype)
        return start + bin_.astype(dtype) * step + inside

    def taps(at: Expr, extent: int) -> tuple[tuple[Expr, Expr], ...]:
        """The two pixels beside a coordinate and their weights."""
        low = tirx.max(at, zero)
        first = tirx.min(low.astype("int32"), tirx.const(extent - 1, "int32"))
        second = tirx.min(first + 1, tirx.const(extent - 1, "int32"))
        rest = tirx.Select(first >= extent - 1, zero, low - first.astype(dtype))
        return (first, one - rest), (second, rest)

    def compute(v: te.Tensor, rois: te.Tensor, images: te.Tensor) -> te.Tensor:
        i, j = (te.reduce_axis((0, samples), name=name) for name in ("i", "j"))

        def element(r: Expr, channel: Expr, h: Expr, w: Expr) -> Expr:
            y, x = point(r, h, i, rois, 1, rows), point(r, w, j, rois, 0, columns)
            image = tirx.max(tirx.min(images(r).astype("int32"), tirx.const(n - 1, "int32")), tirx.const(0, "int32"))
            inside = tirx.all(y >= -one, y <= tirx.const(height, dtype), x >= -one, x <= tirx.const(width, dtype))
            weighted = [a * b * v(image, channel, p, q) for p, a in taps(y, height) for q, b in taps(x, width)]
            if mean:
                total = weighted[0] + weighted[1] + weighted[2] + weighted[3]
                return te.sum(tirx.if_then_else(inside, total, zero), axis=[i, j])
            largest = tirx.max(tirx.max(weighted[0], weighted[1]), tirx.max(weighted[2], weighted[3]))
            return te.max(tirx.if_then_else(inside, largest, zero), axis=[i, j])

        y = te.compute(c.out_shape, element, name="samples")
        if not mean:
            return y
        return te.compute(c.out_shape, lambda *i: y(*i) / tirx.const(samples * samples, dtype), name="mean")

    return c.te("roi_align", compute, x, rois, batch, pattern=OPAQUE)


STANDARD: dict[str, Converter] = {"RoiAlign": roi_align}
