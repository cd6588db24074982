"""Rules of normalize for convolutions and pools: explicit padding, and pools over the whole plane."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, Rule, array_of, dims, ints

_WEIGHTS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""Index of the operand that holds the kernel, by convolution."""


def _explicit_pads(editor: Editor, node: ir.Node) -> str | None:
    """auto_pad -> pads, as ONNX defines SAME_UPPER, SAME_LOWER (output = ceil(input / stride)) and VALID."""
    mode = node.attributes.get_string("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return None
    x, y = dims(node.inputs[0]), dims(node.outputs[0])
    kernel = ints(node, "kernel_shape", [])
    place = _WEIGHTS.get(node.op_type)
    weight = None if place is None else dims(node.inputs[place])
    kernel = kernel or list((weight or ())[2:])
    if x is None or y is None or not kernel:
        return "auto_pad needs static shapes"
    rank = len(kernel)
    strides, dilations = ints(node, "strides", [1] * rank), ints(node, "dilations", [1] * rank)
    begin, end, skipped = [0] * rank, [0] * rank, [0] * rank
    if mode != "VALID":
        for axis in range(rank):
            # ONNX Runtime pads a pool for its kernel without dilations, and may then have fewer windows.
            reach = (kernel[axis] - 1) * dilations[axis] + 1 if place is not None else kernel[axis]
            same = -(-x[2 + axis] // strides[axis])
            missing = (same - 1) * strides[axis] + reach - x[2 + axis]
            small, large = max(0, missing) // 2, max(0, missing) - max(0, missing) // 2
            begin[axis], end[axis] = (small, large) if mode == "SAME_UPPER" else (large, small)
            skipped[axis] = _skipped(node.op_type, mode, missing)
    if any(skipped):
        _crop(editor, node, skipped, x)
    node.attributes.pop("auto_pad")
    node.attributes["pads"] = ir.AttrInt64s("pads", [*begin, *end])
    editor.modified = True
    return None


def _skipped(op_type: str, mode: str, missing: int) -> int:
    """Elements before the first window, where the padding that SAME needs is negative.

    ONNX Runtime divides that padding by two even if it is negative, rounding to zero, for LpPool; for convolutions it
    adds one before. It refuses the other pools.
    """
    spare = -missing - (op_type in _WEIGHTS) - (mode == "SAME_LOWER")
    return max(0, spare // 2) if op_type == "LpPool" or op_type in _WEIGHTS else 0


def _crop(editor: Editor, node: ir.Node, skipped: list[int], shape: tuple[int, ...]) -> None:
    """Slice off the first `skipped` elements of every axis of the image."""
    x, name = node.inputs[0], f"{node.name}.cropped"
    axes = [axis for axis, count in enumerate(skipped) if count]
    starts, ends = [skipped[axis] for axis in axes], [shape[2 + axis] for axis in axes]
    numbers = (starts, ends, [2 + axis for axis in axes])
    operands = [editor.constant(np.array(bounds, np.int64), f"{name}.at") for bounds in numbers]
    left = [extent - (skipped[axis - 2] if axis >= 2 else 0) for axis, extent in enumerate(shape)]
    assert x is not None
    value = editor.insert(
        node, "Slice", [x, *operands], shape=left, dtype=x.dtype, name=name, output=name, origin=[node]
    )
    node.replace_input_with(0, value)


def _global_pool(editor: Editor, node: ir.Node) -> None:
    """AveragePool whose only window covers the whole plane and counts no padding -> GlobalAveragePool."""
    x, y = dims(node.inputs[0]), dims(node.outputs[0])
    if x is None or y is None or len(x) < 3 or any(extent != 1 for extent in y[2:]):
        return
    rank = len(x) - 2
    kernel, pads = ints(node, "kernel_shape", []), ints(node, "pads", [0] * 2 * rank)
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" or any(d != 1 for d in ints(node, "dilations", [])):
        return
    if node.attributes.get_int("count_include_pad", 0) and any(pads):
        return
    if all(kernel[axis] - pads[axis] >= x[2 + axis] for axis in range(rank)):
        _emit_global(editor, node, y)


def _mean_of_plane(editor: Editor, node: ir.Node) -> None:
    """ReduceMean over the last two axes of [N, C, H, W] -> GlobalAveragePool (and Reshape without keepdims)."""
    x = dims(node.inputs[0])
    axes_input = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = ints(node, "axes", []) if axes_input is None else axes_input.reshape(-1).tolist()
    dtype = node.outputs[0].dtype
    if x is None or len(x) != 4 or {axis % 4 for axis in axes} != {2, 3} or dtype is None:
        return
    if dtype.is_floating_point():
        _emit_global(editor, node, (x[0], x[1], 1, 1))


def _emit_global(editor: Editor, node: ir.Node, pooled_shape: tuple[int, ...]) -> None:
    y = node.outputs[0]
    new = editor.insert(
        node,
        "GlobalAveragePool",
        [node.inputs[0]],
        shape=pooled_shape,
        dtype=y.dtype,
        name=f"{node.name}.pool",
        output=f"{y.name}.pool",
        origin=[node],
    )
    shape = dims(y)
    if shape is not None and shape != pooled_shape:
        target = editor.constant(np.array(shape, np.int64), f"{node.name}.shape")
        new = editor.insert(
            node,
            "Reshape",
            [new, target],
            shape=shape,
            dtype=y.dtype,
            name=f"{node.name}.reshape",
            output=f"{y.name}.reshape",
            origin=[node],
        )
    editor.swap(node, new)


WINDOWS: dict[str, tuple[Rule, ...]] = {
    "Conv": (_explicit_pads,),
    "ConvInteger": (_explicit_pads,),
    "QLinearConv": (_explicit_pads,),
    "MaxPool": (_explicit_pads,),
    "AveragePool": (_explicit_pads, _global_pool),
    "LpPool": (_explicit_pads,),
    "ReduceMean": (_mean_of_plane,),
}
