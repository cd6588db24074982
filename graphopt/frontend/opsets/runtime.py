"""Operators that ONNX Runtime has in the standard domain and ONNX has not, or not yet: written in standard ones.

They come from models of ONNX before 1.0 and from graphs that ONNX Runtime optimized and saved.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.frontend.opsets.site import NoRule, Site

_KIND = onnx.AttributeProto
_FOREVER = 2**31


@dataclass(frozen=True)
class Signature:
    """The valid form of a node of such an operator, which exists in opsets up to `last`."""

    last: int
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    attributes: Mapping[str, int]
    required: tuple[str, ...] = ()


_SLOPES = {"alpha": _KIND.FLOAT, "beta": _KIND.FLOAT}
_ROWS = {"axis": _KIND.INT, "epsilon": _KIND.FLOAT, "stash_type": _KIND.INT}

SIGNATURES = {
    "Affine": Signature(9, (1, 1), (1, 1), _SLOPES),
    "Crop": Signature(9, (1, 1), (1, 1), {"border": _KIND.INTS, "scale": _KIND.INTS}, ("border",)),
    "DynamicSlice": Signature(9, (3, 4), (1, 1), {}),
    "ImageScaler": Signature(9, (1, 1), (1, 1), {"scale": _KIND.FLOAT, "bias": _KIND.FLOATS}, ("bias",)),
    "LayerNormalization": Signature(16, (2, 3), (1, 3), _ROWS),
    "MeanVarianceNormalization": Signature(
        8, (1, 1), (1, 1), {"across_channels": _KIND.INT, "normalize_variance": _KIND.INT}
    ),
    "ParametricSoftplus": Signature(9, (1, 1), (1, 1), _SLOPES),
    "Scale": Signature(9, (1, 1), (1, 1), {"scale": _KIND.FLOAT}),
    "ScaledTanh": Signature(9, (1, 1), (1, 1), _SLOPES),
    "SimplifiedLayerNormalization": Signature(_FOREVER, (2, 2), (1, 2), _ROWS),
    "ThresholdedRelu": Signature(9, (1, 1), (1, 1), {"alpha": _KIND.FLOAT}),
}
"""`onnxruntime.capi.onnxruntime_pybind11_state.get_all_operator_schema()` and the kernels that its CPU provider has."""


def check_signature(node: onnx.NodeProto, version: int, label: str) -> bool:
    """Whether ONNX Runtime has the operator of `node` in opset `version`; ModelError if the node is malformed."""
    signature = SIGNATURES.get(node.op_type)
    if signature is None or version > signature.last:
        return False
    for side, count, (least, most) in (
        ("inputs", len(node.input), signature.inputs),
        ("outputs", len(node.output), signature.outputs),
    ):
        if not least <= count <= most:
            raise ModelError(f"node {label} has {count} {side}, and its operator takes {least} to {most}; correct it")
    for attribute in node.attribute:
        if signature.attributes.get(attribute.name) != attribute.type:
            raise ModelError(f"node {label} has the attribute {attribute.name}, which its operator does not take")
    missing = set(signature.required) - {attribute.name for attribute in node.attribute}
    if missing:
        raise ModelError(f"node {label} lacks the attribute {min(missing)}; give it a value")
    return True


def affine(site: Site) -> None:
    """Affine(x)  ->  alpha * x + beta."""
    x = site.op("Mul", site.scalar(_float(site, "alpha", 1), site.x()), site.x())
    site.replace(site.op("Add", x, site.scalar(_float(site, "beta", 0), site.x())))


def scale(site: Site) -> None:
    """Scale(x)  ->  scale * x."""
    site.replace(site.op("Mul", site.scalar(_float(site, "scale", 1), site.x()), site.x()))


def scaled_tanh(site: Site) -> None:
    """ScaledTanh(x)  ->  alpha * Tanh(beta * x)."""
    y = site.op("Tanh", site.op("Mul", site.scalar(_float(site, "beta", 1), site.x()), site.x()))
    site.replace(site.op("Mul", site.scalar(_float(site, "alpha", 1), site.x()), y))


def parametric_softplus(site: Site) -> None:
    """ParametricSoftplus(x)  ->  alpha * Softplus(beta * x)."""
    y = site.op("Softplus", site.op("Mul", site.scalar(_float(site, "beta", 1), site.x()), site.x()))
    site.replace(site.op("Mul", site.scalar(_float(site, "alpha", 1), site.x()), y))


def image_scaler(site: Site) -> None:
    """ImageScaler(x[N, C, H, W])  ->  scale * x + bias[C, 1, 1]."""
    bias = np.array(site.node.attributes["bias"].as_floats(), np.float32).reshape(-1, 1, 1)
    x = site.op("Mul", site.scalar(_float(site, "scale", 1), site.x()), site.x())
    site.replace(site.op("Add", x, site.constant(bias, site.x().dtype or ir.DataType.FLOAT)))


def crop(site: Site) -> None:
    """Crop(x[N, C, H, W])  ->  Slice of rows and columns: `border` is left, top, right, bottom; `scale` a size."""
    left, top, right, bottom = _ints(site, "border", 4)
    ends = [-bottom or 2**31, -right or 2**31]
    if "scale" in site.node.attributes:
        height, width = _ints(site, "scale", 2)
        ends = [top + height, left + width]
    site.replace(site.op("Slice", site.x(), *(site.constant(bounds) for bounds in ([top, left], ends, [2, 3]))))


def dynamic_slice(site: Site) -> None:
    """DynamicSlice is called Slice."""
    site.node.op_type = "Slice"


def _float(site: Site, name: str, usual: float) -> float:
    return site.node.attributes.get_float(name, float(usual))


def _ints(site: Site, name: str, count: int) -> tuple[int, ...]:
    numbers = tuple(site.node.attributes[name].as_ints())
    if len(numbers) != count:
        raise NoRule(f"its attribute {name} has {len(numbers)} numbers, not {count}")
    return numbers
