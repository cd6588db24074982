"""Which standard operators have a blocked form, and how to emit it: shared by select-conv and layout."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt import ops
from graphopt.graph.edit import Editor, array_of, dims, ints, is_custom, is_op
from graphopt.ops.layout import blocks, pad_to_blocks
from graphopt.passes.layout.form import Form
from graphopt.passes.layout.training import channel_sum_form, custom_form, custom_twin, expand_form

# These keep every finite number in a padded lane finite, so that zero weights still cancel it. Log, Sqrt, Pow and
# Reciprocal do not, and a division by a padded lane divides by zero.
UNARY = frozenset({
    "Abs", "Ceil", "Celu", "Clip", "Cos", "Elu", "Erf", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
    "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
})  # fmt: skip
SINGLE = UNARY | {"Cast"}
"""Elementwise operators of one tensor."""
BINARY = frozenset({"Add", "Sub", "Mul", "Div", "Max", "Min", "PRelu"})
POOLS = frozenset({"MaxPool", "AveragePool", "GlobalAveragePool"})
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})
LOGIC = frozenset({"And", "IsNaN", "Not", "Or"})
ELEMENTWISE = SINGLE | BINARY | COMPARISONS | LOGIC | {"Where"}
"""Operators that are computed in the kernel of one of their operands."""


def is_among(value: ir.Value, floats: Collection[str]) -> bool:
    """Whether the dtype of `value` is one of `floats`, given by numpy's names."""
    return value.dtype is not None and value.dtype.is_floating_point() and str(value.dtype.numpy()) in floats


def listed(floats: Sequence[str]) -> str:
    """The dtypes in a sentence: "a, b or c"."""
    *most, last = floats
    return f"{', '.join(most)} or {last}" if most else last


def form_of(node: ir.Node, block: int, floats: Sequence[str]) -> Form | str:
    """The blocked form of `node` for one of the dtypes `floats`, or the reason why it has none, in a sentence."""
    if node.domain != "":
        form = custom_form(node, block)
        return form if isinstance(form, str) or _are_among(node, form, floats) else f"it is not of {listed(floats)}"
    if node.op_type == "ReduceSum":
        return channel_sum_form(node) if is_among(node.outputs[0], floats) else f"the output is not {listed(floats)}"
    y = dims(node.outputs[0]) if node.outputs else None
    if y is None or len(y) != 4:
        return "the output is not a tensor of four static extents"
    if node.op_type in COMPARISONS | LOGIC:
        return _comparison(node, y, floats)
    if not is_among(node.outputs[0], floats):
        return f"the output is not {listed(floats)}"
    if node.op_type in UNARY:
        return Form((0,))
    if node.op_type == "Cast":
        cast = node.inputs[0]
        return Form((0,)) if cast is not None and is_among(cast, floats) else f"the input is not {listed(floats)}"
    if node.op_type in BINARY or node.op_type == "Where":
        return _elementwise(node, y)
    if node.op_type == "Concat":
        return _concat(node, block)
    if node.op_type in POOLS:
        return _pool(node)
    if node.op_type == "LRN":
        return Form((0,))
    if node.op_type == "Pad":
        return _pad(node)
    return expand_form(node) if node.op_type == "Expand" else f"{node.op_type} has no blocked form"


def has_layout(value: ir.Value, floats: Collection[str]) -> bool:
    """Whether `value` may be blocked: four static extents of one of `floats`, of truth values or of bytes."""
    shape = dims(value)
    small = value.dtype in (ir.DataType.BOOL, ir.DataType.UINT8)
    return shape is not None and len(shape) == 4 and (small or is_among(value, floats))


def _are_among(node: ir.Node, form: Form, floats: Sequence[str]) -> bool:
    values = [node.inputs[index] for index in form.data]
    return all(value is not None and has_layout(value, floats) for value in values)


def _comparison(node: ir.Node, y: tuple[int, ...], floats: Sequence[str]) -> Form | str:
    operands = [value for value in node.inputs if value is not None]
    if any(value.dtype != ir.DataType.BOOL and not is_among(value, floats) for value in operands):
        return f"an input is neither {listed(floats)} nor of truth values"
    return _elementwise(node, y)


def _elementwise(node: ir.Node, y: tuple[int, ...]) -> Form | str:
    data, constants = [], []
    if len(node.inputs) > 2 and node.op_type != "Where":
        return "only two inputs have a blocked form"
    for index, value in enumerate(node.inputs):
        array = array_of(value)
        shape = dims(value)
        if shape is None:
            return f"input {index} has no static shape"
        if array is not None:
            if len(shape) > 4:
                return f"constant {index} has more than four extents"
            if math.prod(shape) > 1:
                constants.append(index)
        elif math.prod(shape) > 1 or len(shape) == 4:
            if len(shape) != 4 or shape[1] != y[1]:
                return f"input {index} has not the channels of the output"
            data.append(index)
    if not data:
        return "no input is a tensor of four static extents"
    if node.op_type in ("Div", "PRelu") and 1 in data:
        return f"the second input of {node.op_type} is no constant: padded lanes would not stay finite"
    return Form(tuple(data), tuple(constants))


def _concat(node: ir.Node, block: int) -> Form | str:
    if node.attributes.get_int("axis", 1) not in (1, -3):
        return "only a Concat of channels has a blocked form"
    shapes = [dims(value) for value in node.inputs]
    if any(shape is None or array_of(value) is not None for shape, value in zip(shapes, node.inputs, strict=True)):
        return "an input is constant or has no static shape"
    if any(shape is not None and shape[1] % block for shape in shapes[:-1]):
        return f"an input before the last has channels that are no multiple of {block}"
    return Form(tuple(range(len(shapes))))


def _pool(node: ir.Node) -> Form | str:
    if len([value for value in node.outputs if value.uses() or value.is_graph_output()]) > 1:
        return "the indices of the maxima are used"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "auto_pad is set; run normalize first"
    if node.op_type == "AveragePool" and any(d != 1 for d in ints(node, "dilations", [1, 1])):
        return "a dilated AveragePool has no blocked form"
    return Form((0,))


def _pad(node: ir.Node) -> Form | str:
    pads = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if node.attributes.get_string("mode", "constant") != "constant" or pads is None or len(node.inputs) > 3:
        return "only a Pad with constant pads and a constant value has a blocked form"
    if len(node.inputs) > 2 and node.inputs[2] is not None and array_of(node.inputs[2]) is None:
        return "the value of the Pad is no constant"
    if pads.size != 8 or any(pads.reshape(2, 4)[:, :2].reshape(-1)):
        return "the Pad changes batch or channels"
    return Form((0,))


def pack_planar(array: NDArray[Any], block: int, fill: float) -> NDArray[Any]:
    """A constant that broadcasts against [N, C, H, W] as one that broadcasts against [N, CB, H, W, block].

    The padded lanes hold `fill`: 0, or 1 for a divisor.
    """
    planar = array.reshape((1,) * (4 - array.ndim) + array.shape)
    if planar.shape[1] == 1:
        return planar[..., None]
    n, c, h, w = planar.shape
    padded = pad_to_blocks(planar, 1, block).copy()
    padded[:, c:] = fill
    return padded.reshape(n, -1, block, h, w).transpose(0, 1, 3, 4, 2)


def to_blocked_form(
    editor: Editor, node: ir.Node, form: Form, inputs: Sequence[ir.Value], block: int
) -> list[ir.Value]:
    """Insert the blocked twin of `node` before it and return its outputs; `inputs` are the blocked `form.data`."""
    arguments = list(node.inputs)
    for index, value in zip(form.data, inputs, strict=True):
        arguments[index] = value
    for index in form.constants:
        array = array_of(node.inputs[index])
        assert array is not None
        fill = 1.0 if node.op_type == "Div" and index == 1 else 0.0
        arguments[index] = editor.constant(pack_planar(array, block, fill), f"{node.name}.packed")
    op_type, domain, attributes = _twin(node)
    if is_op(node, "Pad"):
        pads = array_of(node.inputs[1])
        assert pads is not None
        arguments[1] = editor.constant(np.insert(pads, (4, 8), 0), f"{node.name}.pads")
    shapes = [_twin_shape(value, index in form.outputs, block) for index, value in enumerate(node.outputs)]
    if is_op(node, "Expand"):
        arguments[1] = editor.constant(np.array(shapes[0], np.int64), f"{node.name}.shape")
    first = editor.insert(
        node,
        op_type,
        [value for index, value in enumerate(arguments) if index not in form.dropped],
        attributes,
        shape=shapes[0],
        dtype=node.outputs[0].dtype,
        name=f"{node.name}.blocked",
        output=f"{node.outputs[0].name}.blocked",
        origin=[node],
        domain=domain,
    )
    twin = first.producer()
    assert twin is not None
    if len(node.outputs) > 1 and node.domain == ops.DOMAIN:
        twin.resize_outputs(len(node.outputs))
        for old, new, shape in zip(node.outputs[1:], twin.outputs[1:], shapes[1:], strict=True):
            new.name = editor.fresh(f"{old.name}.blocked")
            new.type, new.shape = old.type, None if shape is None else ir.Shape(shape)
    return list(twin.outputs)


def _twin_shape(value: ir.Value, blocked: bool, block: int) -> tuple[int, ...] | None:
    shape = dims(value)
    if not blocked or shape is None:
        return shape
    n, c, h, w = shape
    return n, blocks(c, block), h, w, block


def _twin(node: ir.Node) -> tuple[str, str, dict[str, Any]]:
    """(operator, domain, attributes) of the blocked twin."""
    if node.domain == ops.DOMAIN or is_op(node, "ReduceSum"):
        op_type, custom = custom_twin(node)
        return op_type, ops.DOMAIN, custom
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    if node.op_type == "Concat":
        given["axis"] = 1  # which a negative one would not name among five axes
    if node.op_type not in POOLS and node.op_type != "LRN":
        return node.op_type, "", given
    if node.op_type == "LRN":
        defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}
        channels = (dims(node.outputs[0]) or ())[1]
        return "LRNBlocked", ops.DOMAIN, {"channels": channels, **defaults, **given}
    if node.op_type == "GlobalAveragePool":
        return "GlobalAveragePoolBlocked", ops.DOMAIN, {}
    attributes: dict[str, Any] = {
        "kernel_shape": ints(node, "kernel_shape", []),
        "strides": ints(node, "strides", [1, 1]),
        "pads": ints(node, "pads", [0, 0, 0, 0]),
        "ceil_mode": node.attributes.get_int("ceil_mode", 0),
    }
    if node.op_type == "MaxPool":
        attributes["dilations"] = ints(node, "dilations", [1, 1])
    else:
        attributes["count_include_pad"] = node.attributes.get_int("count_include_pad", 0)
    return f"{node.op_type}Blocked", ops.DOMAIN, attributes


def padded_bytes(value: ir.Value, block: int) -> int:
    """Bytes of a tensor [N, C, H, W] in the blocked layout, padding included."""
    shape = dims(value)
    if shape is None or len(shape) != 4 or value.dtype is None:
        return 0
    n, c, h, w = shape
    return int(n * blocks(c, block) * block * h * w * value.dtype.itemsize)


def border(node: ir.Node, block: int) -> bool:
    """Whether `node` converts between the planar layout and the blocked one of this block size."""
    if is_custom(node, "ToBlocked"):
        return node.attributes.get_int("block", 0) == block
    if is_custom(node, "FromBlocked"):
        shape = dims(node.inputs[0])
        return shape is not None and shape[4] == block
    return False
