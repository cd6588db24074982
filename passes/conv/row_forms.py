"""Shapes and attributes of one-dimensional operators, and of those over volumes of one plane, on planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from graphopt.graph.edit import ints
from graphopt.passes.layout.blockable import BINARY, SINGLE

ELEMENTWISE = SINGLE | BINARY | {
    "And", "Atan", "Equal", "Exp", "Greater", "GreaterOrEqual", "IsNaN", "Less", "LessOrEqual", "Log", "Mod",
    "Not", "Or", "Pow", "Reciprocal", "Sign", "Sqrt", "Sum", "Where",
}  # fmt: skip
WINDOWS = frozenset({"AveragePool", "MaxPool"})
FOLLOWING = ELEMENTWISE | WINDOWS | {"Concat", "GlobalAveragePool", "GlobalMaxPool", "Pad"}
"""Operators that are lifted to planes of one row when an operand is."""

VIEWS = ("Flatten", "Reshape", "Squeeze", "Unsqueeze")

ROW, COLUMN, VOLUME = 3, 4, 5
"""Ranks: of a tensor [N, C, L], of planes of one column [N, C, L, 1], and of volumes of one plane [N, C, 1, H, W]."""

Shape = tuple[int, ...]


def on_row(shape: Shape, rank: int) -> Shape:
    """Shape in which an operand of a node of this rank broadcasts against planes; single elements keep theirs."""
    if rank == VOLUME:
        return (*shape[:-3], *shape[-2:]) if len(shape) > 2 else shape
    if len(shape) < 2 and (not shape or shape == (1,)):
        return shape
    return (*shape[:-1], 1, shape[-1]) if rank == ROW else (*shape[:-2], shape[-1], shape[-2])


def window_on_row(node: ir.Node) -> dict[str, Any]:
    """The attributes of a Conv or a pool, rewritten for planes."""
    given: dict[str, Any] = {name: attribute.value for name, attribute in node.attributes.items()}
    for name in ("kernel_shape", "strides", "dilations"):
        if name in given:
            given[name] = _turned(given[name], 1)
    if "pads" in given:
        half = len(given["pads"]) // 2
        given["pads"] = [*_turned(given["pads"][:half], 0), *_turned(given["pads"][half:], 0)]
    return given


def has_depth(node: ir.Node) -> bool:
    """Whether a three-dimensional window covers more than one plane, or is padded along the depth."""
    kernel, pads = ints(node, "kernel_shape", []), ints(node, "pads", [0] * 6)
    return len(kernel) == 3 and (kernel[0] != 1 or pads[0] != 0 or pads[3] != 0)


def _turned(values: Sequence[int], first: int) -> list[int]:
    """An attribute with one number per axis, on planes: `first` for a new axis; columns swap, volumes drop depth."""
    if len(values) > 2:
        return list(values[1:])
    return [first, values[0]] if len(values) == 1 else [values[1], values[0]]
