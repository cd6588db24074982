"""What may be fused behind a kernel that sums: functions of its elements, and nothing that gives more of them."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.targets.common.converters.base import EPILOGUE, OPAQUE, Context

_NAMES = (
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min"
    " Mod Mul Or PRelu Pow Sub Sum Where Xor"
)
BROADCASTS = frozenset(_NAMES.split())
"""Operators that repeat an operand which is smaller than their result."""


def epilogue(c: Context) -> int:
    """The pattern for TVM's fusion: it would also fuse what repeats the result along an axis, behind a sigmoid, say.

    A kernel's blocks have the elements of its sums, not those of a larger tensor; then it stands alone.
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
