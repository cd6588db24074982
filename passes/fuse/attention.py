"""The rule of fuse that recognises scaled dot-product attention around a Softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, array_of, dims, ints, is_op, only_use, scalar_of
from graphopt.ops import DOMAIN, MINIMUM_OPSET

Masks = dict[tuple[int, float, bool], ir.Value]
"""Additive masks by (id of the boolean mask, fill, kept when true), so that all layers share one."""

_MASKED_OUT = -1e4
"""A fill of at most this masks a position out: exp(-1e4) is zero in every float type."""


def _attention(editor: Editor, softmax: ir.Node, masks: Masks) -> str | None:
    """MatMul(Softmax(scale * MatMul(q, k^T) [+ mask]), v) -> Attention(q, k, v) or AttentionMasked(q, k, v, mask).

    The scale may be applied to the scores, to q, to k^T, or to several of them; the mask may be added or applied by a
    Where; k^T may be a Transpose of any tensor, also between Reshapes that merge and split the leading axes.
    """
    scores = softmax.inputs[0]
    product = only_use(softmax.outputs[0])
    shape = dims(scores)
    if scores is None or not is_op(product, "MatMul") or product is None or shape is None or len(shape) != 4:
        return None
    if product.inputs[0] is not softmax.outputs[0] or softmax.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    v = product.inputs[1]
    if v is None or len(dims(v) or ()) != 4:
        return None
    body, mask = _unmask(scores)
    body, scale = _unscale(body)
    dot = body.producer()
    if dot is None or not is_op(dot, "MatMul"):
        return None
    if editor.model.opset_imports.get("", 1) < MINIMUM_OPSET:
        return f"it computes attention, whose operator needs opset {MINIMUM_OPSET}"
    if body.is_graph_output() or len(body.uses()) != 1:
        return "the scores of the attention have other uses"
    left, right = dot.inputs
    if left is None or right is None:
        return None
    q, scale_q = _unscale(left)
    transposed, scale_k = _unscale(right)
    k = _untransposed(editor, dot, transposed)
    if k is None:
        return "k of the attention is no transposed tensor of four extents"
    batch_heads = [(dims(value) or ())[:2] for value in (q, k, v)]
    if len(dims(q) or ()) != 4 or len(set(batch_heads)) != 1:
        return "q, k and v of the attention differ in batch or heads"
    inputs: list[ir.Value] = [q, k, v]
    if mask is not None:
        inputs.append(mask(editor, softmax, masks))
    y = product.outputs[0]
    new = editor.insert(
        product,
        "AttentionMasked" if mask is not None else "Attention",
        inputs,
        {"scale": float(scale * scale_q * scale_k)}
        | ({"compute": int(ir.DataType.DOUBLE)} if y.dtype == ir.DataType.DOUBLE else {}),
        shape=y.shape,
        dtype=y.dtype,
        name=f"{product.name}.attention",
        output=f"{y.name}.attention",
        origin=[dot, softmax, product],
        domain=DOMAIN,
    )
    editor.swap(product, new)
    return None


MakeMask = Callable[[Editor, ir.Node, Masks], ir.Value]


def _unmask(scores: ir.Value) -> tuple[ir.Value, MakeMask | None]:
    """(scores before masking, function that builds the additive mask) of an Add or a Where; else (`scores`, None)."""
    node = scores.producer()
    if node is None or only_use(scores) is None:
        return scores, None
    if is_op(node, "Add"):
        for index in (0, 1):
            body, mask = node.inputs[index], node.inputs[1 - index]
            if body is None or mask is None or dims(body) != dims(scores) or not _is_scores(body):
                continue
            return body, lambda _editor, _node, _masks, value=mask: value
    if is_op(node, "Where"):
        condition = node.inputs[0]
        for index, kept_when_true in ((1, True), (2, False)):
            body, fill = node.inputs[index], scalar_of(node.inputs[3 - index])
            if condition is None or body is None or fill is None or fill > _MASKED_OUT or not _is_scores(body):
                continue
            return body, lambda e, n, m, c=condition, f=fill, k=kept_when_true: _additive(e, n, m, c, f, k)
    return scores, None


def _is_scores(value: ir.Value) -> bool:
    return is_op(_unscale(value)[0].producer(), "MatMul")


def _additive(
    editor: Editor, before: ir.Node, masks: Masks, condition: ir.Value, fill: float, kept_when_true: bool
) -> ir.Value:
    """The additive mask: 0 where scores are kept, else `fill`, which absorbs any score, so that Add equals Where."""
    key = id(condition), fill, kept_when_true
    if key in masks:
        return masks[key]
    dtype = before.inputs[0].dtype if before.inputs[0] is not None else None
    numpy_dtype: Any = dtype.numpy() if dtype is not None else np.float32
    array = array_of(condition)
    kept, out = numpy_dtype.type(0), numpy_dtype.type(fill)
    if array is not None:
        chosen = np.where(array if kept_when_true else ~array, kept, out)
        masks[key] = editor.constant(chosen, f"{condition.name}.additive")
        return masks[key]
    zero, low = (editor.constant(np.asarray(v), f"{condition.name}.fill") for v in (kept, out))
    choices = [zero, low] if kept_when_true else [low, zero]
    masks[key] = editor.insert(
        before,
        "Where",
        [condition, *choices],
        shape=condition.shape,
        dtype=dtype,
        name=f"{before.name}.mask",
        output=f"{condition.name}.additive",
        origin=[before],
    )
    return masks[key]


def _unscale(value: ir.Value) -> tuple[ir.Value, float]:
    """(the tensor before Mul and Div by scalars, their combined factor)."""
    factor = 1.0
    while True:
        node = value.producer()
        scalar = scalar_of(node.inputs[1]) if node is not None and is_op(node, "Mul", "Div") else None
        if node is None or not scalar or node.inputs[0] is None or not math.isfinite(scalar):
            return value, factor
        factor = factor * scalar if node.op_type == "Mul" else factor / scalar
        value = node.inputs[0]


def _untransposed(editor: Editor, before: ir.Node, transposed: ir.Value) -> ir.Value | None:
    """k [B, H, S, D] for k^T [B, H, D, S], from a new Transpose or Reshape where no tensor of the graph is it."""
    node = transposed.producer()
    shape = dims(transposed)
    if node is None or shape is None or len(shape) != 4:
        return None
    if is_op(node, "Transpose"):
        base, perm = node.inputs[0], ints(node, "perm", [3, 2, 1, 0])
        if base is None or perm == [0, 1, 3, 2]:
            return base
        swapped = [perm[0], perm[1], perm[3], perm[2]]
        return editor.insert(
            before,
            "Transpose",
            [base],
            {"perm": swapped},
            shape=(shape[0], shape[1], shape[3], shape[2]),
            dtype=transposed.dtype,
            name=f"{node.name}.untransposed",
            output=f"{transposed.name}.untransposed",
            origin=[node],
        )
    if is_op(node, "Reshape"):  # [B, H, S, D] -> [B*H, S, D] -> [B*H, D, S] -> [B, H, D, S]
        middle = node.inputs[0].producer() if node.inputs[0] is not None else None
        first = middle.inputs[0].producer() if middle is not None and middle.inputs[0] is not None else None
        if middle is None or first is None or not is_op(middle, "Transpose") or not is_op(first, "Reshape"):
            return None
        k = first.inputs[0]
        merged, wanted = (shape[0] * shape[1], shape[3], shape[2]), (shape[0], shape[1], shape[3], shape[2])
        if ints(middle, "perm", []) != [0, 2, 1] or dims(first.outputs[0]) != merged:
            return None
        if dims(k) == wanted:
            return k
        return editor.insert(
            before,
            "Reshape",
            [k, editor.constant(np.array(wanted, np.int64), f"{first.name}.shape")],
            shape=wanted,
            dtype=transposed.dtype,
            name=f"{first.name}.heads",
            output=f"{transposed.name}.untransposed",
            origin=[first],
        )
    return None


ATTENTION = _attention
