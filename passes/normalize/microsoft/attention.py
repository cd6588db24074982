"""Rules of normalize for com.microsoft's attention: projections, positions, masks, then scores, softmax and values.

    y = softmax(q k^T scale + bias + mask) v

A mask adds `mask_filter_value` to the scores of keys that it hides; a causal attention adds the lowest number.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.graph.constness import tensor_of
from graphopt.graph.edit import Editor, Rule, dims
from graphopt.passes.normalize.microsoft.shared import Writer, operand, unknown, used


def _heads(write: Writer, x: ir.Value, heads: int) -> ir.Value:
    """[B, S, N H] -> [B, N, S, H]."""
    batch, steps, width = dims(x) or (0, 0, 0)
    return write("Transpose", write.reshape(x, (batch, steps, heads, width // heads)), perm=[0, 2, 1, 3])


def _strange(node: ir.Node, mask: ir.Value | None, keys: int) -> str | None:
    """A reason against a mask other than [B, L] or [B, S, L] of zeros and ones, ends [B], or ends and starts [2 B]."""
    shape = dims(mask) if mask is not None else None
    batch, steps = (dims(node.inputs[0]) or (0, 0))[:2]
    if shape is None or shape in ((batch,), (2 * batch,), (batch, keys), (batch, steps, keys)):
        return None
    return f"the mask of {node.op_type} has the shape {list(shape)}, which is not understood here"


def _kept(write: Writer, mask: ir.Value, keys: int) -> ir.Value:
    """Which keys a mask keeps: booleans that broadcast against [B, N, S, L]."""
    shape = dims(mask) or ()
    batch = (dims(write.node.inputs[0]) or (0,))[0]
    if len(shape) == 1:
        places = write.constant(np.arange(keys).reshape(1, keys), np.int32)
        ends = write.cut(mask, 0, 0, batch) if shape[0] > batch else mask
        kept = write("Less", places, write.reshape(ends, (batch, 1)))
        if shape[0] > batch:
            starts = write.reshape(write.cut(mask, 0, batch, 2 * batch), (batch, 1))
            kept = write("And", kept, write("GreaterOrEqual", places, starts))
        return write.reshape(kept, (batch, 1, 1, keys))
    kept = write("Not", write("Equal", mask, write.like(0, mask)))
    return write.reshape(kept, (shape[0], 1, 1 if len(shape) == 2 else shape[1], keys))


def _masked(write: Writer, scores: ir.Value, mask: ir.Value | None, before: int | None) -> ir.Value | None:
    """The additive mask of the scores, or None. With `before` it is causal, as `_attend` defines it."""
    _, _, steps, keys = dims(scores) or (0, 0, 0, 0)
    kind = scores.dtype.numpy() if scores.dtype is not None else np.dtype(np.float32)
    added: ir.Value | None = None
    if mask is not None:
        kept = _kept(write, mask, keys)
        fill = write.node.attributes.get_float("mask_filter_value", -10000.0) or 0.0
        added = write("Where", kept, write.like(0, scores), write.like(fill, scores))
    if before is not None:
        later = np.triu(np.ones((steps, keys), np.bool_), before + 1).reshape(1, 1, steps, keys)
        lowest = np.finfo(kind).min
        if added is None:
            return write.constant(np.where(later, lowest, kind.type(0)), kind)
        added = write("Where", write.constant(later), write.constant(lowest, kind), added)
    return added


def _attend(
    write: Writer,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    mask: ir.Value | None,
    bias: ir.Value | None,
    before: int | None,
    scale: float | None,
) -> ir.Value:
    """Emit attention: q[B, N, S, H], k[B, N, L, H] and v[B, N, L, V] to [B, S, N V].

    Args:
        before: None lets every query see all keys; else query s sees the first `before` + s + 1.
    """
    batch, heads, steps, width = dims(q) or (0, 0, 0, 0)
    scores = write("MatMul", q, write("Transpose", k, perm=[0, 1, 3, 2]))
    scores = write("Mul", scores, write.like(scale or 1 / math.sqrt(width), scores))
    added = _masked(write, scores, mask, before)
    if bias is not None:
        added = bias if added is None else write("Add", added, bias)
    if added is not None:
        scores = write("Add", scores, added)
    y = write("MatMul", write("Softmax", scores, axis=-1), v)
    across = (dims(v) or (0,))[-1]
    return write.reshape(write("Transpose", y, perm=[0, 2, 1, 3]), (batch, steps, heads * across))


def _alone(node: ir.Node, past: int) -> str | None:
    """Why an attention whose past is operand `past` is not rewritten, judged by its attributes and outputs."""
    if operand(node, past) is not None and not used(node, 1):
        return f"{node.op_type} has a past but no present, which ONNX Runtime leaves undefined"
    for name in ("do_rotary", "past_present_share_buffer"):
        if node.attributes.get_int(name, 0):
            return f"{name} of {node.op_type} has no rewrite here"
    return None


def _scale(node: ir.Node) -> float | None:
    return node.attributes.get_float("scale", 0.0) or None


def _attention(editor: Editor, node: ir.Node) -> str | None:
    """Attention(x, weights, bias, mask, past, attention_bias): one projection to q, k and v, then `_attend`."""
    reason = unknown(node) or _alone(node, 4)
    if reason is not None:
        return reason
    x, weights = node.inputs[:2]
    bias, mask, past, added = (operand(node, index) for index in range(2, 6))
    heads = node.attributes.get_int("num_heads", 0) or 1
    steps, width = (dims(x) or (0, 0, 0))[1], (dims(weights) or (0, 0))[1]
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes") or ()) or [width // 3] * 3
    before = (dims(past) or (0,) * 5)[3]
    if (reason := _strange(node, mask, before + steps)) is not None:
        return reason
    if used(node, 1) and sizes[0] != sizes[2]:
        return "the present of Attention holds keys and values of different widths"
    write = Writer(editor, node)
    projected = write("MatMul", x, weights)
    if bias is not None:
        projected = write("Add", projected, bias)
    ends = np.cumsum([0, *sizes]).tolist()
    q, k, v = (_heads(write, write.cut(projected, 2, *ends[i : i + 2]), heads) for i in range(3))
    if past is not None:
        old = [write("Squeeze", write.cut(past, 0, i, i + 1), write.constant([0], np.int64)) for i in range(2)]
        k, v = (write("Concat", o, new, axis=2) for o, new in zip(old, (k, v), strict=True))
    present = None
    if used(node, 1):
        axis = write.constant([0], np.int64)
        present = write("Concat", write("Unsqueeze", k, axis), write("Unsqueeze", v, axis), axis=0)
    seen = before if node.attributes.get_int("unidirectional", 0) else None
    write.finish(_attend(write, q, k, v, mask, added, seen, _scale(node)), present)
    return None


def _multi_head(editor: Editor, node: ir.Node) -> str | None:
    """MultiHeadAttention(q, k, v, bias, mask, attention_bias, past k, past v): split heads, then `_attend`."""
    reason = unknown(node) or _alone(node, 6)
    if reason is not None:
        return reason
    query, key, value, bias, mask, added, past_key, past_value = (operand(node, index) for index in range(8))
    heads = node.attributes.get_int("num_heads", 0) or 1
    if used(node, 3) or any(operand(node, index) is not None for index in (8, 9)):
        return "MultiHeadAttention has operands or outputs of a decoder, which are not understood here"
    shapes = [dims(tensor) or () for tensor in (query, key, value)]
    if query is None or key is None or value is None or len(shapes[0]) != 3 or len(shapes[1]) != len(shapes[2]):
        return "q, k and v of MultiHeadAttention are packed"
    if len(shapes[1]) not in (3, 4) or (len(shapes[1]) == 4 and bias is not None):
        return "k and v of MultiHeadAttention are of a form that is not understood here"
    before, length = (dims(past_key) or (0, 0, 0))[2], shapes[1][1 if len(shapes[1]) == 3 else 2]
    if (reason := _strange(node, mask, before + length)) is not None:
        return reason
    if node.attributes.get_int("unidirectional", 0) and length != shapes[0][1]:
        return "which of the keys of another sequence a causal MultiHeadAttention sees is not understood here"
    write = Writer(editor, node)
    parts = [query, key, value]
    if bias is not None:
        ends = np.cumsum([0, *(shape[-1] for shape in shapes)]).tolist()
        parts = [write("Add", part, write.cut(bias, 0, *ends[i : i + 2])) for i, part in enumerate(parts)]
    q, k, v = (_heads(write, part, heads) if len(dims(part) or ()) == 3 else part for part in parts)
    if past_key is not None:
        k, v = write("Concat", past_key, k, axis=2), write("Concat", past_value, v, axis=2)
    seen = before if node.attributes.get_int("unidirectional", 0) else None
    write.finish(_attend(write, q, k, v, mask, added, seen, _scale(node)), k, v)
    return None


def _turn(
    write: Writer, x: ir.Value, cos: ir.Value | None, sin: ir.Value | None, positions: ir.Value, interleaved: bool
) -> ir.Value:
    """Rotate x[B, N, S, H] by the angles of positions[B, S]: pairs of the first and second half, or neighbours.

    Widths beyond those of cos and sin [M, R / 2] stay as they are (J. Su et al., RoFormer, arXiv:2104.09864).
    """
    batch, heads, steps, width = dims(x) or (0, 0, 0, 0)
    half = (dims(cos) or (0, 0))[1]
    c, s = (
        write("Unsqueeze", write("Gather", t, positions, axis=0), write.constant([1], np.int64)) for t in (cos, sin)
    )
    rest = write.cut(x, 3, 2 * half, width) if 2 * half < width else None
    x = write.cut(x, 3, 0, 2 * half) if rest is not None else x
    if interleaved:
        pairs = write.reshape(x, (batch, heads, steps, half, 2))
        left, right = (write("Squeeze", write.cut(pairs, 4, i, i + 1), write.constant([4], np.int64)) for i in (0, 1))
    else:
        left, right = write.cut(x, 3, 0, half), write.cut(x, 3, half, 2 * half)
    first = write("Sub", write("Mul", left, c), write("Mul", right, s))
    second = write("Add", write("Mul", left, s), write("Mul", right, c))
    if interleaved:
        axis = write.constant([4], np.int64)
        turned = write("Concat", write("Unsqueeze", first, axis), write("Unsqueeze", second, axis), axis=4)
        turned = write.reshape(turned, (batch, heads, steps, 2 * half))
    else:
        turned = write("Concat", first, second, axis=3)
    return turned if rest is None else write("Concat", turned, rest, axis=3)


def _rotary(editor: Editor, node: ir.Node) -> str | None:
    """RotaryEmbedding(x, positions, cos, sin) of x[B, S, N H] or x[B, N, S, H]."""
    if (reason := unknown(node)) is not None:
        return reason
    x, positions, cos, sin = node.inputs[:4]
    shape, table, rotated = dims(x) or (), dims(cos) or (0, 0), node.attributes.get_int("rotary_embedding_dim", 0) or 0
    heads = node.attributes.get_int("num_heads", 0) or 0
    if node.attributes.get_int("is_packed_batching", 0) or node.attributes.get_float("scale", 1.0) != 1:
        return "RotaryEmbedding is scaled or of packed rows, which are not understood here"
    if rotated and (not heads or rotated != 2 * table[1]):
        return "rotary_embedding_dim of RotaryEmbedding does not fit its tables"
    if x is None or positions is None or len(shape) not in (3, 4):
        return "x of RotaryEmbedding has neither three nor four axes"
    if len(shape) == 3 and not rotated:
        heads = shape[2] // (2 * table[1])
    write = Writer(editor, node)
    batch, steps = (shape[0], shape[1]) if len(shape) == 3 else (shape[0], shape[2])
    if dims(positions) in ((1,), ()):  # the position of the first step
        offsets = write.constant(np.arange(steps).reshape(1, steps), np.int64)
        positions = write("Add", write.reshape(positions, (1, 1)), offsets)
    split = _heads(write, x, heads) if len(shape) == 3 else x
    y = _turn(write, split, cos, sin, positions, bool(node.attributes.get_int("interleaved", 0)))
    if len(shape) == 3:
        y = write.reshape(write("Transpose", y, perm=[0, 2, 1, 3]), shape)
    write.finish(y)
    return None


def _group_query(editor: Editor, node: ir.Node) -> str | None:
    """GroupQueryAttention: heads share keys and values, and every token sees those before it.

    `seqlens_k` gives at run time where the new keys go in the past: it must be a constant that appends them, or there
    must be no past and a batch of one.
    """
    if (reason := unknown(node)) is not None:
        return reason
    query, key, value, past_key, past_value, lengths, total, cos, sin = (operand(node, index) for index in range(9))
    heads, groups = (node.attributes.get_int(name, 0) or 1 for name in ("num_heads", "kv_num_heads"))
    batch, steps, hidden = dims(query) or (0, 0, 0)
    before = (dims(past_key) or (0, 0, 0))[2]
    if any(operand(node, index) is not None for index in range(9, len(node.inputs))) or used(node, 3):
        return "GroupQueryAttention has positions, a bias, sinks or outputs that are not understood here"
    strange = [name for name in ("softcap", "smooth_softmax", "qk_output") if name in node.attributes]
    if (node.attributes.get_int("local_window_size", -1) or -1) != -1 or any(
        node.attributes[name].value not in (0, 0.0) for name in strange
    ):
        return "GroupQueryAttention has a window, a cap or another softmax, which are not understood here"
    ends = [tensor_of(value) for value in (lengths, total)]
    full = [
        end is not None and bool((end.numpy() == before + steps - less).all())
        for end, less in zip(ends, (1, 0), strict=True)
    ]
    if not all(full) and (before or batch > 1 or any(end is not None for end in ends)):
        return "where the keys of GroupQueryAttention end is known at run time only"
    write = Writer(editor, node)
    if query is None or key is None or value is None:
        width = hidden // (heads + 2 * groups)
        ends = np.cumsum([0, heads * width, groups * width, groups * width]).tolist()
        query, key, value = (write.cut(query, 2, *ends[i : i + 2]) for i in range(3)) if query else (None,) * 3
    assert query is not None
    assert key is not None
    assert value is not None
    q, k, v = _heads(write, query, heads), _heads(write, key, groups), _heads(write, value, groups)
    if node.attributes.get_int("do_rotary", 0):
        interleaved = bool(node.attributes.get_int("rotary_interleaved", 0))
        positions = write.constant(np.arange(before, before + steps).reshape(1, steps), np.int64)
        q, k = (_turn(write, x, cos, sin, positions, interleaved) for x in (q, k))
    if before:
        k, v = write("Concat", past_key, k, axis=2), write("Concat", past_value, v, axis=2)
    shared = write.constant(np.repeat(np.arange(groups), heads // groups), np.int64)
    keys, values = (x if heads == groups else write("Gather", x, shared, axis=1) for x in (k, v))
    write.finish(_attend(write, q, keys, values, None, None, before, _scale(node)), k, v)
    return None


ATTENTION: dict[str, tuple[Rule, ...]] = {
    "Attention": (_attention,),
    "GroupQueryAttention": (_group_query,),
    "MultiHeadAttention": (_multi_head,),
    "RotaryEmbedding": (_rotary,),
}
