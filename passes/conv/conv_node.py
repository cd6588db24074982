"""A convolution as the algorithms see it: a Conv, or a ConvTranspose of stride 1, with resolved attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost.roofline import ConvShape, Machine
from graphopt.cost.workload import PRECISION
from graphopt.graph.edit import array_of, dims, ints
from graphopt.ops import MINIMUM_OPSET
from graphopt.passes.layout.blockable import is_among, listed


@dataclass(frozen=True, slots=True)
class ConvNode:
    """A Conv with resolved attributes: weight [O, C/group, kh, kw], bias [O], pads top, left, bottom, right.

    A ConvTranspose of stride 1 is one too: a convolution with the flipped weights. `weight` is None where the numbers
    are known at run time only; then `flip` says that the node's own are [C, O/group, kh, kw] and are not flipped yet.
    """

    node: ir.Node
    weight: NDArray[Any] | None
    bias: NDArray[Any] | None
    """Zeros where there is none; None where it is known at run time only."""
    shape: ConvShape
    strides: tuple[int, int]
    pads: tuple[int, ...]
    dilations: tuple[int, int]
    dtype: str = "float32"
    flip: bool = False

    @property
    def units(self) -> str:
        """Reduced precision that its products may be computed in: "tf32", or "" for none."""
        return str(self.node.metadata_props.get(PRECISION, ""))

    @property
    def x(self) -> ir.Value:
        """The current input of `node`: an earlier rewrite may have replaced the original one."""
        x = self.node.inputs[0]
        assert x is not None
        return x

    @property
    def is_constant(self) -> bool:
        """Whether the weights are known at compile time."""
        return self.weight is not None

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the node's own weights."""
        s = self.shape
        outer = (s.c, s.o // s.group) if self.flip else (s.o, s.c // s.group)
        return (*outer, s.kh, s.kw)


def read_conv(node: ir.Node, model: ir.Model, machine: Machine) -> ConvNode | str:
    """The Conv or ConvTranspose with resolved attributes and constants, or the reason why it stays."""
    if model.opset_imports.get("", 1) < MINIMUM_OPSET:
        return f"the model's opset is older than {MINIMUM_OPSET}"
    x, w = node.inputs[0], node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    x_shape, y_shape, w_shape = dims(x), dims(node.outputs[0]), dims(w)
    weight, bias_array = array_of(w), array_of(bias)
    if not machine.packs and (weight is None or (bias is not None and bias_array is None)):
        return "weights or bias are not constant"
    if w_shape is None:
        return "its shapes are not static"
    if len(w_shape) != 4:
        lifted = "; run lift-rows first" if len(w_shape) == 3 else ""
        return f"it is {len(w_shape) - 2}-dimensional, not 2-dimensional{lifted}"
    if x is None or x_shape is None or y_shape is None:
        return "its shapes are not static"
    if 0 in (*x_shape, *y_shape):
        return "it computes nothing"
    if not is_among(x, machine.floats):
        return f"its type is {x.dtype.name if x.dtype else 'unknown'}, not {listed(machine.floats)}"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "auto_pad is set; run normalize first"
    if weight is not None and not np.isfinite(weight).all():
        return "its weights are not finite, which zero padding and transforms would spread"
    group = node.attributes.get_int("group", 1) or 1
    flip = node.op_type == "ConvTranspose"
    window = _transposed_window(node, x_shape, y_shape, w_shape) if flip else _window(node)
    if isinstance(window, str):
        return window
    if flip and weight is not None:
        weight, flip = _flipped(weight, group), False
    dtype = str(x.dtype.numpy()) if x.dtype is not None else ""
    (n, c, h, width), (_, o, oh, ow), (kh, kw) = x_shape, y_shape, w_shape[2:]
    shape = ConvShape(n, c, h, width, o, kh, kw, oh, ow, group, np.dtype(dtype).itemsize)
    if bias is None:
        bias_array = np.zeros(y_shape[1], dtype)
    return ConvNode(node, weight, bias_array, shape, *window, dtype, flip)


_Window = tuple[tuple[int, int], tuple[int, ...], tuple[int, int]]


def _window(node: ir.Node) -> _Window:
    """(strides, pads, dilations) of a Conv."""
    strides, dilations = ints(node, "strides", [1, 1]), ints(node, "dilations", [1, 1])
    return (strides[0], strides[1]), tuple(ints(node, "pads", [0, 0, 0, 0])), (dilations[0], dilations[1])


def _transposed_window(node: ir.Node, x: tuple[int, ...], y: tuple[int, ...], w: tuple[int, ...]) -> _Window | str:
    """(strides, pads, dilations) of the convolution that a ConvTranspose of stride 1 is, or why it is none.

    A tap that adds input q to output q + d k - p is, read from the output, the tap k' = K - 1 - k of a convolution
    with the pad d (K - 1) - p.
    """
    if any(stride != 1 for stride in ints(node, "strides", [1, 1])):
        return "a ConvTranspose with strides has no such algorithm; run split-transposed first"
    dilations, pads = ints(node, "dilations", [1, 1]), ints(node, "pads", [0, 0, 0, 0])
    begins = [d * (k - 1) - p for d, k, p in zip(dilations, w[2:], pads[:2], strict=True)]
    reach = [d * (k - 1) for d, k in zip(dilations, w[2:], strict=True)]
    ends = [o + r - i - b for o, r, i, b in zip(y[2:], reach, x[2:], begins, strict=True)]
    if min(*begins, *ends) < 0:
        return "it cuts more of the output than its kernel reaches"
    return (1, 1), (*begins, *ends), (dilations[0], dilations[1])


def _flipped(weight: NDArray[Any], group: int) -> NDArray[Any]:
    """Weights [C, O/group, kh, kw] of a ConvTranspose as those of a convolution, [O, C/group, kh, kw]."""
    channels, outputs, *kernel = weight.shape
    grouped = weight.reshape(group, channels // group, outputs, *kernel)[..., ::-1, ::-1]
    return np.ascontiguousarray(grouped.swapaxes(1, 2).reshape(group * outputs, channels // group, *kernel))
