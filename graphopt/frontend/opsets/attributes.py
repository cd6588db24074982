"""Rules for attributes that became inputs, or got another spelling or default."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphopt.frontend.opsets.site import NoRule, Site, rank

Rule = Callable[[Site], None]

_LARGEST = float(np.finfo(np.float32).max)


def removed(*names: str) -> Rule:
    """Remove attributes that do not affect the result of inference."""

    def rule(site: Site) -> None:
        for name in names:
            site.take(name)

    return rule


def default(name: str, value: int | float | str) -> Rule:
    """Write the old default of an attribute that was absent before, or had another default."""

    def rule(site: Site) -> None:
        if name not in site.node.attributes:
            site.node.attributes[name] = ir.convenience.convert_attribute(name, value)

    return rule


def integers(name: str, index: int, *, empty_is_all: bool = False) -> Rule:
    """Y = Op<name=[..]>(x)  ->  Y = Op(x, .., int64[n]): input `index`."""

    def rule(site: Site) -> None:
        attribute = site.take(name)
        if attribute is not None and not (empty_is_all and not attribute.as_ints()):
            site.append(index, site.constant(np.array(attribute.as_ints(), np.int64)))

    return rule


def top_k(site: Site) -> None:
    """TopK 10: k became an input, a vector of one element."""
    attribute = site.take("k")
    assert attribute is not None
    site.append(1, site.constant([attribute.as_int()]))


def clip(site: Site) -> None:
    """Clip 11: bounds became inputs. The old defaults are the largest floats, so that Clip made infinities finite.

    fp16 is the exception: ONNX Runtime computed it in float32.
    """
    for index, (name, usual) in enumerate((("min", -_LARGEST), ("max", _LARGEST)), start=1):
        attribute = site.take(name)
        bound = usual if attribute is None else attribute.as_float()
        half = site.x().dtype == ir.DataType.FLOAT16 and abs(bound) > np.finfo(np.float16).max
        site.append(index, site.scalar(math.copysign(math.inf, bound) if half else bound, site.x()))


def clip_halves(site: Site) -> None:
    """Clip 12: an absent bound is the largest fp16 number; before, fp16 was computed in float32."""
    if site.x().dtype == ir.DataType.FLOAT16:
        for index, bound in ((1, -math.inf), (2, math.inf)):
            if len(site.node.inputs) <= index or site.node.inputs[index] is None:
                site.append(index, site.scalar(bound, site.x()))


def clip_bounds(site: Site) -> None:
    """Clip 6: bounds have a default; before, an absent bound did not clip."""
    removed("consumed_inputs")(site)
    for name, usual in (("min", -np.inf), ("max", np.inf)):
        default(name, float(usual))(site)


def selu(site: Site) -> None:
    """Selu 6: the defaults got more digits."""
    removed("consumed_inputs")(site)
    default("alpha", 1.6732)(site)
    default("gamma", 1.0507)(site)


def slice_(site: Site) -> None:
    """Slice 10: starts, ends and axes became inputs."""
    for index, name in enumerate(("starts", "ends", "axes"), start=1):
        integers(name, index)(site)


def pad_1(site: Site) -> None:
    """Pad 2: paddings are called pads."""
    attribute = site.take("paddings")
    if attribute is not None:
        site.node.attributes["pads"] = ir.AttrInt64s("pads", attribute.as_ints())


def pad(site: Site) -> None:
    """Pad 11: pads and value became inputs."""
    integers("pads", 1)(site)
    value = site.take("value")
    if value is not None and value.as_float() != 0:
        site.append(2, site.scalar(value.as_float(), site.x()))


def split(site: Site) -> None:
    """Split 18: without sizes, an attribute gives the number of equal parts."""
    if site.input(1) is None:
        site.node.attributes["num_outputs"] = ir.AttrInt64("num_outputs", len(site.node.outputs))


def reshape(site: Site) -> None:
    """Reshape 5: the shape became an input."""
    removed("consumed_inputs")(site)
    integers("shape", 1)(site)
    if site.input(1) is None:
        site.append(1, site.constant(np.array([], np.int64)))


def cast(site: Site) -> None:
    """Cast 6: the type is a number, not a name."""
    name = site.node.attributes["to"].as_string()
    try:
        site.node.attributes["to"] = ir.AttrInt64("to", ir.DataType[name.upper()].value)
    except KeyError:
        raise NoRule(f"it casts to {name!r}, which is no type") from None


def tile(site: Site) -> None:
    """Tile 6: repeats of every axis, where tiles and one axis were given.

    Tile(x, tiles, axis)  ->  Tile(x, Where(Equal(axis, [0, 1, ..]), tiles, 1))
    """
    dims, tiles, axis = rank(site.x()), site.input(1), site.input(2)
    if dims is None or tiles is None or axis is None:
        raise NoRule("the rank of its operand is not known")
    wide = [site.op("Cast", value, to=ir.DataType.INT64.value) for value in (tiles, axis)]
    chosen = site.op("Equal", wide[1], site.constant(np.arange(dims)))
    repeats = site.op("Where", chosen, wide[0], site.constant(np.ones(dims)))
    site.replace(site.op("Tile", site.x(), repeats))


def whole_p(site: Site) -> None:
    """LpPool 2, GlobalLpPool 2: the exponent is an integer."""
    attribute = site.take("p")
    p = 2.0 if attribute is None else attribute.as_float()
    if not p.is_integer():
        raise NoRule(f"its exponent {p} is not whole")
    site.node.attributes["p"] = ir.AttrInt64("p", int(p))


def dropout(site: Site) -> None:
    """Dropout 12 became able to train. Before, it copies, and its mask is all zeros in ONNX Runtime.

    The mask has the operand's dtype before opset 10, and is bool since.
    """
    y, mask = site.op("Identity", site.x()), None
    if site.used(1):
        false = site.constant([False], ir.DataType.BOOL)
        mask = site.op("Expand", false, site.op("Shape", site.x()))
        mask = site.op("CastLike", mask, site.x()) if site.version < 10 else mask
    site.replace(y, mask)


def grid_sample(site: Site) -> None:
    """GridSample 20: the modes have shorter names."""
    mode = site.node.attributes.get_string("mode", "bilinear")
    site.node.attributes["mode"] = ir.AttrString("mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def dft(site: Site) -> None:
    """DFT 20: the axis became an input."""
    attribute = site.take("axis")
    site.append(2, site.constant(1 if attribute is None else attribute.as_int()))


def direction(site: Site) -> None:
    """GRU 3: the default had a typing error."""
    if site.node.attributes.get_string("direction", "foward") == "foward":
        site.node.attributes["direction"] = ir.AttrString("direction", "forward")


def scatter(site: Site) -> None:
    """Scatter 11 is called ScatterElements."""
    site.node.op_type = "ScatterElements"
