"""Nodes that pack the weights of a convolution in each run, where they are known at run time only.

    w  ->  ToBlockedWeight  ->  Conv2dBlocked
                            ->  WinogradWeight  ->  Conv2dWinograd
                            ->  FlipBlockedWeight  ->  Conv2dBlocked, WinogradWeight     a ConvTranspose of the same w

Each form is made once and shared by all convolutions that read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import AttributeValue, Editor, array_of, dims, is_op
from graphopt.ops import DOMAIN
from graphopt.ops.layout import blocks
from graphopt.passes.conv.conv_node import ConvNode


def blocked_weight(editor: Editor, conv: ConvNode, in_block: int, block: int) -> ir.Value:
    """Weights of `Conv2dBlocked`: [CO, CI / group, kh, kw, bi, b]."""
    s, w = conv.shape, _weight(conv)
    outer = (s.c, s.o // s.group) if conv.flip else (s.o, s.c // s.group)
    lanes = (block, block) if conv.flip else (block, in_block)
    taken = _of_taps(w)
    whole = w if taken is None else taken.inputs[0]
    assert whole is not None
    kernel = (dims(whole) or ())[2:]
    shape = (blocks(outer[0], lanes[0]), blocks(outer[1], lanes[1]), *kernel, lanes[1], lanes[0])
    attributes = {"in_block": lanes[1], "block": lanes[0]}
    packed = _once(editor, conv, "ToBlockedWeight", whole, attributes, shape, "blocked")
    packed_shape = (*shape[:2], s.kh, s.kw, *shape[4:])
    if taken is not None:
        packed = _insert(editor, conv, "Slice", [packed, *taken.inputs[1:]], {}, packed_shape, f"{w.name}.blocked", "")
    if not conv.flip:
        return packed
    each = blocks(s.c // s.group, block)
    shape = (s.group * packed_shape[1], each, s.kh, s.kw, block, block)
    return _once(editor, conv, "FlipBlockedWeight", packed, {"group": s.group}, shape, "flipped")


def transformed_weight(editor: Editor, conv: ConvNode, m: int, block: int) -> ir.Value:
    """Weights of `Conv2dWinograd`: [taps, CO, CI, b, b]."""
    packed = blocked_weight(editor, conv, block, block)
    assert packed.shape is not None
    co, ci = (int(extent) for extent in packed.shape.numpy()[:2])
    shape = ((m + conv.shape.kh - 1) ** 2, co, ci, block, block)
    return _once(editor, conv, "WinogradWeight", packed, {"m": m}, shape, "winograd")


def depthwise_weight(editor: Editor, conv: ConvNode, block: int) -> ir.Value:
    """Weights of `DepthwiseConv2dBlocked`: [CB, kh, kw, b]."""
    s = conv.shape
    shape = (blocks(s.c, block), s.kh, s.kw, block)
    packed = _once(editor, conv, "ToDepthwiseWeight", _weight(conv), {"block": block}, shape, "depthwise")
    if not conv.flip:
        return packed
    backwards = [np.array(values, np.int64) for values in ([-1, -1], [-(1 << 62), -(1 << 62)], [1, 2], [-1, -1])]
    names = ("starts", "ends", "axes", "steps")
    limits = [editor.constant(array, f"{conv.node.name}.{name}") for array, name in zip(backwards, names, strict=True)]
    return _insert(editor, conv, "Slice", [packed, *limits], {}, shape, f"{packed.name}.flipped", "")


def matrix_weight(editor: Editor, conv: ConvNode) -> ir.Value:
    """Weights of `Conv2dIm2col`: a view [O, C kh kw]."""
    s = conv.shape
    shape = (s.o, s.c * s.kh * s.kw)
    target = editor.constant(np.array(shape, np.int64), f"{conv.node.name}.shape")
    return _insert(editor, conv, "Reshape", [_weight(conv), target], {}, shape, f"{_weight(conv).name}.matrix", "")


def blocked_bias(editor: Editor, conv: ConvNode, block: int) -> ir.Value:
    """The bias [O] as [CO, b], zero in the padded lanes."""
    bias = conv.node.inputs[2]
    assert bias is not None
    outputs, count = conv.shape.o, blocks(conv.shape.o, block)
    name = f"{bias.name}.blocked"
    if outputs % block:
        pads = editor.constant(np.array([0, -outputs % block], np.int64), f"{conv.node.name}.pads")
        bias = _insert(editor, conv, "Pad", [bias, pads], {}, (count * block,), f"{bias.name}.filled", "")
    shape = editor.constant(np.array([count, block], np.int64), f"{conv.node.name}.shape")
    return _insert(editor, conv, "Reshape", [bias, shape], {}, (count, block), name, "")


def _weight(conv: ConvNode) -> ir.Value:
    weight = conv.node.inputs[1]
    assert weight is not None
    return weight


def _of_taps(weight: ir.Value) -> ir.Node | None:
    """The Slice that takes some taps of a larger kernel; packed weights have their taps on the same axes."""
    node = weight.producer()
    if node is None or not is_op(node, "Slice") or len(node.inputs) < 4:
        return None
    axes = array_of(node.inputs[3])
    return node if axes is not None and axes.tolist() == [2, 3] else None


def _once(
    editor: Editor,
    conv: ConvNode,
    op_type: str,
    source: ir.Value,
    attributes: Mapping[str, int],
    shape: Sequence[int],
    form: str,
) -> ir.Value:
    """The result of a graphopt operator on `source`: an earlier node's, or that of a new one."""
    for node, _ in source.uses():
        if node.domain == DOMAIN and node.op_type == op_type and node.graph is editor.graph:
            given = {name: node.attributes.get_int(name, 0) for name in attributes}
            if given == attributes:
                return node.outputs[0]
    return _insert(editor, conv, op_type, [source], attributes, shape, f"{source.name}.{form}", DOMAIN)


def _insert(
    editor: Editor,
    conv: ConvNode,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Mapping[str, AttributeValue],
    shape: Sequence[int],
    output: str,
    domain: str,
) -> ir.Value:
    return editor.insert(
        conv.node,
        op_type,
        inputs,
        attributes,
        shape=shape,
        dtype=conv.x.dtype,
        name=f"{conv.node.name}.{op_type}",
        output=output,
        origin=[conv.node],
        domain=domain,
    )
