"""Rules of normalize for com.microsoft's products and convolutions with fused transposes, factors and activations."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.edit import Editor, Rule, dims
from graphopt.passes.normalize.microsoft.shared import Writer, operand, unknown

_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Clip": ("min", "max"),
    "Elu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
    "LeakyRelu": ("alpha",),
    "Relu": (),
    "Sigmoid": (),
    "Softplus": (),
    "Softsign": (),
    "Tanh": (),
    "ThresholdedRelu": ("alpha",),
}
"""Activations that a product may carry, and the names of their parameters."""


def _activated(write: Writer, y: ir.Value, name: str, parameters: list[float]) -> ir.Value:
    if name == "Clip":
        return write(name, y, *(write.like(value, y) for value in parameters))
    return write(name, y, **dict(zip(_ACTIVATIONS[name], parameters, strict=False))) if name else y


def _turned(write: Writer, value: ir.Value, last: bool, batch: bool) -> ir.Value:
    """Transpose `value`: `batch` moves the first axis before the last; `last` then swaps the last two."""
    order = list(range(len(dims(value) or ())))
    if batch:
        order = [*order[1:-1], order[0], order[-1]]
    if last:
        order[-2:] = order[:-3:-1]
    return value if order == sorted(order) else write("Transpose", value, perm=order)


def _fused_matmul(editor: Editor, node: ir.Node) -> str | None:
    """FusedMatMul{alpha, transA, transB, transBatchA, transBatchB}(a, b) -> alpha MatMul of transposed operands."""
    if (reason := unknown(node)) is not None:
        return reason
    write, sides = Writer(editor, node), []
    for value, side in zip(node.inputs[:2], "AB", strict=True):
        assert value is not None
        last, batch = (bool(node.attributes.get_int(f"{name}{side}", 0)) for name in ("trans", "transBatch"))
        if (last or batch) and len(dims(value) or ()) < 2:
            return f"FusedMatMul transposes a vector, {value.name}"
        sides.append(_turned(write, value, last, batch))
    y, alpha = write("MatMul", *sides), node.attributes.get_float("alpha", 1.0)
    write.finish(y if alpha == 1 else write("Mul", y, write.like(alpha or 0.0, y)))
    return None


def _fused_gemm(editor: Editor, node: ir.Node) -> str | None:
    """FusedGemm{activation} -> activation(Gemm)."""
    if (reason := unknown(node)) is not None:
        return reason
    name = node.attributes.get_string("activation", "") or ""
    if name and name not in _ACTIVATIONS:
        return f"FusedGemm has the activation {name}, which is not known here"
    write = Writer(editor, node)
    y = write(
        "Gemm",
        *node.inputs[: 3 if operand(node, 2) is not None else 2],
        **{key: node.attributes.get_float(key, 1.0) or 0.0 for key in ("alpha", "beta")},
        **{key: node.attributes.get_int(key, 0) or 0 for key in ("transA", "transB")},
    )
    parameters = ("activation_alpha", "activation_beta")
    given = [node.attributes.get_float(key, None) for key in parameters if key in node.attributes]
    write.finish(_activated(write, y, name, [value for value in given if value is not None]))
    return None


def _fused_conv(editor: Editor, node: ir.Node) -> str | None:
    """FusedConv{activation, activation_params}(x, w, b, z) -> activation(Conv(x, w, b) + z)."""
    if (reason := unknown(node)) is not None:
        return reason
    name = node.attributes.get_string("activation", "") or ""
    if name and name not in _ACTIVATIONS:
        return f"FusedConv has the activation {name}, which is not known here"
    write, bias, added = Writer(editor, node), operand(node, 2), operand(node, 3)
    kept = {key: list(value.as_ints()) for key, value in node.attributes.items() if key in _WINDOW}
    others: dict[str, int | str] = {"group": node.attributes.get_int("group", 1) or 1}
    if "auto_pad" in node.attributes:
        others["auto_pad"] = node.attributes.get_string("auto_pad", "NOTSET") or "NOTSET"
    y = write("Conv", *node.inputs[:2], *([] if bias is None else [bias]), **kept, **others)
    if added is not None:
        y = write("Add", y, added)
    write.finish(_activated(write, y, name, list(node.attributes.get_floats("activation_params") or ())))
    return None


_WINDOW = ("dilations", "kernel_shape", "pads", "strides")


def _linear(editor: Editor, node: ir.Node) -> str | None:
    """QuantizeLinear and DequantizeLinear of types that ONNX supports too -> the standard operators."""
    if (reason := unknown(node)) is not None:
        return reason
    zero = operand(node, 2)
    quantized = node.inputs[0] if node.op_type == "DequantizeLinear" else zero
    kinds = (ir.DataType.INT8, ir.DataType.UINT8)
    if quantized is not None and quantized.dtype not in kinds:
        return f"{node.op_type} of {quantized.dtype.name if quantized.dtype else 'an unknown type'} needs a later opset"
    scale = node.inputs[1]
    per_axis = dims(scale) not in ((), (1,))
    if not per_axis and dims(scale) != () and dims(node.inputs[0]) != ():
        return f"the scale of {node.op_type} is a vector of one element"
    write = Writer(editor, node)
    attributes = {"axis": node.attributes.get_int("axis", 1) or 0} if per_axis else {}
    write.finish(write(node.op_type, *node.inputs[: 3 if zero is not None else 2], **attributes))
    return None


def _in_runtime(reason: str) -> Rule:
    return lambda editor, node: f"{node.op_type} {reason}"


PRODUCTS: dict[str, tuple[Rule, ...]] = {
    "DequantizeLinear": (_linear,),
    "FusedConv": (_fused_conv,),
    "FusedGemm": (_fused_gemm,),
    "FusedMatMul": (_fused_matmul,),
    "MatMulNBits": (_in_runtime("keeps its weights in fewer bits in ONNX Runtime than kernels here would"),),
    "QAttention": (_in_runtime("multiplies integers with scales of its own, which no rewrite here spells"),),
    "QuantizeLinear": (_linear,),
    "TransposeMatMul": (_fused_matmul,),
}
