"""Which consumers may be fused into the epilogue of a reduction: elementwise ones, and none that broadcasts."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.targets.common.converters.base import EPILOGUE, OPAQUE, Context

_NAMES = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min"
    " Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
BROADCASTS = frozenset(_NAMES.split())
"""Operators that broadcast an operand which is smaller than their result."""


def epilogue(c: Context) -> int:
    """The pattern for TVM's fusion: `EPILOGUE`, or `OPAQUE` where elementwise consumers end in a broadcast.

    TVM would also fuse what repeats the result along an axis, behind a sigmoid, say. But a kernel's blocks have the
    elements of its sums, not those of a larger tensor; then nothing is fused behind it.
    """
    pending = list(c.node.outputs)
    seen = set(pending)
    while pending:
        value = pending.pop()
        for usage in value.uses():
            for result in usage.node.outputs:
                if _shape(result) == c.out_shape:
                    if result not in seen:
                        seen.add(result)
                        pending.append(result)
                elif usage.node.op_type in BROADCASTS:
                    return OPAQUE
    return EPILOGUE


def _shape(value: ir.Value) -> tuple[int, ...] | None:
    return None if value.shape is None or value.shape.is_dynamic() else value.shape.numpy()
