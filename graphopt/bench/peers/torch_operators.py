"""Table from ONNX operators to functions of torch.

Each entry takes the node as an `Operator` and returns a function of its inputs' tensors. Operands such as shapes, axes
and pads must be constants.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from graphopt.bench.peers import torch_recurrent
from graphopt.errors import GraphoptError

Function = Callable[..., Any]
"""Tensors of the node's inputs (None where one is absent) -> the output, or a tuple of outputs."""


class UnsupportedError(GraphoptError):
    """An operator, or an attribute of one, that this module has no function for."""


@dataclass(frozen=True, slots=True)
class Operator:
    """A node for the table: attributes as Python values, and the inputs that are constant.

    `dtype` replaces float32.
    """

    kind: str
    name: str
    attributes: Mapping[str, Any]
    constants: tuple[Any, ...]
    outputs: int
    dtype: torch.dtype = torch.float32

    def ints(self, index: int, attribute: str, default: list[int] | None = None) -> list[int] | None:
        """Integers that are an input in newer operator sets and an attribute in older ones."""
        if attribute in self.attributes:
            return [int(number) for number in self.attributes[attribute]]
        if index >= len(self.constants) or self.constants[index] is False:
            return default
        if self.constants[index] is None:
            raise self.refusal(f"its input {index} is no constant")
        return [int(number) for number in np.asarray(self.constants[index]).reshape(-1)]

    def given(self, index: int, attribute: str) -> list[int]:
        """The required integers of `ints`.

        Raises:
            UnsupportedError: the node lacks them.
        """
        integers = self.ints(index, attribute)
        if integers is None:
            raise self.refusal(f"it lacks {attribute}")
        return integers

    def refusal(self, why: str) -> UnsupportedError:
        """The error of a node that has no function."""
        return UnsupportedError(f"the torch converter has no function for {self.kind} {self.name}: {why}")


def _plain(function: Function) -> Callable[[Operator], Function]:
    """The entry of an operator without attributes."""
    return lambda operator: function


def _window(operator: Operator, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, pads at the beginnings and at the ends."""
    if operator.attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise operator.refusal("auto_pad")
    pads = list(operator.attributes.get("pads", [0] * 2 * rank))
    strides = list(operator.attributes.get("strides", [1] * rank))
    return strides, list(operator.attributes.get("dilations", [1] * rank)), pads[:rank], pads[rank:]


def _sides(low: list[int], high: list[int]) -> list[int]:
    """Pads in the order of torch's `pad`: the last axis first."""
    return [pad for pair in zip(reversed(low), reversed(high), strict=True) for pad in pair]


def _conv(operator: Operator) -> Function:
    rank = len(operator.attributes["kernel_shape"]) if "kernel_shape" in operator.attributes else 2
    strides, dilations, low, high = _window(operator, rank)
    group = operator.attributes.get("group", 1)
    function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[rank]

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if low != high:
            return function(functional.pad(x, _sides(low, high)), w, b, strides, [0] * rank, dilations, group)
        return function(x, w, b, strides, low, dilations, group)

    return run


def _conv_transpose(operator: Operator) -> Function:
    rank = len(operator.attributes.get("kernel_shape", [0, 0]))
    strides, dilations, low, high = _window(operator, rank)
    extra = list(operator.attributes.get("output_padding", [0] * rank))
    if low != high or "output_shape" in operator.attributes or rank != 2:
        raise operator.refusal("uneven pads, output_shape or another rank than 2")
    group = operator.attributes.get("group", 1)
    return lambda x, w, b=None: torch.conv_transpose2d(x, w, b, strides, low, extra, group, dilations)


def _max_pool(operator: Operator) -> Function:
    kernel = list(operator.attributes["kernel_shape"])
    strides, dilations, low, high = _window(operator, len(kernel))
    ceil = bool(operator.attributes.get("ceil_mode", 0))
    if len(kernel) != 2 or operator.outputs != 1:
        raise operator.refusal("another rank than 2, or indices")

    def run(x: Tensor) -> Tensor:
        if low != high:
            x = functional.pad(x, _sides(low, high), value=-math.inf)
            return functional.max_pool2d(x, kernel, strides, 0, dilations, ceil)
        return functional.max_pool2d(x, kernel, strides, low, dilations, ceil)

    return run


def _average_pool(operator: Operator) -> Function:
    kernel = list(operator.attributes["kernel_shape"])
    strides, dilations, low, high = _window(operator, len(kernel))
    ceil, counted = bool(operator.attributes.get("ceil_mode", 0)), bool(operator.attributes.get("count_include_pad", 0))
    if len(kernel) != 2 or set(dilations) != {1} or (low != high and ceil):
        raise operator.refusal("uneven pads with ceil_mode, dilations or another rank than 2")
    if low == high:
        return lambda x: functional.avg_pool2d(x, kernel, strides, low, ceil, counted)

    def run(x: Tensor) -> Tensor:
        mean = functional.avg_pool2d(functional.pad(x, _sides(low, high)), kernel, strides)
        if counted:
            return mean
        inside = functional.pad(torch.ones_like(x[:1, :1]), _sides(low, high))
        return mean / functional.avg_pool2d(inside, kernel, strides)

    return run


def _gemm(operator: Operator) -> Function:
    get = operator.attributes.get
    alpha, beta, left, right = get("alpha", 1.0), get("beta", 1.0), get("transA", 0), get("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a, b = a.t() if left else a, b.t() if right else b
        return alpha * (a @ b) if c is None else torch.addmm(c, a, b, beta=beta, alpha=alpha)

    return run


def _norm(operator: Operator) -> Function:
    epsilon = operator.attributes.get("epsilon", 1e-5)
    if operator.attributes.get("training_mode", 0):
        raise operator.refusal("training_mode")
    return lambda x, scale, shift, mean, variance: functional.batch_norm(
        x, mean, variance, scale, shift, training=False, eps=epsilon
    )


def _layer_norm(operator: Operator) -> Function:
    axis, epsilon = operator.attributes.get("axis", -1), operator.attributes.get("epsilon", 1e-5)
    if operator.outputs != 1:
        raise operator.refusal("its mean and deviation are read")
    return lambda x, w, b=None: functional.layer_norm(x, x.shape[axis:], w, b, epsilon)


def _local_norm(operator: Operator) -> Function:
    get = operator.attributes.get
    size, alpha, beta, bias = operator.attributes["size"], get("alpha", 1e-4), get("beta", 0.75), get("bias", 1.0)
    return lambda x: functional.local_response_norm(x, size, alpha, beta, bias)


def _reshape(operator: Operator) -> Function:
    wanted = operator.given(1, "shape")
    copied = not operator.attributes.get("allowzero", 0)

    def run(x: Tensor, _: Tensor | None = None) -> Tensor:
        return x.reshape([x.shape[axis] if copied and size == 0 else size for axis, size in enumerate(wanted)])

    return run


def _flatten(operator: Operator) -> Function:
    axis = operator.attributes.get("axis", 1)
    return lambda x: x.reshape(math.prod(x.shape[:axis]), -1)


def _transpose(operator: Operator) -> Function:
    order = operator.attributes.get("perm")
    return lambda x: x.permute(*(order or reversed(range(x.dim()))))


def _unsqueeze(operator: Operator) -> Function:
    axes = operator.given(1, "axes")

    def run(x: Tensor, _: Tensor | None = None) -> Tensor:
        rank = x.dim() + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            x = x.unsqueeze(axis)
        return x

    return run


def _squeeze(operator: Operator) -> Function:
    axes = operator.ints(1, "axes")
    return lambda x, _=None: x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _concat(operator: Operator) -> Function:
    axis = operator.attributes["axis"]
    return lambda *parts: torch.cat(parts, axis)


def _split(operator: Operator) -> Function:
    axis, sizes = operator.attributes.get("axis", 0), operator.ints(1, "split")

    def run(x: Tensor, _: Tensor | None = None) -> tuple[Tensor, ...]:
        return torch.split(x, sizes or math.ceil(x.shape[axis] / operator.outputs), axis)

    return run


def _slice(operator: Operator) -> Function:
    starts, ends = operator.given(1, "starts"), operator.given(2, "ends")
    axes = operator.ints(3, "axes") or list(range(len(starts)))
    steps = operator.ints(4, "steps") or [1] * len(starts)
    if min(steps) < 1:
        raise operator.refusal("a negative step")

    def run(x: Tensor, *_: Tensor | None) -> Tensor:
        for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
            low, high, step = slice(start, end, step).indices(x.shape[axis])
            index = [slice(None)] * x.dim()
            index[axis] = slice(low, max(low, high), step)
            x = x[tuple(index)]
        return x

    return run


def _gather(operator: Operator) -> Function:
    axis = operator.attributes.get("axis", 0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        if axis == 0 and x.dim() == 2:
            return functional.embedding(torch.where(index < 0, index + len(x), index), x)
        place = axis % x.dim()
        flat = torch.where(index < 0, index + x.shape[place], index).reshape(-1)
        shape = (*x.shape[:place], *index.shape, *x.shape[place + 1 :])
        return x.index_select(place, flat).reshape(shape)

    return run


def _reduce_mean(operator: Operator) -> Function:
    axes, kept = operator.ints(1, "axes", []), bool(operator.attributes.get("keepdims", 1))
    if not axes and operator.attributes.get("noop_with_empty_axes", 0):
        return lambda x, _=None: x
    return lambda x, _=None: x.mean(tuple(axes or range(x.dim())), keepdim=kept)


def _softmax(operator: Operator) -> Function:
    axis = operator.attributes.get("axis", -1)
    return lambda x: torch.softmax(x, axis)


def _attention(operator: Operator) -> Function:
    scale = operator.attributes["scale"]
    return lambda q, k, v, mask=None: functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)


def _lstm(operator: Operator) -> Function:
    usual = {"hidden_size", "direction"}
    if operator.attributes.get("direction", "forward") == "reverse" or any(
        operator.attributes[name] not in (0, []) for name in operator.attributes if name not in usual
    ):
        raise operator.refusal("its direction, or an attribute that torch has not")
    if len(operator.constants) < 7 or not all(isinstance(weight, np.ndarray) for weight in operator.constants[3:]):
        raise operator.refusal("its weights are no constants, or it has sequence lengths or peepholes")
    return torch_recurrent.lstm(operator.attributes, operator.outputs)  # type: ignore[no-any-return]


def _gelu(operator: Operator) -> Function:
    approximate = operator.attributes.get("approximate", "none")
    return lambda x: functional.gelu(x, approximate=approximate)


def _clip(operator: Operator) -> Function:
    limits = [operator.attributes.get("min"), operator.attributes.get("max")]
    for place in (1, 2):
        if place < len(operator.constants) and operator.constants[place] is not False:
            if operator.constants[place] is None:
                raise operator.refusal("its limits are no constants")
            limits[place - 1] = operator.constants[place].item()
    return lambda x, *_: torch.clamp(x, *limits)


def _cast(operator: Operator) -> Function:
    import onnx

    dtype = getattr(torch, str(onnx.helper.tensor_dtype_to_np_dtype(operator.attributes["to"])), None)
    if dtype is None:
        raise operator.refusal("its dtype")
    wanted = operator.dtype if dtype == torch.float32 else dtype
    return lambda x: x.to(wanted)


def _expand(operator: Operator) -> Function:
    shape = operator.given(1, "shape")
    return lambda x, _: x.expand(np.broadcast_shapes(x.shape, tuple(shape)))


def _trilu(operator: Operator) -> Function:
    upper = operator.attributes.get("upper", 1)
    (diagonal,) = operator.ints(1, "k", [0]) or [0]
    return lambda x, _=None: torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _sum(first: Tensor, *rest: Tensor) -> Tensor:
    for term in rest:
        first = first + term
    return first


TABLE: Mapping[str, Callable[[Operator], Function]] = {
    "Add": _plain(torch.add),
    "Attention": _attention,
    "AttentionMasked": _attention,
    "AveragePool": _average_pool,
    "BatchNormalization": _norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Div": _plain(_divide),
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": _plain(lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)),
    "Greater": _plain(torch.gt),
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "LRN": _local_norm,
    "LSTM": _lstm,
    "LayerNormalization": _layer_norm,
    "Less": _plain(torch.lt),
    "MatMul": _plain(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Pow": _plain(torch.pow),
    "ReduceMean": _reduce_mean,
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _softmax,
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Sum": _plain(_sum),
    "Tanh": _plain(torch.tanh),
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}
"""ONNX operator -> builder of the torch function of a node."""
