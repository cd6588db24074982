"""The rewrites of one Conv: conversions around a graphopt operator, and its packed weights as initializers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost.workload import PRECISION, TILE
from graphopt.graph.edit import AttributeValue, Editor
from graphopt.ops import DOMAIN
from graphopt.ops.conv import pack_bias, pack_conv_weight, pack_depthwise_weight
from graphopt.ops.fft import fft_weight
from graphopt.ops.im2col import pack_im2col_weight
from graphopt.ops.layout import blocks
from graphopt.ops.sparse import pack_sparse_conv_weight
from graphopt.ops.winograd import winograd_weight
from graphopt.passes.conv.conv_node import ConvNode
from graphopt.passes.conv.run_time_weights import (
    blocked_bias,
    blocked_weight,
    depthwise_weight,
    matrix_weight,
    transformed_weight,
)


def emit_blocked(editor: Editor, conv: ConvNode, in_block: int, block: int, tile: str) -> None:
    """Conv -> ToBlocked, Conv2dBlocked, FromBlocked."""
    weight = (
        blocked_weight(editor, conv, in_block, block)
        if conv.weight is None
        else pack_conv_weight(conv.weight, conv.shape.group, in_block, block)
    )
    attributes: dict[str, AttributeValue] = _window(conv) | {"group": conv.shape.group}
    _wrap(editor, conv, "Conv2dBlocked", weight, attributes, in_block, block, tile)


def emit_depthwise(editor: Editor, conv: ConvNode, block: int, tile: str) -> None:
    """Conv -> ToBlocked, DepthwiseConv2dBlocked, FromBlocked."""
    weight = depthwise_weight(editor, conv, block) if conv.weight is None else pack_depthwise_weight(conv.weight, block)
    _wrap(editor, conv, "DepthwiseConv2dBlocked", weight, _window(conv), block, block, tile)


def emit_winograd(editor: Editor, conv: ConvNode, m: int, block: int, tile: str) -> None:
    """Conv -> ToBlocked, Conv2dWinograd or, for a kernel of one row or column, Conv2dWinogradAxis, FromBlocked."""
    u = transformed_weight(editor, conv, m, block) if conv.weight is None else winograd_weight(conv.weight, m, block)
    op_type, attributes = winograd_form(conv, m)
    _wrap(editor, conv, op_type, u, {**attributes}, block, block, tile)


def winograd_form(conv: ConvNode, m: int) -> tuple[str, dict[str, int | tuple[int, ...]]]:
    """(operator, attributes) of the Winograd convolution with output tiles of `m`."""
    if 1 in (conv.shape.kh, conv.shape.kw):
        return "Conv2dWinogradAxis", {"m": m, "axis": 2 if conv.shape.kw == 1 else 3, "pads": conv.pads}
    return "Conv2dWinograd", {"m": m, "pads": conv.pads}


def emit_fft(editor: Editor, conv: ConvNode, n: int, block: int, tile: str) -> None:
    """Conv -> ToBlocked, Conv2dFft with n x n transforms, FromBlocked."""
    s = conv.shape
    assert conv.weight is not None
    attributes: dict[str, AttributeValue] = {
        "tile": n,
        "kernel_shape": (s.kh, s.kw),
        "pads": conv.pads,
        "group": s.group,
    }
    _wrap(editor, conv, "Conv2dFft", fft_weight(conv.weight, n, block, s.group), attributes, block, block, tile)


def emit_sparse(editor: Editor, conv: ConvNode, depth: int, width: int, block: int, tile: str) -> None:
    """Conv -> ToBlocked, BlockSparseConv with blocks of depth x width, FromBlocked."""
    s = conv.shape
    assert conv.weight is not None
    attributes: dict[str, AttributeValue] = {"outputs": (s.o,), "kernel_shape": (s.kh, s.kw), **_window(conv)}
    weight = pack_sparse_conv_weight(conv.weight, width, depth)
    _wrap(editor, conv, "BlockSparseConv", weight, attributes, block, block, tile)


def emit_im2col(editor: Editor, conv: ConvNode, tile: str) -> None:
    """Conv -> Conv2dIm2col."""
    node, s = conv.node, conv.shape
    weight = (
        matrix_weight(editor, conv)
        if conv.weight is None
        else editor.constant(pack_im2col_weight(conv.weight), f"{node.name}.matrix")
    )
    bias = node.inputs[2] if conv.bias is None else editor.constant(conv.bias, f"{node.name}.bias")
    y = editor.insert(
        node,
        "Conv2dIm2col",
        [conv.x, weight, bias],
        _window(conv) | {"kernel_shape": (s.kh, s.kw)},
        shape=(s.n, s.o, s.oh, s.ow),
        dtype=conv.x.dtype,
        name=f"{node.name}.im2col",
        output=f"{node.outputs[0].name}.im2col",
        origin=[node],
        domain=DOMAIN,
    )
    _mark(y, tile, conv.units)
    editor.swap(node, y)


def _mark(y: ir.Value, tile: str, units: str = "") -> None:
    """Write tile and units into the metadata of the producer of `y`, where its converter reads them."""
    node = y.producer()
    for key, value in ((TILE, tile), (PRECISION, units)):
        if value and node is not None:
            node.metadata_props[key] = value


def _window(conv: ConvNode) -> dict[str, AttributeValue]:
    return {"strides": conv.strides, "pads": conv.pads, "dilations": conv.dilations}


def _wrap(
    editor: Editor,
    conv: ConvNode,
    op_type: str,
    weight: ir.Value | NDArray[Any] | tuple[NDArray[Any], ...],
    attributes: dict[str, AttributeValue],
    in_block: int,
    block: int,
    tile: str,
) -> None:
    """Replace the Conv by ToBlocked, the operator and FromBlocked; `layout` removes needless conversions."""
    node, s, x = conv.node, conv.shape, conv.x

    def insert(
        kind: str, inputs: Sequence[ir.Value], given: dict[str, AttributeValue], shape: Sequence[int], output: str
    ) -> ir.Value:
        name = f"{node.name}.{kind}"
        return editor.insert(
            node,
            kind,
            inputs,
            given,
            shape=shape,
            dtype=x.dtype,
            name=name,
            output=output,
            origin=[node],
            domain=DOMAIN,
        )

    y_name = node.outputs[0].name
    in_shape = (s.n, blocks(s.c, in_block), s.h, s.w, in_block)
    x_blocked = insert("ToBlocked", [x], {"block": in_block}, in_shape, f"{x.name}.blocked")
    operands = weight if isinstance(weight, tuple) else (weight,)
    weights = [
        each if isinstance(each, ir.Value) else editor.constant(each, f"{node.name}.weight") for each in operands
    ]
    bias = (
        blocked_bias(editor, conv, block)
        if conv.bias is None
        else editor.constant(pack_bias(conv.bias, block), f"{node.name}.bias")
    )
    out_shape = (s.n, blocks(s.o, block), s.oh, s.ow, block)
    blocked = insert(op_type, [x_blocked, *weights, bias], attributes, out_shape, f"{y_name}.blocked")
    _mark(blocked, tile, conv.units if op_type in ("Conv2dBlocked", "BlockSparseConv") else "")
    y = insert("FromBlocked", [blocked], {"channels": s.o}, (s.n, s.o, s.oh, s.ow), f"{y_name}.planar")
    editor.swap(node, y)
