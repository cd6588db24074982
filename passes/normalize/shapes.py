"""Rules of normalize for operators that move or copy data."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, Rule, array_of, dims, ints, is_op

_RESHAPES = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def drop(editor: Editor, node: ir.Node) -> None:
    """Replace the output of `node` by its first input, unless graph inputs and outputs forbid it."""
    x, y = node.inputs[0], node.outputs[0]
    if x is not None and editor.can_replace(y, x):
        editor.swap(node, x)


def _identity(editor: Editor, node: ir.Node) -> None:
    drop(editor, node)


def _dropout(editor: Editor, node: ir.Node) -> str | None:
    training = node.inputs[2] if len(node.inputs) > 2 else None
    mode = array_of(training)
    if training is not None and (mode is None or bool(mode)):
        return "Dropout is in training mode"
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return "the mask of Dropout is used"
    drop(editor, node)
    return None


def _cast(editor: Editor, node: ir.Node) -> None:
    x = node.inputs[0]
    if x is not None and x.dtype is not None and x.dtype == node.outputs[0].dtype:
        drop(editor, node)


def _same_shape(editor: Editor, node: ir.Node) -> None:
    """Drop a Reshape, Expand, Slice or Tile that keeps the shape, unless a Slice reverses an axis."""
    shape = dims(node.outputs[0])
    if shape is None or shape != dims(node.inputs[0]):
        return
    if node.op_type == "Slice":
        steps = array_of(node.inputs[4]) if len(node.inputs) > 4 else np.ones(1)
        if steps is None or (steps < 0).any():
            return
    drop(editor, node)


def _reshape_of_reshape(editor: Editor, node: ir.Node) -> None:
    x = node.inputs[0]
    inner = x.producer() if x is not None else None
    shape = dims(node.outputs[0])
    if inner is None or not is_op(inner, *_RESHAPES) or shape is None or 0 in shape:
        return
    target = editor.constant(np.array(shape, np.int64), f"{node.name}.shape")
    y = editor.insert(
        node,
        "Reshape",
        [inner.inputs[0], target],
        shape=shape,
        dtype=node.outputs[0].dtype,
        name=f"{node.name}.reshape",
        output=f"{node.outputs[0].name}.reshape",
        origin=[inner, node],
    )
    editor.swap(node, y)


def _permutation(node: ir.Node) -> list[int] | None:
    shape = dims(node.inputs[0])
    if shape is None:
        return None
    return ints(node, "perm", tuple(reversed(range(len(shape)))))


def _transpose(editor: Editor, node: ir.Node) -> None:
    perm = _permutation(node)
    x = node.inputs[0]
    if perm is None or x is None:
        return
    if perm == sorted(perm):
        drop(editor, node)
        return
    inner = x.producer()
    inner_perm = _permutation(inner) if inner is not None and is_op(inner, "Transpose") else None
    if inner is None or inner_perm is None:
        return
    y = editor.insert(
        node,
        "Transpose",
        [inner.inputs[0]],
        {"perm": [inner_perm[axis] for axis in perm]},
        shape=node.outputs[0].shape,
        dtype=x.dtype,
        name=f"{node.name}.transpose",
        output=f"{node.outputs[0].name}.transpose",
        origin=[inner, node],
    )
    editor.swap(node, y)


def _pad(editor: Editor, node: ir.Node) -> None:
    pads = array_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if pads is not None and not pads.any():
        drop(editor, node)


def _concat(editor: Editor, node: ir.Node) -> None:
    if len(node.inputs) == 1:
        drop(editor, node)


SHAPES: dict[str, tuple[Rule, ...]] = {
    "Identity": (_identity,),
    "Dropout": (_dropout,),
    "Cast": (_cast,),
    "Reshape": (_same_shape, _reshape_of_reshape),
    "Flatten": (_same_shape, _reshape_of_reshape),
    "Squeeze": (_same_shape, _reshape_of_reshape),
    "Unsqueeze": (_same_shape, _reshape_of_reshape),
    "Expand": (_same_shape,),
    "Tile": (_same_shape,),
    "Slice": (_same_shape,),
    "Transpose": (_transpose,),
    "Pad": (_pad,),
    "Concat": (_concat,),
}
