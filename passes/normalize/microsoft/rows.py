"""Rules of normalize for com.microsoft's normalizations of rows, with the sums and embedding look-ups before them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, Rule, dims
from graphopt.passes.normalize.microsoft.shared import Writer, operand, unknown, used


def _simplified(
    write: Writer, x: ir.Value, scale: ir.Value, axes: list[int], epsilon: float
) -> tuple[ir.Value, ir.Value]:
    """(x / sqrt(mean(x^2) + epsilon) * scale, the reciprocal of that root); half precision is summed in float32."""
    kind, wide = x.dtype, x
    if kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        wide = write("Cast", x, to=int(ir.DataType.FLOAT))
    mean = write("ReduceMean", write("Mul", wide, wide), write.constant(axes, np.int64))
    root = write("Sqrt", write("Add", mean, write.like(epsilon, wide)))
    y = write("Div", wide, root)
    if wide is not x:
        y = write("Cast", y, to=int(kind or ir.DataType.FLOAT))
    return write("Mul", y, scale), write("Reciprocal", root)


def _simplified_layer(editor: Editor, node: ir.Node) -> str | None:
    """SimplifiedLayerNormalization{axis, epsilon}(x, scale), without the mean."""
    if (reason := unknown(node)) is not None:
        return reason
    x, scale = node.inputs[:2]
    assert x is not None
    assert scale is not None
    if x.dtype != scale.dtype:
        return "x and scale of SimplifiedLayerNormalization differ in type"
    rank = len(dims(x) or ())
    axis = (node.attributes.get_int("axis", -1) or 0) % rank
    write = Writer(editor, node)
    write.finish(
        *_simplified(write, x, scale, list(range(axis, rank)), node.attributes.get_float("epsilon", 1e-5) or 0.0)
    )
    return None


def _skip(editor: Editor, node: ir.Node) -> str | None:
    """SkipLayerNormalization(x, skip, gamma, beta, bias) -> LayerNormalization(x + skip + bias, gamma, beta).

    SkipSimplifiedLayerNormalization(x, skip, gamma, bias) likewise, without mean and beta. The sum is the last output.
    """
    if (reason := unknown(node)) is not None:
        return reason
    if used(node, 1) or used(node, 2):
        return f"the statistics of {node.op_type} are used, which ONNX Runtime does not compute either"
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    x, skip, gamma = node.inputs[:3]
    assert gamma is not None
    bias = operand(node, 3 if simplified else 4)
    write = Writer(editor, node)
    total = write("Add", x, skip)
    if bias is not None:
        total = write("Add", total, bias)
    epsilon = node.attributes.get_float("epsilon", 1e-5) or 0.0
    if simplified:
        y, _ = _simplified(write, total, gamma, [-1], epsilon)
    else:
        beta = operand(node, 3)
        y = write("LayerNormalization", total, gamma, *([] if beta is None else [beta]), epsilon=epsilon, axis=-1)
    write.finish(y, None, None, total)
    return None


def _embed(editor: Editor, node: ir.Node) -> str | None:
    """EmbedLayerNormalization: the sum of up to three embeddings, normalized; and the number of tokens of each row."""
    if (reason := unknown(node)) is not None:
        return reason
    ids, segments, words, positions, segment, gamma, beta = node.inputs[:7]
    mask, order = operand(node, 7), operand(node, 8)
    shape, table = dims(ids), dims(positions)
    assert shape is not None
    if table is None or (order is None and table[0] < shape[1]):
        return "EmbedLayerNormalization has more tokens than positions"
    write = Writer(editor, node)
    total = write("Gather", words, ids, axis=0)
    total = write(
        "Add",
        total,
        write.cut(positions, 0, 0, shape[1])
        if order is None and positions is not None
        else write("Gather", positions, order, axis=0),
    )
    if segments is not None and segment is not None:
        total = write("Add", total, write("Gather", segment, segments, axis=0))
    epsilon = node.attributes.get_float("epsilon", 1e-12) or 0.0
    y = write("LayerNormalization", total, gamma, beta, epsilon=epsilon, axis=-1)
    index: ir.Value | None = None
    if used(node, 1):
        index = write.constant(np.zeros(shape[0], np.int32))
        if mask is not None:
            index = write("ReduceSum", mask, write.constant([1], np.int64), keepdims=0)
    write.finish(y, index, total)
    return None


ROWS: dict[str, tuple[Rule, ...]] = {
    "EmbedLayerNormalization": (_embed,),
    "SimplifiedLayerNormalization": (_simplified_layer,),
    "SkipLayerNormalization": (_skip,),
    "SkipSimplifiedLayerNormalization": (_skip,),
}
