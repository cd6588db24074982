"""Products and convolutions that a model writes in floats between bytes become products of the bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.passes._edit import Editor, array_of, dims, is_op, only_use
from graphopt.pipeline import Pass, PassResult, Refusal

BYTES = (ir.DataType.UINT8, ir.DataType.INT8)

BIAS_SCALE = 1e-4
"""How far the scale of a bias may be from the product of the others: exporters compute it in other precisions."""


@dataclass(frozen=True)
class QuantizedProducts(Pass):
    """What is dequantized, multiplied and quantized again is multiplied as bytes.

        a = DequantizeLinear(p, s, z)   b = DequantizeLinear(w, t, u)
        q = QuantizeLinear(MatMul(a, b), v, c)                     ->   q = QLinearMatMul(p, s, z, w, t, u, v, c)
        q = QuantizeLinear(Conv(a, b, DequantizeLinear(d)), v, c)  ->   q = QLinearConv(p, s, z, w, t, u, v, c, d)

    Quantized models are exported so (QDQ). Sums of bytes are exact, take a quarter of the memory, and processors
    multiply two to four times as many of them at once. A Relu in front of QuantizeLinear is its lower bound where the
    zero point is the smallest number. Types are those that ONNX Runtime has: the result as the left operand, and two
    int8 or a uint8 on the left. Weights of other convolutions are dequantized here, so that they are constants.
    """

    name: ClassVar[str] = "quantized-products"

    def call(self, model: ir.Model) -> PassResult:
        """Rewrite the main graph; refusals name what is dequantized for a product and stays float."""
        editor = Editor(model, self.name)
        refusals = []
        for node in tuple(model.graph):
            if node.graph is None or not is_op(node, "MatMul", "Conv"):
                continue
            left, right = _Bytes.behind(node.inputs[0]), _Bytes.behind(node.inputs[1])
            if left is not None and right is not None:
                reason = _rewrite(editor, node, left, right)
                if reason is None:
                    continue
                refusals.append(Refusal(str(node.name), reason))
            if node.op_type == "Conv":
                for value in node.inputs[1:]:
                    _dequantize(editor, value)
        return PassResult(model, editor.modified, tuple(refusals))


@dataclass(frozen=True, slots=True)
class _Bytes:
    """A tensor in floats that DequantizeLinear makes of `value`; `axis` is that of the scales where there are more."""

    node: ir.Node
    value: ir.Value
    scale: ir.Value
    zero: ir.Value | None
    axis: int

    @classmethod
    def behind(cls, value: ir.Value | None) -> _Bytes | None:
        node = None if value is None else value.producer()
        if node is None or not is_op(node, "DequantizeLinear") or node.attributes.get_int("block_size", 0) != 0:
            return None
        source, scale, zero = (*node.inputs, None)[:3]
        shape, numbers = dims(source), array_of(scale)
        if source is None or scale is None or shape is None or numbers is None or numbers.dtype != np.float32:
            return None
        if zero is not None and array_of(zero) is None:
            return None
        axis = node.attributes.get_int("axis", 1)
        return cls(node, source, scale, zero, axis % max(len(shape), 1))

    @property
    def single(self) -> bool:
        return self.scale.const_value is not None and self.scale.const_value.size == 1

    def along(self, axis: int) -> bool:
        """Whether there is one scale, or one for each entry of `axis`."""
        return self.single or self.axis == axis


def _rewrite(editor: Editor, node: ir.Node, left: _Bytes, right: _Bytes) -> str | None:
    """Multiply bytes, or say why not."""
    quantize = _quantize(node)
    if quantize is None:
        return "its result is not quantized"
    kinds = left.value.dtype, right.value.dtype, quantize.outputs[0].dtype
    if kinds[0] is None or kinds[0] not in BYTES or kinds[1] not in BYTES or kinds[2] != kinds[0]:
        return "its result is of another type than its left operand"
    if kinds == (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT8):
        return "ONNX Runtime multiplies no int8 with uint8"
    if not left.single:
        return "its left operand has several scales"
    shape = dims(right.value) or ()
    if not right.along(0 if node.op_type == "Conv" else len(shape) - 1) or (not right.single and not _is_matrix(node)):
        return "the scales of its right operand are not those of columns or filters"
    bias: list[ir.Value | None] = []
    if node.op_type == "Conv" and len(node.inputs) > 2 and node.inputs[2] is not None:
        known = _bias(node.inputs[2], left, right)
        if known is None:
            return "its bias is not quantized as the products are"
        bias = [known]
    scale, zero = (*quantize.inputs, None)[1:3]
    operands = [
        *(left.value, left.scale, _point(editor, left.zero, left.scale, kinds[0])),
        *(right.value, right.scale, _point(editor, right.zero, right.scale, kinds[1])),
        *(scale, _point(editor, zero, scale, kinds[2])),
        *bias,
    ]
    attributes: dict[str, Any] = {name: each.value for name, each in node.attributes.items()}
    result = editor.insert(
        quantize,
        "QLinearConv" if node.op_type == "Conv" else "QLinearMatMul",
        operands,
        attributes,
        shape=node.outputs[0].shape,
        dtype=quantize.outputs[0].dtype,
        name=str(node.name),
        output=f"{quantize.outputs[0].name}.bytes",
        origin=[left.node, right.node, node, quantize],
    )
    editor.swap(quantize, result)
    return None


def _point(editor: Editor, zero: ir.Value | None, scale: ir.Value | None, kind: ir.DataType) -> ir.Value:
    """The zero point, written out."""
    return zero if zero is not None else editor.constant(np.zeros(dims(scale) or (), kind.numpy()), "zero")


def _is_matrix(node: ir.Node) -> bool:
    """Whether the right operand is one that ONNX Runtime takes several scales for."""
    return node.op_type == "Conv" or len(dims(node.inputs[1]) or ()) == 2


def _quantize(node: ir.Node) -> ir.Node | None:
    """The QuantizeLinear to one scale that alone reads what `node` computes, maybe behind a Relu that it makes void."""
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


def _bias(value: ir.Value, left: _Bytes, right: _Bytes) -> ir.Value | None:
    """The bias in int32, if it is in units of a product of bytes."""
    found = _Bytes.behind(value)
    if found is None or found.value.dtype != ir.DataType.INT32 or array_of(found.value) is None:
        return None
    if found.zero is not None and np.any(array_of(found.zero)):
        return None
    scales = [array_of(each.scale) for each in (left, right, found)]
    product = scales[0].reshape(-1).astype(np.float64) * scales[1].reshape(-1)  # type: ignore[union-attr]
    return found.value if np.allclose(scales[2].reshape(-1), product, rtol=BIAS_SCALE, atol=0) else None  # type: ignore[union-attr]


def _dequantize(editor: Editor, value: ir.Value | None) -> None:
    """Make a constant of a DequantizeLinear of one."""
    found = _Bytes.behind(value)
    numbers = None if found is None else array_of(found.value)
    if value is None or found is None or numbers is None or value.dtype != ir.DataType.FLOAT or value.is_graph_output():
        return
    shape = [1] * numbers.ndim
    if not found.single:
        shape[found.axis] = -1
    scale, zero = array_of(found.scale), array_of(found.zero) if found.zero is not None else None
    assert scale is not None
    whole = numbers.astype(np.int32) - (0 if zero is None else zero.astype(np.int32).reshape(shape))
    constant = editor.constant(whole.astype(np.float32) * scale.reshape(shape), f"{value.name}.float")
    editor.swap(found.node, constant)
