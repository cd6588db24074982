"""Upsample, and Resize 10: what ONNX Runtime computes where no attribute gives the coordinate transformation.

Both map output i to input i / scale. Linear interpolates there; nearest takes the floor where an axis grows, and the
ceiling where it shrinks.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.frontend.opsets.site import NoRule, Site


def upsample_1(site: Site) -> None:
    """Upsample 7: one scale for each axis instead of those of height and width."""
    height, width = site.take("height_scale"), site.take("width_scale")
    assert height is not None
    assert width is not None
    scales = [1.0, 1.0, height.as_float(), width.as_float()]
    site.node.attributes["scales"] = ir.AttrFloat32s("scales", scales)


def upsample_7(site: Site) -> None:
    """Upsample 9: the scales became an input."""
    scales = site.take("scales")
    assert scales is not None
    site.append(1, site.constant(scales.as_floats(), ir.DataType.FLOAT))


def asymmetric(site: Site) -> None:
    """Upsample 10 is Resize, and Resize 11 has an attribute for its coordinate transformation.

    Resize<nearest>(x, scales)  ->  Resize<floor>(Resize<ceil>(x, Min(scales, 1)), Max(scales, 1))
    """
    mode = site.node.attributes.get_string("mode", "nearest")
    x, scales = site.x(), site.input(1)
    if mode in ("linear", "bilinear"):
        site.replace(_resize(site, x, scales, mode="linear"))
        return
    if mode != "nearest":
        raise NoRule(f"its mode is {mode!r}")
    known = _constant(scales)
    if known is None:
        one = site.constant(1.0, ir.DataType.FLOAT)
        x = _resize(site, x, site.op("Min", scales, one), nearest_mode="ceil")
        site.replace(_resize(site, x, site.op("Max", scales, one), nearest_mode="floor"))
    elif (known >= 1).all() or (known <= 1).all():
        site.replace(_resize(site, x, scales, nearest_mode="ceil" if (known < 1).any() else "floor"))
    else:
        shrink, grow = (site.constant(f(known, 1), ir.DataType.FLOAT) for f in (np.minimum, np.maximum))
        x = _resize(site, x, shrink, nearest_mode="ceil")
        site.replace(_resize(site, x, grow, nearest_mode="floor"))


def _resize(site: Site, x: ir.Value, scales: ir.Value | None, **attributes: str) -> ir.Value:
    return site.op("Resize", x, None, scales, coordinate_transformation_mode="asymmetric", **attributes)


def _constant(value: ir.Value | None) -> np.ndarray | None:
    """The numbers of an initializer or of a Constant node."""
    assert value is not None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()
