"""Rules of normalize for com.microsoft's quantized operators, as operators on the dequantized numbers.

ONNX Runtime computes them in the same way, or from a table of all 256 results.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.constness import constant_array, is_constant, tensor_of
from graphopt.graph.edit import Editor, Rule, dims
from graphopt.passes.normalize.microsoft.shared import Writer, operand, unknown

Function = Callable[[Writer, Sequence[ir.Value]], ir.Value]
"""Emits an operator on dequantized operands."""


def _real(write: Writer, node: ir.Node, first: int) -> ir.Value:
    """The dequantized operand whose tensor, scale and zero point are the inputs from `first` on."""
    return write("DequantizeLinear", node.inputs[first], node.inputs[first + 1], operand(node, first + 2))


def _quantize(write: Writer, y: ir.Value, scale: ir.Value | None, zero: ir.Value | None) -> None:
    """Replace the node's output by `y`, quantized to the type of that output."""
    dtype = write.node.outputs[0].dtype
    assert dtype is not None
    write.finish(write("QuantizeLinear", y, scale, zero or write.constant(0, dtype.numpy())))


def _scalars(node: ir.Node, *positions: int) -> str | None:
    """The reason against a scale or zero point that is not one number; None if all are."""
    given = [value for position in positions if (value := operand(node, position)) is not None]
    if all(np.prod(dims(value) or ()) == 1 for value in given):
        return None
    return f"{node.op_type} has other scales for other channels"


def _on_floats(function: Function, operands: int) -> Rule:
    """The rule for `operands` tensors, each with scale and zero point, then scale and zero point of the result."""

    def rule(_editor: Editor, node: ir.Node) -> str | None:
        quantization = [at for first in range(0, 3 * operands, 3) for at in (first + 1, first + 2)]
        reason = unknown(node) or _scalars(node, *quantization, 3 * operands, 3 * operands + 1)
        if reason is not None or node.outputs[0].dtype is None:
            return reason
        write = Writer(_editor, node)
        y = function(write, [_real(write, node, first) for first in range(0, 3 * operands, 3)])
        _quantize(write, y, node.inputs[3 * operands], operand(node, 3 * operands + 1))
        return None

    return rule


def _add(editor: Editor, node: ir.Node) -> str | None:
    """QLinearAdd(a, a_scale, a_zero, b, b_scale, b_zero, scale, zero), in the order that rounds ties as ONNX Runtime.

    y = saturate(round(r a + (s b + (zero - (r a_zero + s b_zero))))) with r = a_scale / scale, s = b_scale / scale
    """
    if (reason := unknown(node) or _scalars(node, 1, 2, 4, 5, 6, 7)) is not None or node.outputs[0].dtype is None:
        return reason
    write, kind = Writer(editor, node), node.outputs[0].dtype.numpy()

    def number(position: int) -> ir.Value:
        value = operand(node, position)
        if value is None:
            return write.constant(0, np.float32)
        if is_constant(value):
            return write.constant(constant_array(value).reshape(()), np.float32)
        scalar = value if dims(value) == () else write.reshape(value, ())
        return scalar if scalar.dtype == ir.DataType.FLOAT else write("Cast", scalar, to=ir.DataType.FLOAT.value)

    def compute(op_type: str, *operands: ir.Value) -> ir.Value:
        known = [tensor_of(value) for value in operands]
        if any(tensor is None for tensor in known):
            return write(op_type, *operands)
        function = {"Add": np.add, "Div": np.divide, "Mul": np.multiply, "Sub": np.subtract}[op_type]
        with np.errstate(all="ignore"):
            return write.constant(function(*(tensor.numpy() for tensor in known if tensor is not None)), np.float32)

    ratios = [compute("Div", number(at), number(6)) for at in (1, 4)]
    zeros = compute("Add", *(compute("Mul", ratio, number(at)) for ratio, at in zip(ratios, (2, 5), strict=True)))
    a, b = (
        write("Mul", write("Cast", node.inputs[at], to=ir.DataType.FLOAT.value), ratio)
        for at, ratio in zip((0, 3), ratios, strict=True)
    )
    total = write("Add", a, write("Add", b, compute("Sub", number(7), zeros)))
    write.finish(write("QuantizeLinear", total, write.constant(1, np.float32), write.constant(0, kind)))
    return None


def _leaky_relu(write: Writer, operands: Sequence[ir.Value]) -> ir.Value:
    alpha = write.node.attributes.get_float("alpha", 0.01)
    return write("LeakyRelu", operands[0], alpha=0.01 if alpha is None else alpha)


SHORTEST = 4
"""Fewest numbers for which ONNX Runtime's sums of exponentials, times 1 / scale, are known not to overflow."""


def _softmax(editor: Editor, node: ir.Node) -> str | None:
    """QLinearSoftmax{axis, opset}(x, x_scale, x_zero, scale, zero) -> softmax(x) floor(1 / scale) + zero.

    ONNX Runtime scales by the integer floor(1 / scale). Below opset 13 the softmax is over all axes from `axis` on.
    """
    if (reason := unknown(node) or _scalars(node, 1, 2, 3, 4)) is not None or node.outputs[0].dtype is None:
        return reason
    shape, axis = dims(node.inputs[0]) or (), node.attributes.get_int("axis", -1) or 0
    at, legacy = axis % max(len(shape), 1), (node.attributes.get_int("opset", 13) or 13) < 13
    if math.prod(shape[at:] if legacy else shape[at : at + 1]) < SHORTEST:
        return f"ONNX Runtime's QLinearSoftmax of fewer than {SHORTEST} numbers overflows"
    write = Writer(editor, node)
    x, scale, kind = _real(write, node, 0), node.inputs[3], node.outputs[0].dtype.numpy()
    if not legacy:
        y = write("Softmax", x, axis=axis)
    else:
        rows = write.reshape(x, (math.prod(shape[:at]), math.prod(shape[at:])))
        y = write.reshape(write("Softmax", rows, axis=-1), shape)
    known = tensor_of(scale)
    if known is None:
        steps = write("Floor", write("Div", write.constant(1, np.float32), scale))
    else:
        with np.errstate(all="ignore"):
            steps = write.constant(np.floor(np.float32(1) / known.numpy().reshape(())), np.float32)
    zero = operand(node, 4) or write.constant(0, kind)
    write.finish(write("QuantizeLinear", write("Mul", y, steps), write.constant(1, np.float32), zero))
    return None


def _moved(write: Writer, x: ir.Value, first: bool) -> ir.Value:
    """Transpose channels-last to channels-first (`first`) or back; nothing to do for a channels-first node."""
    rank = len(dims(write.node.inputs[0]) or ())
    if not write.node.attributes.get_int("channels_last", 0):
        return x
    order = [0, rank - 1, *range(1, rank - 1)] if first else [0, *range(2, rank), 1]
    return write("Transpose", x, perm=order)


def _global_average_pool(write: Writer, operands: Sequence[ir.Value]) -> ir.Value:
    return _moved(write, write("GlobalAveragePool", _moved(write, operands[0], True)), False)


def _average_pool(write: Writer, operands: Sequence[ir.Value]) -> ir.Value:
    attributes = {
        name: attribute.value
        for name, attribute in write.node.attributes.items()
        if name != "channels_last" and isinstance(attribute, ir.Attr)
    }
    return _moved(write, write("AveragePool", _moved(write, operands[0], True), **attributes), False)


def _pool(editor: Editor, node: ir.Node) -> str | None:
    """QLinearAveragePool, unless windows may begin in the padding, which it counts in its own way."""
    if node.attributes.get_int("ceil_mode", 0) != 0:
        return "QLinearAveragePool with ceil_mode has windows of its own"
    return _on_floats(_average_pool, 1)(editor, node)


def _concat(editor: Editor, node: ir.Node) -> str | None:
    """QLinearConcat(scale, zero, x, x_scale, x_zero, ...) -> Concat of the parts, quantized alike."""
    reason = unknown(node) or _scalars(node, *(at for at in range(len(node.inputs)) if at < 2 or at % 3 != 2))
    if reason is not None:
        return reason
    write, (scale, zero) = Writer(editor, node), node.inputs[:2]
    parts = [write("QuantizeLinear", _real(write, node, first), scale, zero) for first in range(2, len(node.inputs), 3)]
    axis = node.attributes.get_int("axis", 0)
    write.finish(write("Concat", *parts, axis=axis or 0))
    return None


def _where(editor: Editor, node: ir.Node) -> str | None:
    """QLinearWhere(condition, x, x_scale, x_zero, y, y_scale, y_zero, scale, zero)."""
    if (reason := unknown(node) or _scalars(node, 2, 3, 5, 6, 7, 8)) is not None:
        return reason
    write = Writer(editor, node)
    chosen = write("Where", node.inputs[0], _real(write, node, 1), _real(write, node, 4))
    _quantize(write, chosen, node.inputs[7], node.inputs[8])
    return None


def _scaled(write: Writer, total: ir.Value, a_scale: ir.Value | None, b_scale: ir.Value | None) -> ir.Value:
    """Integer sums of products, scaled to floats."""
    return write("Mul", write("Cast", total, to=ir.DataType.FLOAT.value), write("Mul", a_scale, b_scale))


def _integer_to_float(editor: Editor, node: ir.Node) -> str | None:
    """MatMulIntegerToFloat(a, b, a_scale, b_scale, a_zero, b_zero, bias) -> MatMulInteger a_scale b_scale + bias."""
    if (reason := unknown(node) or _scalars(node, 2, 4)) is not None:
        return reason
    write = Writer(editor, node)
    total = write("MatMulInteger", *node.inputs[:2], operand(node, 4), operand(node, 5))
    y, bias = _scaled(write, total, *node.inputs[2:4]), operand(node, 6)
    write.finish(y if bias is None else write("Add", y, bias))
    return None


def _further_outputs(editor: Editor, value: ir.Value, *dtypes: ir.DataType) -> Sequence[ir.Value]:
    """Further outputs of the producer of `value`: scalars of these types."""
    producer = value.producer()
    assert producer is not None
    producer.resize_outputs(1 + len(dtypes))
    for output, dtype in zip(producer.outputs[1:], dtypes, strict=True):
        output.name, output.type, output.shape = editor.fresh(f"{value.name}.more"), ir.TensorType(dtype), ir.Shape([])
    return producer.outputs[1:]


def _dynamic(editor: Editor, node: ir.Node) -> str | None:
    """DynamicQuantizeMatMul(a, b, b_scale, b_zero, bias) -> MatMulInteger of a, quantized dynamically, scaled."""
    if (reason := unknown(node)) is not None:
        return reason
    write = Writer(editor, node)
    quantized = write("DynamicQuantizeLinear", node.inputs[0])
    a_scale, a_zero = _further_outputs(editor, quantized, ir.DataType.FLOAT, ir.DataType.UINT8)
    total = write("MatMulInteger", quantized, node.inputs[1], a_zero, operand(node, 3))
    y, bias = _scaled(write, total, a_scale, node.inputs[2]), operand(node, 4)
    write.finish(y if bias is None else write("Add", y, bias))
    return None


def _gemm(editor: Editor, node: ir.Node) -> str | None:
    """QGemm{alpha, transA, transB}(a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero).

    Without y_scale the result is float.
    """
    if (reason := unknown(node) or _scalars(node, 1, 2, 7, 8)) is not None:
        return reason
    write, alpha = Writer(editor, node), node.attributes.get_float("alpha", 1.0)
    a, b = (
        write("Transpose", node.inputs[at], perm=[1, 0]) if node.attributes.get_int(name, 0) else node.inputs[at]
        for at, name in ((0, "transA"), (3, "transB"))
    )
    total = write("MatMulInteger", a, b, operand(node, 2), operand(node, 5))
    if (bias := operand(node, 6)) is not None:
        total = write("Add", total, bias)
    a_scale = node.inputs[1] if alpha == 1.0 else write("Mul", node.inputs[1], write.constant(alpha, np.float32))
    y, y_scale = _scaled(write, total, a_scale, node.inputs[4]), operand(node, 7)
    if y_scale is None:
        write.finish(y)
    else:
        _quantize(write, y, y_scale, operand(node, 8))
    return None


QUANTIZED: dict[str, tuple[Rule, ...]] = {
    "DynamicQuantizeMatMul": (_dynamic,),
    "MatMulIntegerToFloat": (_integer_to_float,),
    "QGemm": (_gemm,),
    "QLinearAdd": (_add,),
    "QLinearAveragePool": (_pool,),
    "QLinearConcat": (_concat,),
    "QLinearGlobalAveragePool": (_on_floats(_global_average_pool, 1),),
    "QLinearLeakyRelu": (_on_floats(_leaky_relu, 1),),
    "QLinearMul": (_on_floats(lambda write, operands: write("Mul", *operands), 2),),
    "QLinearSigmoid": (_on_floats(lambda write, operands: write("Sigmoid", operands[0]), 1),),
    "QLinearSoftmax": (_softmax,),
    "QLinearWhere": (_where,),
}
