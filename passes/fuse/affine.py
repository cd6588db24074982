"""Rules of fuse: constants per channel go into the weights of their producer, padding into the Conv that reads it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import Editor, Rule, array_of, dims, ints, is_op, only_use, scalar_of

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _fold(editor: Editor, node: ir.Node) -> str | None:
    """Mul, Div or Add of a constant after Conv, ConvTranspose or Gemm -> that operator with the constant folded in."""
    x = node.inputs[0]
    constant = array_of(node.inputs[1])
    producer = x.producer() if x is not None else None
    if x is None or constant is None or producer is None or not is_op(producer, "Conv", "ConvTranspose", "Gemm"):
        return None
    if constant.dtype not in _FLOATS:
        return None
    if only_use(x) is not node:
        return f"{producer.op_type} {producer.name} before it has other uses"
    weight = array_of(producer.inputs[1])
    bias_value = producer.inputs[2] if len(producer.inputs) > 2 else None
    bias = array_of(bias_value)
    if weight is None or (bias_value is not None and bias is None):
        return f"the weights of {producer.op_type} {producer.name} are not constant"
    per_channel = _per_channel(constant, dims(x), 1)
    if per_channel is None or dims(node.outputs[0]) != dims(x):
        return "the constant is not one number per channel"
    if is_op(producer, "Gemm") and (alpha_beta := _scaled_gemm(producer, bias)):
        return alpha_beta
    channels = len(per_channel)
    old_bias = np.zeros(channels) if bias is None else np.broadcast_to(bias.reshape(-1), channels).astype(np.float64)
    new_weight: ir.Value | None = producer.inputs[1]
    if node.op_type == "Div":
        with np.errstate(divide="ignore"):
            per_channel = 1.0 / per_channel
    if node.op_type != "Add":
        scaled = _scale_weight(producer, weight, per_channel)
        if not np.isfinite(scaled).all():
            return "the scaled weights are not finite"
        new_weight = editor.constant(scaled, f"{producer.name}.weight")
        new_bias = old_bias * per_channel
    else:
        new_bias = old_bias + per_channel
    inputs = [producer.inputs[0], new_weight]
    if node.op_type == "Add" or bias is not None:
        inputs.append(editor.constant(new_bias.astype(weight.dtype), f"{producer.name}.bias"))
    y = editor.insert(
        producer,
        producer.op_type,
        inputs,
        {name: attribute.value for name, attribute in producer.attributes.items()},
        shape=x.shape,
        dtype=x.dtype,
        name=f"{producer.name}.folded",
        output=f"{node.outputs[0].name}.folded",
        origin=[producer, node],
    )
    editor.swap(node, y)
    return None


def _scaled_gemm(gemm: ir.Node, bias: NDArray[Any] | None) -> str:
    if gemm.attributes.get_float("alpha", 1.0) != 1.0 or gemm.attributes.get_float("beta", 1.0) != 1.0:
        return f"Gemm {gemm.name} has alpha or beta; run normalize first"
    if bias is not None and bias.ndim > 1 and bias.shape[0] != 1:
        return f"the bias of Gemm {gemm.name} differs from row to row"
    return ""


def _scale_weight(node: ir.Node, weight: NDArray[Any], factor: NDArray[np.float64]) -> NDArray[Any]:
    """Weights whose output channels are multiplied by `factor`, rounded once."""
    if is_op(node, "Conv"):  # [O, C/group, ...]
        extents: tuple[int, ...] = (-1,) + (1,) * (weight.ndim - 1)
    elif is_op(node, "Gemm"):  # [O, K] or [K, O]
        extents = (-1, 1) if node.attributes.get_int("transB", 0) else (1, -1)
    else:  # ConvTranspose [C, O/group, ...]: the groups divide C
        group = node.attributes.get_int("group", 1) or 1
        per_input = np.repeat(factor.reshape(group, -1), weight.shape[0] // group, axis=0)
        return (weight * per_input.reshape(per_input.shape + (1,) * (weight.ndim - 2))).astype(weight.dtype)
    return (weight * factor.reshape(extents)).astype(weight.dtype)


def _per_channel(constant: NDArray[Any], shape: tuple[int, ...] | None, axis: int) -> NDArray[np.float64] | None:
    """A constant that broadcasts along `axis` only, as [C]; None when it varies elsewhere."""
    if shape is None or len(shape) <= axis or constant.ndim > len(shape):
        return None
    aligned = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
    if any(extent != 1 for position, extent in enumerate(aligned.shape) if position != axis):
        return None
    return np.broadcast_to(aligned.reshape(-1), shape[axis]).astype(np.float64)


def _pad_into_conv(editor: Editor, node: ir.Node) -> str | None:
    """Conv(Pad(x)) -> Conv{larger pads}(x), for zeros around the plane."""
    x = node.inputs[0]
    pad = x.producer() if x is not None else None
    if x is None or pad is None or not is_op(pad, "Pad"):
        return None
    pads = array_of(pad.inputs[1]) if len(pad.inputs) == 2 or len(pad.inputs) == 3 else None
    value = pad.inputs[2] if len(pad.inputs) > 2 else None
    if pads is None or pad.attributes.get_string("mode", "constant") != "constant":
        return "only constant pads of a constant value go into a Conv"
    if value is not None and scalar_of(value) != 0.0:
        return "the Pad does not pad with zero"
    rank = pads.size // 2
    begin, end = pads[:rank], pads[rank:]
    if (pads < 0).any() or begin[:2].any() or end[:2].any():
        return "the Pad cuts, or changes batch or channels"
    if only_use(x) is not node:
        return "the padded tensor has other uses"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "auto_pad is set; run normalize first"
    old = ints(node, "pads", [0] * (2 * (rank - 2)))
    added = [*begin[2:].tolist(), *end[2:].tolist()]
    node.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(old, added, strict=True)])
    node.replace_input_with(0, pad.inputs[0])
    editor.erase(pad)
    return None


AFFINE: dict[str, tuple[Rule, ...]] = {
    "Mul": (_fold,),
    "Add": (_fold,),
    "Div": (_fold,),
    "Conv": (_pad_into_conv,),
}
