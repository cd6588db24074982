"""How the labels of channels pass through each operator (`axes`)."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import ints
from graphopt.passes.prune.axes import Extents, Finder, Labels, Operand, Rule, joined, regroup, starts
from graphopt.passes.prune.layers import numbers
from graphopt.passes.sparse.channel_rules import ELEMENTWISE


def _elementwise(finder: Finder, node: ir.Node) -> bool:
    if any(value.uses() for value in node.outputs[1:]):
        return False
    y = node.outputs[0]
    shape = finder.dims(y) or ()
    found: list[list[Labels | None]] = [[] for _ in shape]
    constants = []
    operands = node.inputs[:1] if node.op_type == "CastLike" else node.inputs  # its second one gives a type alone
    for index, value in enumerate(operands):
        if value is None:
            continue
        array = numbers(value)
        own = (finder.dims(value) or ()) if array is None else array.shape
        labels = finder.of(value)
        for axis, extent in enumerate(own):
            at = axis + len(shape) - len(own)
            if extent != shape[at] or extent == 1:
                continue  # broadcast: the same for all channels
            if array is None:
                found[at].append(labels[axis])
            else:
                constants.append((index, axis, at))
    labels = [finder.unite(each) for each in found]
    finder.give(y, labels)
    for index, axis, at in constants:
        if (along := labels[at]) is not None:
            finder.operands.append(Operand(node, index, axis, along))
    return True


def _linear(finder: Finder, node: ir.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    weight = numbers(node.inputs[1])
    if x is None or weight is None or weight.ndim != 2 or numbers(x) is not None:
        return False
    labels = finder.of(x)
    if len(labels) < 2 or node.attributes.get_int("transA", 0) == 1:
        return False
    turned = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    outputs = finder.fresh(weight.shape[0 if turned else 1])
    if labels[-1] is not None:
        finder.operands.append(Operand(node, 1, 1 if turned else 0, labels[-1], reads=True))
    if outputs is not None:
        finder.operands.append(Operand(node, 1, 0 if turned else 1, outputs, produces=True))
    finder.give(y, [*labels[:-1], outputs])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is not None and outputs is not None:
        array = numbers(bias)
        if array is None:
            finder.fix(outputs)
            finder.fix_all(bias)
        elif array.ndim and array.shape[-1] == len(outputs):
            finder.operands.append(Operand(node, 2, array.ndim - 1, outputs))
    if bias is not None and (array := numbers(bias)) is not None and array.ndim > 1 and array.shape[0] > 1:
        finder.fix(labels[0])
    return True


def _conv(finder: Finder, node: ir.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    weight = numbers(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or weight is None or numbers(x) is not None or (bias is not None and numbers(bias) is None):
        return False
    labels = finder.of(x)
    group = int(node.attributes.get_int("group", 1) or 1)
    outputs: Labels | None
    if group == 1:
        if labels[1] is not None:
            finder.operands.append(Operand(node, 1, 1, labels[1], reads=True))
        outputs = finder.fresh(weight.shape[0])
        if outputs is not None:
            finder.operands.append(Operand(node, 1, 0, outputs, produces=True))
    elif weight.shape[1] == 1 and labels[1] is not None and group == len(labels[1]):
        outputs = np.repeat(labels[1], weight.shape[0] // group)
        finder.operands.append(Operand(node, 1, 0, outputs))
        finder.extents.append(Extents(node, "group", 0, labels[1]))
    else:
        return False
    if bias is not None and outputs is not None:
        finder.operands.append(Operand(node, 2, 0, outputs))
    finder.fix(*labels[2:])
    finder.give(y, [labels[0], outputs, *[None] * (len(labels) - 2)])
    return True


def _conv_transpose(finder: Finder, node: ir.Node) -> bool:
    x, weight = node.inputs[0], numbers(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if x is None or weight is None or (node.attributes.get_int("group", 1) or 1) != 1:
        return False
    if bias is not None and numbers(bias) is None:
        return False
    labels, outputs = finder.of(x), finder.fresh(weight.shape[1])
    if labels[1] is not None:
        finder.operands.append(Operand(node, 1, 0, labels[1], reads=True))
    if outputs is not None:
        finder.operands.append(Operand(node, 1, 1, outputs, produces=True))
        if bias is not None:
            finder.operands.append(Operand(node, 2, 0, outputs))
    finder.fix(*labels[2:])
    finder.give(node.outputs[0], [labels[0], outputs, *[None] * (len(labels) - 2)])
    return True


def _planes(finder: Finder, node: ir.Node) -> bool:
    """Batch and channels stay, planes change their extents."""
    labels = finder.of(node.inputs[0])
    if len(labels) < 3 or any(value.uses() for value in node.outputs[1:]):
        return False
    finder.fix(*labels[2:])
    finder.give(node.outputs[0], [*labels[:2], *[None] * (len(labels) - 2)])
    return True


def _resize(finder: Finder, node: ir.Node) -> bool:
    """By factors; target sizes would count channels, and a cropped region may move them."""
    if node.attributes.get_string("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        return False
    sizes = node.inputs[3] if len(node.inputs) > 3 else None
    x, y = finder.dims(node.inputs[0]), finder.dims(node.outputs[0])
    return sizes is None and x is not None and y is not None and x[:2] == y[:2] and _planes(finder, node)


def _pad(finder: Finder, node: ir.Node) -> bool:
    """Axes that are padded or cropped are fixed, also where one does as much as the other and the extent stays."""
    labels = finder.of(node.inputs[0])
    given = numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 3 or (len(node.inputs) > 1 and given is None):
        return False
    pads = ints(node, "pads", ()) if given is None else [int(pad) for pad in given.reshape(-1)]
    if len(pads) != 2 * len(labels):
        return False
    moved = [any(pads[axis :: len(labels)]) for axis in range(len(labels))]
    finder.fix(*(own for own, moves in zip(labels, moved, strict=True) if moves))
    finder.give(node.outputs[0], [None if moves else own for own, moves in zip(labels, moved, strict=True)])
    return True


def _batch_normalization(finder: Finder, node: ir.Node) -> bool:
    labels = finder.of(node.inputs[0])
    if len(labels) < 2 or any(value.uses() for value in node.outputs[1:]):
        return False
    arrays = [numbers(value) for value in node.inputs[1:]]
    if any(array is None or array.ndim != 1 for array in arrays):
        return False
    if (own := labels[1]) is not None:
        finder.operands += [Operand(node, index, 0, own) for index in range(1, len(node.inputs))]
    if node.op_type == "InstanceNormalization":
        finder.fix(*labels[2:])
    finder.give(node.outputs[0], labels)
    return True


def _along(finder: Finder, node: ir.Node) -> bool:
    """A Softmax or a LayerNormalization looks at all places of its axes; before opset 13 of all axes from one on."""
    labels = finder.of(node.inputs[0])
    if not labels or any(value.uses() for value in node.outputs[1:]):
        return False
    axis = node.attributes.get_int("axis", None)
    axis = (1 if _old_softmax(node) else -1) if axis is None else axis
    axis %= len(labels)
    alone = node.op_type in ("Softmax", "LogSoftmax", "Hardmax") and not _old_softmax(node)
    mixed = [at == axis or (at > axis and not alone) for at in range(len(labels))]
    finder.fix(*(own for own, mixes in zip(labels, mixed, strict=True) if mixes))
    finder.give(node.outputs[0], [None if mixes else own for own, mixes in zip(labels, mixed, strict=True)])
    return True


def _old_softmax(node: ir.Node) -> bool:
    graph = node.graph
    version = node.version or (graph.opset_imports.get("", 20) if isinstance(graph, ir.Graph) else 20)
    return node.op_type != "LayerNormalization" and version < 13


def _reduce(finder: Finder, node: ir.Node) -> bool:
    """Reduced axes are fixed, the others stay."""
    labels = finder.of(node.inputs[0])
    given = numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    if len(node.inputs) > 1 and node.inputs[1] is not None and given is None:
        return False
    listed = ints(node, "axes", ()) if given is None else [int(axis) for axis in given.reshape(-1)]
    if node.op_type in ("ArgMax", "ArgMin"):
        listed = [node.attributes.get_int("axis", 0) or 0]
    axes = {axis % len(labels) for axis in listed} if listed else set(range(len(labels)))
    finder.fix(*(labels[axis] for axis in axes))
    kept = bool(node.attributes.get_int("keepdims", 1))
    left = [None if axis in axes else own for axis, own in enumerate(labels) if kept or axis not in axes]
    finder.give(node.outputs[0], left)
    return len(left) == len(finder.dims(node.outputs[0]) or ())


def _transpose(finder: Finder, node: ir.Node) -> bool:
    labels = finder.of(node.inputs[0])
    order = ints(node, "perm", list(range(len(labels)))[::-1])
    finder.give(node.outputs[0], [labels[axis] for axis in order])
    return True


def _reshape(finder: Finder, node: ir.Node) -> bool:
    x, y = node.inputs[0], node.outputs[0]
    shape, out = finder.dims(x), finder.dims(y)
    if shape is None or out is None or 0 in shape:
        return False
    before = finder.of(x)
    labels = regroup(finder, before, shape, out)
    if node.op_type == "Reshape":
        target = _target(node, len(out))
        if node.attributes.get_int("allowzero", 0) and 0 in target:
            return False
        for place, own in enumerate(labels):
            if own is None:
                continue
            copied = target[place] == 0 and numbers(node.inputs[1]) is not None
            if target[place] is None or (copied and (place >= len(before) or not _same(before[place], own))):
                finder.fix(own)
            elif target[place] == out[place]:
                if numbers(node.inputs[1]) is None:
                    finder.fix(own)
                finder.extents.append(Extents(node, "reshape", place, own))
    finder.give(y, labels)
    return True


def _same(a: Labels | None, b: Labels) -> bool:
    return a is not None and np.array_equal(a, b)


def _target(node: ir.Node, rank: int) -> list[int | None]:
    """What a Reshape says about each axis: a size, 0 or -1; 0 also where the size is computed from other shapes."""
    given = numbers(node.inputs[1]) if len(node.inputs) > 1 else None
    if given is not None:
        return [int(size) for size in given.reshape(-1)]
    producer = node.inputs[1].producer() if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if producer is None or producer.op_type != "Concat":
        return [None] * rank
    sizes: list[int | None] = []
    for part in producer.inputs:
        array = numbers(part)
        sizes += [0] if array is None else [int(size) for size in array.reshape(-1)]
    return sizes if len(sizes) == rank else [None] * rank


def _concat(finder: Finder, node: ir.Node) -> bool:
    shapes = [finder.dims(value) for value in node.inputs]
    rank = len(finder.dims(node.outputs[0]) or ())
    axis = (node.attributes.get_int("axis", 0) or 0) % max(rank, 1)
    if any(numbers(value) is not None for value in node.inputs) or not rank:
        return False
    labels = [finder.of(value) for value in node.inputs]
    result = [
        joined(finder, [(own[at], (shape or ())[at]) for own, shape in zip(labels, shapes, strict=True)])
        if at == axis
        else finder.unite([own[at] for own in labels])
        for at in range(rank)
    ]
    finder.give(node.outputs[0], result)
    return True


def _split(finder: Finder, node: ir.Node) -> bool:
    labels = finder.of(node.inputs[0])
    axis = (node.attributes.get_int("axis", 0) or 0) % len(labels)
    along = labels[axis]
    sized = len(node.inputs) > 1 and node.inputs[1] is not None
    if sized and numbers(node.inputs[1]) is None:
        return False
    extents = [(finder.dims(value) or ())[axis : axis + 1] for value in node.outputs]
    if any(not extent for extent in extents):
        return False
    for place, (start, end) in enumerate(starts([extent[0] for extent in extents])):
        own = None if along is None else along[start:end]
        if own is not None:
            if len(own) < 2:
                finder.fix(own)
            finder.extents.append(Extents(node, "split", place, own))
        finder.give(node.outputs[place], [own if at == axis else each for at, each in enumerate(labels)])
    return True


def _slice(finder: Finder, node: ir.Node) -> bool:
    """Axes that are cut are fixed."""
    x, y = finder.dims(node.inputs[0]), finder.dims(node.outputs[0])
    labels = finder.of(node.inputs[0])
    steps = numbers(node.inputs[4]) if len(node.inputs) > 4 else None
    if x is None or y is None or (len(node.inputs) > 4 and (steps is None or (steps != 1).any())):
        return False
    finder.fix(*(own for own, before, after in zip(labels, x, y, strict=True) if before != after))
    finder.give(node.outputs[0], [own if x[at] == y[at] else None for at, own in enumerate(labels)])
    return True


def _shape(finder: Finder, node: ir.Node) -> bool:
    """What is computed from a shape follows it."""
    finder.give(node.outputs[0], [None] * len(finder.dims(node.outputs[0]) or ()))
    return True


def _gather(finder: Finder, node: ir.Node) -> bool:
    """Axes that are not gathered stay."""
    data, indices = node.inputs[0], node.inputs[1]
    labels, own = finder.of(data), finder.of(indices)
    if numbers(data) is not None or not labels:
        return False
    axis = (node.attributes.get_int("axis", 0) or 0) % len(labels)
    finder.fix(labels[axis], *own)
    picked = numbers(indices)
    rank = len((finder.dims(indices) or ()) if picked is None else picked.shape)
    finder.give(node.outputs[0], [*labels[:axis], *[None] * rank, *labels[axis + 1 :]])
    return True


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, _elementwise),
    "Not": _elementwise,
    "MatMul": _linear,
    "Gemm": _linear,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"), _planes),
    "Resize": _resize,
    "Upsample": _resize,
    "Pad": _pad,
    "BatchNormalization": _batch_normalization,
    "InstanceNormalization": _batch_normalization,
    **dict.fromkeys(("LayerNormalization", "Softmax", "LogSoftmax", "Hardmax"), _along),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ArgMax", "ArgMin"), _reduce),
    "Transpose": _transpose,
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    "Concat": _concat,
    "Split": _split,
    "Slice": _slice,
    "Shape": _shape,
    "Gather": _gather,
}
"""Operator -> its rule."""
