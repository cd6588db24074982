"""Matrix products and convolutions of dequantized operands become integer products of the quantized bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, array_of, dims, is_op, only_use
from graphopt.passes.normalize.microsoft.shared import Writer, operand
from graphopt.passes.quantize.dequantized import BYTES, Dequantized
from graphopt.pipeline.pass_base import Pass, PassResult, Refusal

BIAS_SCALE = 1e-4
"""Relative tolerance of a bias scale against the product of the operand scales: exporters round it differently."""


@dataclass(frozen=True)
class QuantizedProducts(Pass):
    """What is dequantized, multiplied and quantized again is multiplied as bytes.

        a = DequantizeLinear(p, s, z)   b = DequantizeLinear(w, t, u)
        q = QuantizeLinear(MatMul(a, b), v, c)                     ->   q = QLinearMatMul(p, s, z, w, t, u, v, c)
        q = QuantizeLinear(Conv(a, b, DequantizeLinear(d)), v, c)  ->   q = QLinearConv(p, s, z, w, t, u, v, c, d)
        y = MatMul(a, b)                                 ->   y = Cast(MatMulInteger(p, w, z, u)) * (s t)
        y = Gemm(a, b, DequantizeLinear(d))              ->   y = Cast(MatMulInteger(p, w, z, u) + d) * (s t)
        y = Gemm{alpha, beta}(a, b, e)                   ->   y = Cast(MatMulInteger(p, w, z, u)) * (alpha s t) + beta e

    Quantized models are exported in this form (QDQ). Integer sums are exact, bytes take a quarter of the memory, and
    processors multiply two to four times as many of them at once. A Relu before QuantizeLinear is redundant where the
    zero point is the smallest byte: quantizing saturates there. Types are those that ONNX Runtime supports: two int8
    operands or a uint8 on the left, and a quantized result of the type of the left operand. A convolution whose result
    is not quantized stays in floats, as in ONNX Runtime; its weights are dequantized at compile time, so that they are
    constants.
    """

    name: ClassVar[str] = "quantized-products"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; refusals name products of dequantized operands that stay in floats."""
        editor = Editor(model, self.name)
        refusals = []
        for node in tuple(model.graph):
            if node.graph is None or not is_op(node, "MatMul", "Gemm", "Conv"):
                continue
            left, right = Dequantized.behind(node.inputs[0]), Dequantized.behind(node.inputs[1])
            if left is not None and right is not None:
                reason = _rewrite(editor, node, left, right)
                if reason is None:
                    continue
                refusals.append(Refusal(str(node.name), reason))
            if node.op_type == "Conv":
                for value in node.inputs[1:]:
                    _dequantize(editor, value)
        return PassResult(model, editor.modified, tuple(refusals))


def _rewrite(editor: Editor, node: ir.Node, left: Dequantized, right: Dequantized) -> str | None:
    """Rewrite `node` to a product of bytes; else the reason against it."""
    kinds = left.value.dtype, right.value.dtype
    if kinds[0] not in BYTES or kinds[1] not in BYTES:
        return "its operands are no bytes"
    if kinds == (ir.DataType.INT8, ir.DataType.UINT8):
        return "ONNX Runtime multiplies no int8 with uint8"
    if not left.single:
        return "its left operand has several scales"
    shapes = [dims(side.value) or () for side in (left, right)]
    if 0 in (*shapes[0], *shapes[1]):
        return "an operand is empty"
    rank = len(shapes[1])
    filters = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0)
    if not right.single and (not right.along(0 if filters else rank - 1) or (node.op_type == "MatMul" and rank != 2)):
        return "the scales of its right operand are not those of columns or filters"
    quantize = _quantize(node)
    if node.op_type == "Conv":
        if quantize is None:
            return "its result is not quantized"
        if quantize.outputs[0].dtype != kinds[0]:
            return "its result is of another type than its left operand"
        bias = operand(node, 2)
        known = None if bias is None else _bias(bias, left, right)
        if bias is not None and known is None:
            return "its bias is not quantized as the products are"
        _to_bytes(editor, node, left, right, quantize, "QLinearConv", known)
    elif node.op_type == "MatMul" and quantize is not None and quantize.outputs[0].dtype == kinds[0]:
        _to_bytes(editor, node, left, right, quantize, "QLinearMatMul")
    elif not _fits(node, left, right):
        return "the sums may be too large for int32"
    else:
        _to_floats(editor, node, left, right)
    return None


def _fits(node: ir.Node, left: Dequantized, right: Dequantized) -> bool:
    """Whether the sums of products stay within int32 for all possible bytes."""
    shape = dims(left.value) or (1,)
    depth = shape[0 if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0 else -1]
    return depth * _farthest(left) * _farthest(right) < 2**31


def _farthest(side: Dequantized) -> int:
    """The largest distance of a byte from its zero point: over the bytes of a constant, else over all bytes."""
    numbers, zero = array_of(side.value), array_of(side.zero)
    points = np.zeros(1, np.int64) if zero is None else zero.astype(np.int64)
    low, high = (0, 255) if side.value.dtype == ir.DataType.UINT8 else (-128, 127)
    if numbers is not None and numbers.size:
        low, high = int(numbers.min()), int(numbers.max())
    return max(high - int(points.min()), int(points.max()) - low)


def _to_bytes(
    editor: Editor,
    node: ir.Node,
    left: Dequantized,
    right: Dequantized,
    quantize: ir.Node,
    op_type: str,
    bias: ir.Value | None = None,
) -> None:
    """Replace `node` and `quantize` by one `op_type` with a quantized result."""
    scale, zero = (*quantize.inputs, None)[1:3]
    result = quantize.outputs[0]
    operands = [
        *(left.value, left.scale, _point(editor, left.zero, left.scale, left.value)),
        *(right.value, right.scale, _point(editor, right.zero, right.scale, right.value)),
        *(scale, _point(editor, zero, scale, result)),
        *([] if bias is None else [bias]),
    ]
    attributes: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    value = editor.insert(
        quantize,
        op_type,
        operands,
        attributes,
        shape=node.outputs[0].shape,
        dtype=result.dtype,
        name=str(node.name),
        output=f"{result.name}.bytes",
        origin=[left.node, right.node, node, quantize],
    )
    editor.swap(quantize, value)


def _to_floats(editor: Editor, node: ir.Node, left: Dequantized, right: Dequantized) -> None:
    """Replace a MatMul or Gemm by MatMulInteger, whose sums are scaled to a float result."""
    write, bias = Writer(editor, node), operand(node, 2)
    alpha, beta = (node.attributes.get_float(name, 1.0) or 0.0 for name in ("alpha", "beta"))
    a, b = (
        write("Transpose", side.value, perm=[1, 0]) if node.attributes.get_int(name, 0) else side.value
        for side, name in ((left, "transA"), (right, "transB"))
    )
    points = [_vector(write, side.zero) for side in (left, right)]
    while points and points[-1] is None:
        points.pop()
    total = write("MatMulInteger", a, b, *points)
    if bias is not None and alpha == beta == 1.0 and (known := _bias(bias, left, right)) is not None:
        total, bias = write("Add", total, known), None
    unit = np.float32(alpha) * left.scales.reshape(()) * (right.scales.reshape(()) if right.single else right.scales)
    y = write("Mul", write("Cast", total, to=ir.DataType.FLOAT.value), write.constant(unit))
    if bias is not None and beta:
        y = write("Add", y, bias if beta == 1.0 else write("Mul", bias, write.constant(beta, np.float32)))
    write.finish(y)


def _vector(write: Writer, zero: ir.Value | None) -> ir.Value | None:
    """A zero point as MatMulInteger takes it: a scalar, or one per column; None where it is 0."""
    numbers = array_of(zero)
    if zero is None or numbers is None or not numbers.any():
        return None
    return zero if numbers.ndim == 0 or numbers.size > 1 else write.constant(numbers.reshape(()))


def _point(editor: Editor, zero: ir.Value | None, scale: ir.Value | None, quantized: ir.Value) -> ir.Value:
    """The zero point of `quantized`; explicit zeros where the operand is omitted."""
    if zero is not None:
        return zero
    assert quantized.dtype is not None
    return editor.constant(np.zeros(dims(scale) or (), quantized.dtype.numpy()), "zero")


def _quantize(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear to one scale that is the only consumer of `node`, or of a redundant Relu after it."""
    reader = only_use(node.outputs[0])
    clipped = is_op(reader, "Relu")
    if clipped and reader is not None:
        reader = only_use(reader.outputs[0])
    if reader is None or not is_op(reader, "QuantizeLinear") or reader.outputs[0].dtype not in BYTES:
        return None
    scale, zero = array_of(reader.inputs[1]), (*reader.inputs, None)[2]
    point = None if zero is None else array_of(zero)
    if scale is None or scale.size != 1 or scale.dtype != np.float32 or (zero is not None and point is None):
        return None
    if clipped:
        lowest = 0 if reader.outputs[0].dtype == ir.DataType.UINT8 else -128
        if (0 if point is None else int(point.reshape(-1)[0])) != lowest:
            return None
    return reader


def _bias(value: ir.Value, left: Dequantized, right: Dequantized) -> ir.Value | None:
    """The int32 bias, if its scale is the product of the operand scales and its zero point 0."""
    source = Dequantized.behind(value)
    if source is None or source.value.dtype != ir.DataType.INT32 or array_of(source.value) is None:
        return None
    if source.zero is not None and np.any(array_of(source.zero)):
        return None
    if not source.single and len(dims(source.value) or ()) != 1:
        return None
    product = left.scales.reshape(-1).astype(np.float64) * right.scales.reshape(-1)
    return source.value if np.allclose(source.scales.reshape(-1), product, rtol=BIAS_SCALE, atol=0) else None


def _dequantize(editor: Editor, value: ir.Value | None) -> None:
    """Fold a DequantizeLinear of a constant into a float constant."""
    source = Dequantized.behind(value)
    numbers = None if source is None else array_of(source.value)
    if value is None or source is None or numbers is None:
        return
    if value.dtype != ir.DataType.FLOAT or value.is_graph_output():
        return
    shape = [1] * numbers.ndim
    if not source.single:
        shape[source.axis] = -1
    zero = array_of(source.zero)
    shifted = numbers.astype(np.int32) - (0 if zero is None else zero.astype(np.int32).reshape(shape))
    constant = editor.constant(shifted.astype(np.float32) * source.scales.reshape(shape), f"{value.name}.float")
    editor.swap(source.node, constant)
