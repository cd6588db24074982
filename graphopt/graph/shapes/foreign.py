"""Shapes that onnx's inference does not know: of com.microsoft's operators, and where ONNX Runtime gives others.

    shapes = foreign_shapes(node)     # [(dtype, extents), ...] of its outputs; None where this is not known

The domain com.microsoft is ONNX Runtime's own, and optimized or quantized transformers are full of it
(https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.constness import constant_array, is_constant
from graphopt.graph.shapes.extents import OTHERWISE, convolved, pooled
from graphopt.graph.shapes.operands import Extents, Rule, Typed, Unknown, extents, integer, kind_of, operand

MICROSOFT = "com.microsoft"


def foreign_shapes(node: ir.Node) -> list[Typed] | None:
    """(dtype, extents) of every output of `node`; None where onnx infers them, or where they are not known."""
    if node.domain == MICROSOFT:
        rule = _MICROSOFT.get(node.op_type)
    elif node.op_type == "SimplifiedLayerNormalization":  # ONNX Runtime has it in ONNX's domain too
        rule = _simplified
    else:
        rule = OTHERWISE.get(node.op_type) if node.domain == "" else None
    if rule is None:
        return None
    try:
        types = list(rule(node))
    except (Unknown, IndexError, ValueError, ZeroDivisionError):
        return None
    return types if len(types) >= len(node.outputs) else None


def _same(count: int = 1) -> Rule:
    """Every output has the dtype and extents of the first operand."""
    return lambda node: [(kind_of(node, 0), extents(node, 0))] * count


def _broadcast(first: int, second: int) -> Rule:
    """One output, of the type of operand `first`, of the extents that both broadcast to."""
    return lambda node: [
        (kind_of(node, first), tuple(np.broadcast_shapes(extents(node, first), extents(node, second)))),
    ]


def _normalized(node: ir.Node) -> Sequence[Typed]:
    """Skip normalizations: y, mean, inverse deviation, and the sum that is normalized."""
    x = kind_of(node, 0), extents(node, 0)
    statistics = ir.DataType.FLOAT, (*x[1][:-1], 1)
    return [x, statistics, statistics, x]


def _simplified(node: ir.Node) -> Sequence[Typed]:
    """SimplifiedLayerNormalization: y, inverse deviation over the axes from `axis` on."""
    x = extents(node, 0)
    axis = integer(node, "axis", -1) % len(x)
    kind = ir.DataType(node.attributes.get_int("stash_type", 1) or 1)
    weight = operand(node, 1)
    dtype = weight.dtype if weight is not None and weight.dtype is not None else kind_of(node, 0)
    return [(dtype, x), (kind, (*x[:axis], *(1,) * (len(x) - axis)))]


def _embedded(node: ir.Node) -> Sequence[Typed]:
    """EmbedLayerNormalization: y[B, S, H], the lengths, and the sum that is normalized."""
    batch, steps = extents(node, 0)
    hidden = extents(node, 2)[1]
    y = kind_of(node, 2), (batch, steps, hidden)
    return [y, (ir.DataType.INT32, (batch,)), y]


def _product(a: Extents, b: Extents) -> Extents:
    """The shape of the matrix product of a and b, whose batch axes broadcast."""
    if len(a) < 1 or len(b) < 1 or a[-1] != b[-2 if len(b) > 1 else 0]:
        raise Unknown
    rows, columns = a[-2:-1], b[-1:] if len(b) > 1 else ()
    return (*np.broadcast_shapes(a[:-2], b[:-2]), *rows, *columns)


def _turned(shape: Extents, last: bool, batch: bool) -> Extents:
    """Extents of an operand of FusedMatMul: `batch` moves the first axis before the last, `last` swaps the last two."""
    if len(shape) < 2 and (last or batch):
        raise Unknown
    if batch:
        shape = (*shape[1:-1], shape[0], shape[-1])
    return (*shape[:-2], shape[-1], shape[-2]) if last else shape


def _fused_matmul(node: ir.Node) -> Sequence[Typed]:
    a, b = (
        _turned(extents(node, i), integer(node, f"trans{side}", 0) != 0, integer(node, f"transBatch{side}", 0) != 0)
        for i, side in enumerate("AB")
    )
    return [(kind_of(node, 0), _product(a, b))]


def _matmul(a: int, b: int, dtype: int) -> Rule:
    return lambda node: [(kind_of(node, dtype), _product(extents(node, a), extents(node, b)))]


def _columns(node: ir.Node) -> Sequence[Typed]:
    """MatMulNBits and MatMulBnb4: the weights are packed, and N is their number of columns."""
    return [(kind_of(node, 0), (*extents(node, 0)[:-1], integer(node, "N")))]


def _gemm(b: int, dtype: int | None) -> Rule:
    """FusedGemm and QGemm: operand `b` is the matrix."""

    def rule(node: ir.Node) -> Sequence[Typed]:
        left, right = extents(node, 0), extents(node, b)
        rows = left[1 if integer(node, "transA", 0) else 0]
        columns = right[0 if integer(node, "transB", 0) else 1]
        kind = kind_of(node, 0)
        if dtype is not None:
            quantized = operand(node, dtype)
            kind = quantized.dtype if quantized is not None and quantized.dtype is not None else ir.DataType.FLOAT
        return [(kind, (rows, columns))]

    return rule


def _attention(weights: int, past: int, dtype: int) -> Rule:
    """Attention and QAttention: x[B, S, I], weights[I, Q + K + V], past[2, B, N, P, H]."""

    def rule(node: ir.Node) -> Sequence[Typed]:
        batch, steps, _ = extents(node, 0)
        heads = integer(node, "num_heads")
        sizes = node.attributes.get_ints("qkv_hidden_sizes") or (extents(node, weights)[1] // 3,) * 3
        before = extents(node, past)[3] if operand(node, past) is not None else 0
        if integer(node, "past_present_share_buffer", 0):
            raise Unknown
        kind = kind_of(node, dtype)
        return [(kind, (batch, steps, sizes[2])), (kind, (2, batch, heads, before + steps, sizes[0] // heads))]

    return rule


def _multi_head(node: ir.Node) -> Sequence[Typed]:
    """MultiHeadAttention: q[B, S, D] and k, v[B, L, D] or [B, N, L, H], or packed; then present keys and values."""
    query, heads, kind = extents(node, 0), integer(node, "num_heads"), kind_of(node, 0)
    if len(query) == 5:  # [B, S, N, 3, H]
        batch, steps, _, _, width = query
        length, across = steps, width
    else:
        batch, steps, hidden = query
        width = hidden // heads
        key = extents(node, 1)
        if len(key) == 5:  # [B, L, N, 2, H]
            length, across = key[1], width
        elif len(key) == 4:
            length, across = key[2], extents(node, 2)[3]
        else:
            length, across = key[1], extents(node, 2)[2] // heads
    before = extents(node, 6)[2] if operand(node, 6) is not None else 0
    if operand(node, 8) is not None:
        raise Unknown
    total = before + length
    return [
        (kind, (batch, steps, heads * across)),
        (kind, (batch, heads, total, width)),
        (kind, (batch, heads, total, across)),
        (ir.DataType.FLOAT, (batch, heads, steps, total)),
    ]


def _group_query(node: ir.Node) -> Sequence[Typed]:
    """GroupQueryAttention: the present has room for the steps of the past or for all steps, whichever are more."""
    batch, steps, hidden = extents(node, 0)
    heads, groups, kind = integer(node, "num_heads"), integer(node, "kv_num_heads"), kind_of(node, 0)
    packed = operand(node, 1) is None
    width = hidden // (heads + 2 * groups) if packed else hidden // heads
    total = operand(node, 6)
    past = extents(node, 3)[2] if operand(node, 3) is not None else 0
    if is_constant(total):
        room = max(past, int(constant_array(total).reshape(())))
    elif past:
        raise Unknown
    else:
        room = steps
    present = kind, (batch, groups, room, width)
    return [(kind, (batch, steps, heads * width)), present, present, (kind, (batch, heads, steps, room))]


def _rotary(node: ir.Node) -> Sequence[Typed]:
    return [(kind_of(node, 0), extents(node, 0))]


def _lstm(node: ir.Node) -> Sequence[Typed]:
    """DynamicQuantizeLSTM: x[T, B, I]; its R is [D, H, 4 H], the transpose of ONNX's."""
    steps, batch, _ = extents(node, 0)
    directions, hidden = extents(node, 2)[0], integer(node, "hidden_size")
    kind, state = kind_of(node, 0), (directions, batch, hidden)
    return [(kind, (steps, directions, batch, hidden)), (kind, state), (kind, state)]


def _dequantized(node: ir.Node) -> Sequence[Typed]:
    return [(kind_of(node, 1), extents(node, 0))]


def _quantized(node: ir.Node) -> Sequence[Typed]:
    zero = operand(node, 2)
    return [(ir.DataType.UINT8 if zero is None else kind_of(node, 2), extents(node, 0))]


def _joined(node: ir.Node) -> Sequence[Typed]:
    """QLinearConcat: scale and zero point of y, then x, scale and zero point of each part."""
    shapes = [extents(node, i) for i in range(2, len(node.inputs), 3)]
    axis = integer(node, "axis") % len(shapes[0])
    first = shapes[0]
    return [(kind_of(node, 2), (*first[:axis], sum(shape[axis] for shape in shapes), *first[axis + 1 :]))]


def _where(node: ir.Node) -> Sequence[Typed]:
    """QLinearWhere: condition, x, scale, zero point, y, ..."""
    return [(kind_of(node, 1), tuple(np.broadcast_shapes(extents(node, 0), extents(node, 1), extents(node, 4))))]


def _pooled_to_one(node: ir.Node) -> Sequence[Typed]:
    x = extents(node, 0)
    ones = (1,) * (len(x) - 2)
    return [(kind_of(node, 0), (x[0], *ones, x[-1]) if integer(node, "channels_last", 0) else (*x[:2], *ones))]


def _reduced(dtype: ir.DataType | None) -> Rule:
    """ReduceSumInteger and QLinearReduceMean: over the axes of the attribute."""

    def rule(node: ir.Node) -> Sequence[Typed]:
        x = extents(node, 0)
        axes = {axis % len(x) for axis in node.attributes.get_ints("axes") or range(len(x))}
        if integer(node, "keepdims", 1):
            shape: Extents = tuple(1 if axis in axes else extent for axis, extent in enumerate(x))
        else:
            shape = tuple(extent for axis, extent in enumerate(x) if axis not in axes)
        return [(kind_of(node, 0) if dtype is None else dtype, shape)]

    return rule


def _gathered(node: ir.Node) -> Sequence[Typed]:
    """GatherBlockQuantized: two 4-bit numbers of a uint8 lie along the last axis."""
    data, indices = list(extents(node, 0)), extents(node, 1)
    if kind_of(node, 0) == ir.DataType.UINT8:
        data[-1] *= 8 // integer(node, "bits", 4)
    axis = integer(node, "gather_axis", 0) % len(data)
    return [(kind_of(node, 2), (*data[:axis], *indices, *data[axis + 1 :]))]


def _halved(node: ir.Node) -> Sequence[Typed]:
    x = extents(node, 0)
    return [(kind_of(node, 0), (*x[:-1], x[-1] // 2))]


def _distances(node: ir.Node) -> Sequence[Typed]:
    return [(kind_of(node, 0), (extents(node, 0)[0], extents(node, 1)[0]))]


_MICROSOFT: dict[str, Rule] = {
    "Attention": _attention(1, 4, 0),
    "BiasAdd": _same(),
    "BiasGelu": _same(),
    "BiasSoftmax": _same(),
    "BiasSplitGelu": _halved,
    "CDist": _distances,
    "DequantizeLinear": _dequantized,
    "DynamicQuantizeLSTM": _lstm,
    "DynamicQuantizeMatMul": _matmul(0, 1, 0),
    "EmbedLayerNormalization": _embedded,
    "FastGelu": _same(),
    "FusedConv": convolved(1),
    "FusedGemm": _gemm(1, None),
    "FusedMatMul": _fused_matmul,
    "FusedMatMulActivation": _fused_matmul,
    "GatherBlockQuantized": _gathered,
    "Gelu": _same(),
    "GemmFastGelu": _matmul(0, 1, 0),
    "GroupNorm": _same(),
    "GroupQueryAttention": _group_query,
    "Inverse": _same(),
    "LongformerAttention": _same(),
    "MatMulBnb4": _columns,
    "MatMulIntegerToFloat": _matmul(0, 1, 2),
    "MatMulNBits": _columns,
    "MultiHeadAttention": _multi_head,
    "NhwcConv": convolved(1, last=True),
    "NhwcFusedConv": convolved(1, last=True),
    "NhwcMaxPool": pooled(last=True),
    "QAttention": _attention(1, 8, 3),
    "QGemm": _gemm(3, 8),
    "QLinearAdd": _broadcast(0, 3),
    "QLinearAveragePool": pooled(last=False),
    "QLinearConcat": _joined,
    "QLinearGlobalAveragePool": _pooled_to_one,
    "QLinearLeakyRelu": _same(),
    "QLinearMul": _broadcast(0, 3),
    "QLinearReduceMean": _reduced(None),
    "QLinearSigmoid": _same(),
    "QLinearSoftmax": _same(),
    "QLinearWhere": _where,
    "QuantizeLinear": _quantized,
    "QuickGelu": _same(),
    "ReduceSumInteger": _reduced(ir.DataType.INT32),
    "RotaryEmbedding": _rotary,
    "SimplifiedLayerNormalization": _simplified,
    "SkipGroupNorm": _same(2),
    "SkipLayerNormalization": _normalized,
    "SkipSimplifiedLayerNormalization": _normalized,
    "TransposeMatMul": _fused_matmul,
    "Trilu": _same(),
}
