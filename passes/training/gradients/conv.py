"""Gradients of convolutions: each is a convolution again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.edit import AttributeValue, dims, ints
from graphopt.passes.training.gradients.context import Context, Gradients, Thunk, shape_of


@dataclass(frozen=True)
class Window:
    """The attributes of a convolution or pool, for each spatial axis; `pads` are those before, then those after."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @property
    def attributes(self) -> dict[str, AttributeValue]:
        """All of them by name."""
        return {"kernel_shape": self.kernel, **self.placement}

    @property
    def placement(self) -> dict[str, AttributeValue]:
        """All but the kernel's extents, which the weight has."""
        return {"strides": self.strides, "dilations": self.dilations, "pads": self.pads}


def window_of(node: ir.Node) -> Window | None:
    """The window of a node, automatic padding worked out; None where shapes are open or that padding is negative.

    ONNX Runtime pads a pool for its kernel without dilations.
    """
    x, y = dims(node.inputs[0]), dims(node.outputs[0])
    convolution = node.op_type in ("Conv", "ConvTranspose")
    weight = dims(node.inputs[1]) if convolution else None
    kernel = ints(node, "kernel_shape", []) or list((weight or ())[2:])
    if x is None or y is None or not kernel:
        return None
    rank = len(kernel)
    strides, dilations = ints(node, "strides", [1] * rank), ints(node, "dilations", [1] * rank)
    pads = ints(node, "pads", [0] * 2 * rank)
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    transposed = node.op_type == "ConvTranspose"
    if mode == "VALID":
        pads = [0] * 2 * rank
    elif mode != "NOTSET" or (transposed and "output_shape" in node.attributes):
        extra = ints(node, "output_padding", [0] * rank)
        pads = [0] * 2 * rank
        for axis in range(rank):
            reach = (kernel[axis] - 1) * (dilations[axis] if convolution else 1) + 1
            if transposed:
                missing = strides[axis] * (x[2 + axis] - 1) + extra[axis] + reach - y[2 + axis]
            else:
                missing = (-(-x[2 + axis] // strides[axis]) - 1) * strides[axis] + reach - x[2 + axis]
            if missing < 0:
                return None
            small, large = missing // 2, missing - missing // 2
            first = small if mode == "SAME_UPPER" else large
            pads[axis], pads[rank + axis] = first, missing - first
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(pads))


def check(node: ir.Node) -> str | None:
    """Padding is not negative, neither automatic nor given."""
    window = window_of(node)
    if window is None:
        return "its automatic padding is negative; crop the input instead"
    return "its padding is negative; crop the input instead" if min(window.pads, default=0) < 0 else None


def conv(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """dX = ConvTranspose(dY, W), dW = ConvWeightGradient(X, dY), dB = the sum of dY over all but the channels.

    output_padding says how many elements at the end no window reached.
    """
    x, w, window, dy = node.inputs[0], node.inputs[1], window_of(node), dys[0]
    assert x is not None
    assert dy is not None
    assert window is not None
    group = node.attributes.get_int("group", 1) or 1

    def of_x() -> ir.Value:
        rank, shape = len(window.kernel), shape_of(x)
        over = [
            (shape[2 + i] + window.pads[i] + window.pads[rank + i] - window.dilations[i] * (window.kernel[i] - 1) - 1)
            % window.strides[i]
            for i in range(rank)
        ]
        attributes = {**window.placement, "group": group, "output_padding": over}
        return ctx.result("ConvTranspose", [dy, w], attributes, shape=shape)

    def of_w() -> ir.Value:
        return ctx.result("ConvWeightGradient", [x, dy], {**window.attributes, "group": group}, shape=shape_of(w))

    return {0: of_x, 1: of_w, 2: _of_bias(ctx, dy)}


def conv_transpose(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The roles change: dX = Conv(dY, W), dW = ConvWeightGradient(dY, X)."""
    x, w, window, dy = node.inputs[0], node.inputs[1], window_of(node), dys[0]
    assert x is not None
    assert dy is not None
    assert window is not None
    group = node.attributes.get_int("group", 1) or 1

    def of_x() -> ir.Value:
        rank, shape, out = len(window.kernel), shape_of(x), shape_of(dy)
        reach = [(k - 1) * d + 1 for k, d in zip(window.kernel, window.dilations, strict=True)]
        extents = [
            (out[2 + i] + window.pads[i] + window.pads[rank + i] - reach[i]) // window.strides[i] + 1
            for i in range(rank)
        ]
        whole = ctx.result("Conv", [dy, w], {**window.placement, "group": group}, shape=(*shape[:2], *extents))
        if tuple(extents) == shape[2:]:
            return whole
        axes = list(range(2, 2 + rank))
        bounds = [ctx.ints([0] * rank), ctx.ints(shape[2:]), ctx.ints(axes)]
        return ctx.result("Slice", [whole, *bounds], shape=shape)

    def of_w() -> ir.Value:
        return ctx.result("ConvWeightGradient", [dy, x], {**window.attributes, "group": group}, shape=shape_of(w))

    return {0: of_x, 1: of_w, 2: _of_bias(ctx, dy)}


def _of_bias(ctx: Context, dy: ir.Value) -> Thunk:
    return lambda: ctx.sum(dy, [axis for axis in range(len(shape_of(dy))) if axis != 1])
