"""Which axes of the operands and the result of arithmetic carry the same channels."""

from __future__ import annotations

import math

import onnx_ir as ir

from graphopt.graph.constness import is_constant
from graphopt.graph.edit import array_of, dims, ints
from graphopt.passes.sparse.carriers import Carrier, Finder, is_static, is_variable

ELEMENTWISE = frozenset(
    ("Abs", "Add", "And", "Cast", "CastLike", "Ceil", "Clip", "Cos", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp",
     "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
     "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu",
     "Pow", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub",
     "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor")
)  # fmt: skip
"""Operators whose result at a place depends on their operands at that place, which broadcast."""


def elementwise(finder: Finder, node: ir.Node) -> bool:
    """The result carries what its operands carry; constants follow, unless they are the same for all channels."""
    if not is_static(node) or any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return False
    y = node.outputs[0]
    shape = dims(y) or ()
    operands = [(index, value, dims(value) or ()) for index, value in enumerate(node.inputs) if value is not None]
    if node.op_type == "CastLike":
        operands = operands[:1]
    for _, value, own in operands:
        for carrier in finder.of(value):
            finder.join(y, [axis + len(shape) - len(own) for axis in carrier.axes], carrier.places)
    for carrier in finder.of(y):
        for index, value, own in operands:
            shift = len(shape) - len(own)
            varies = [axis for axis in carrier.axes if axis >= shift and own[axis - shift] != 1]
            if not varies or finder.on(value, varies[0] - shift) is not None:
                continue
            if is_constant(value) and len(varies) == len(carrier.axes):
                finder.operand(node, index, [axis - shift for axis in carrier.axes], carrier)
            else:
                finder.apart(y, carrier, varies)
    return True


def linear(finder: Finder, node: ir.Node) -> bool:
    """A product with a constant matrix: inputs along the last axis of x, outputs along that of y."""
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    if x is None or not is_static(node):
        return False
    if is_variable(x) and is_variable(w) and node.op_type == "MatMul":
        return _product_of_variables(finder, node)
    shape, weight, out = dims(x) or (), dims(w) or (), dims(y) or ()
    if not is_constant(w) or is_constant(x) or len(weight) != 2 or len(shape) < 2 or len(out) != len(shape):
        return False
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    own = dims(bias) or ()
    if bias is not None and (not is_constant(bias) or (len(own) > 1 and math.prod(own[:-1]) != 1)):
        return False
    if node.attributes.get_int("transA", 0) == 1:
        return False
    transposed = bool(node.attributes.get_int("transB", 0)) if node.op_type == "Gemm" else False
    last = len(shape) - 1
    for carrier in finder.of(x):
        if last not in carrier.axes:
            finder.carry(y, carrier.axes, carrier.places)
        elif carrier.axes == (last,):
            finder.operand(node, 1, [1 if transposed else 0], carrier, consumes=True)
        else:
            finder.fix(carrier.places)
    produced = finder.carry(y, [last])
    finder.operand(node, 1, [0 if transposed else 1], produced, produces=True)
    if own and own[-1] == out[-1]:
        finder.operand(node, 2, [len(own) - 1], produced)
    return True


def _product_of_variables(finder: Finder, node: ir.Node) -> bool:
    """Both operands of a sum are permuted alike, in each of the products that are computed side by side."""
    a, b, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert a is not None
    assert b is not None
    left, right = dims(a) or (), dims(b) or ()
    rank = len(left)
    if rank < 2 or len(right) != rank or left[:-2] != right[:-2]:
        return False
    side = range(rank - 2)
    _contract(finder, (a, rank - 1), (b, rank - 2))
    for value, summed in ((a, rank - 1), (b, rank - 2)):
        for carrier in finder.of(value):
            if summed not in carrier.axes:
                finder.join(y, carrier.axes, carrier.places)
                finder.apart(value, carrier, side)
    return True


def _contract(finder: Finder, a: tuple[ir.Value, int], b: tuple[ir.Value, int]) -> None:
    """The result sums over an axis of two values, for each element of the leading axes, which they share."""
    (first, axis), (second, other) = a, b
    mine, theirs = finder.on(first, axis), finder.on(second, other)
    if mine is None or theirs is None:
        for carrier in (mine, theirs):
            if carrier is not None:
                finder.fix(carrier.places)
        return
    shape = dims(first) or ()
    beside = {each for each in mine.axes if each != axis}
    mapped = Carrier(tuple(axis if each == other else each for each in theirs.axes), theirs.places)
    alike = sorted(mapped.axes) == sorted(mine.axes) and len(mapped.places) == len(mine.places)
    if not alike or not beside <= set(range(len(shape) - 2)):
        finder.fix(mine.places)
        finder.fix(theirs.places)
        return
    finder.same(mine.places, mapped.along(mine.axes, shape))
    finder.apart(first, mine, beside)


def attention(finder: Finder, node: ir.Node) -> bool:
    """q and k [B, H, S, D] are permuted alike along D, v as the result, each head for itself."""
    if not is_static(node):
        return False
    q, k, v = node.inputs[:3]
    assert q is not None
    assert k is not None
    assert v is not None
    y = node.outputs[0]
    _contract(finder, (q, 3), (k, 3))
    for value in (q, k):
        for carrier in finder.of(value):
            if 3 not in carrier.axes:
                finder.fix(carrier.places)
    for carrier in finder.of(v):
        if 2 in carrier.axes or 3 not in carrier.axes:
            finder.fix(carrier.places)
            continue
        finder.carry(y, carrier.axes, carrier.places)
        finder.apart(v, carrier, (0, 1))
    finder.refuse(*node.inputs[3:])
    return True


def conv(finder: Finder, node: ir.Node) -> bool:
    """Channels along axis 1; those of a convolution with groups stay in their group."""
    x, w, y = node.inputs[0], node.inputs[1], node.outputs[0]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or not is_static(node) or not is_constant(w) or (bias is not None and not is_constant(bias)):
        return False
    shape, weight, out = dims(x) or (), dims(w) or (), dims(y) or ()
    transposed = node.op_type == "ConvTranspose"
    group = node.attributes.get_int("group", 1) or 1
    inputs = finder.on(x, 1)
    for carrier in finder.of(x):
        if carrier.axes != (1,):
            finder.fix(carrier.places)
    if inputs is not None and inputs.axes != (1,):
        inputs = None
    if group == shape[1] == out[1] and weight[1] == 1 and inputs is not None:
        produced = finder.carry(y, [1], inputs.places)
        finder.operand(node, 1, [0], produced)
    else:
        produced = finder.carry(y, [1])
        among = (0,) if group > 1 else ()
        view = (group, weight[0] // group, *weight[1:]) if among else weight
        ends = (*among, len(among)), (*among, len(among) + 1)
        reads, writes = ends if transposed else ends[::-1]
        sparse = group == 1 and not transposed
        if inputs is not None:
            finder.operand(node, 1, reads, inputs, view=view, consumes=sparse)
            _in_groups(finder, inputs, group)
        finder.operand(node, 1, writes, produced, view=view, produces=sparse)
        if produced is not None:
            _in_groups(finder, produced, group)
    if bias is not None:
        finder.operand(node, 2, [0], produced)
    return True


def _in_groups(finder: Finder, carrier: Carrier, group: int) -> None:
    """Channels stay in their group of neighbours."""
    if group > 1:
        for places in carrier.places.reshape(group, -1):
            finder.together(places)


def pool(finder: Finder, node: ir.Node) -> bool:
    """Pools keep the first two axes."""
    if not is_static(node) or len(node.outputs) > 1:
        return False
    return keep(finder, node, {0, 1})


def keep(finder: Finder, node: ir.Node, axes: set[int]) -> bool:
    """The result carries what the first operand carries along `axes`; carriers of other axes keep their places."""
    x, y = node.inputs[0], node.outputs[0]
    for carrier in finder.of(x):
        if set(carrier.axes) <= axes:
            finder.carry(y, carrier.axes, carrier.places)
        else:
            finder.fix(carrier.places)
    return True


def normalization(finder: Finder, node: ir.Node) -> bool:
    """Axis 1 in BatchNormalization and InstanceNormalization, the last in the others: a number for each channel."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not is_static(node) or any(value.uses() for value in node.outputs[1:]):
        return False
    shape = dims(x) or ()
    channel = 1
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        channel = len(shape) - 1
        if (node.attributes.get_int("axis", -1) or 0) % len(shape) != channel:
            return False
    constants = [(index, value) for index, value in enumerate(node.inputs) if index and value is not None]
    if any(not is_constant(value) or dims(value) != (shape[channel],) for _, value in constants):
        return False
    for carrier in finder.of(x):
        if channel in carrier.axes and carrier.axes != (channel,):
            finder.fix(carrier.places)
        else:
            finder.carry(y, carrier.axes, carrier.places)
    numbers = finder.on(y, channel)
    for index, _ in constants:
        finder.operand(node, index, [0], numbers)
    return True


def softmax(finder: Finder, node: ir.Node) -> bool:
    """A sum over one axis for each element of the others."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not is_static(node):
        return False
    rank = len(dims(x) or ())
    axis = (node.attributes.get_int("axis", -1) or 0) % rank
    for carrier in finder.of(x):
        finder.carry(y, carrier.axes, carrier.places)
        if axis in carrier.axes:
            finder.apart(x, carrier, set(carrier.axes) - {axis})
    return True


def reduce(finder: Finder, node: ir.Node) -> bool:
    """Sums and the like do not depend on the order of what they reduce; other axes stay."""
    x, y = node.inputs[0], node.outputs[0]
    if x is None or not is_static(node):
        return False
    rank = len(dims(x) or ())
    axes = node.inputs[1] if len(node.inputs) > 1 else None
    given = array_of(axes)
    if axes is not None and given is None:
        return False
    listed = ints(node, "axes", []) if given is None else given.reshape(-1).tolist()
    if not listed and node.attributes.get_int("noop_with_empty_axes", 0) == 1:
        return False
    reduced = {axis % rank for axis in listed} or set(range(rank))
    kept = [axis for axis in range(rank) if axis not in reduced]
    stays = bool(node.attributes.get_int("keepdims", 1))
    place = {axis: axis if stays else number for number, axis in enumerate(kept)}
    for carrier in finder.of(x):
        if not set(carrier.axes) & reduced:
            finder.carry(y, [place[axis] for axis in carrier.axes], carrier.places)
        elif set(carrier.axes) - reduced:
            finder.apart(x, carrier, kept)
    return True


def extents(finder: Finder, node: ir.Node) -> bool:
    """Extents do not depend on the order of channels."""
    del finder, node
    return True
