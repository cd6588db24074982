"""Which nodes may compute in half precision, the reasons against others, and how rounding changes constants."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx.defs
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.edit import array_of, ints, is_custom, is_op

PRODUCTS = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
CUSTOM_PRODUCTS = frozenset({"Attention", "AttentionMasked"})

_MOVES = (
    "Concat DepthToSpace Expand Flatten Gather GatherElements GatherND Identity Pad Reshape ReverseSequence Slice"
    " SpaceToDepth Split Squeeze Tile Transpose Trilu Unsqueeze Where"
)
MOVES = frozenset(_MOVES.split())
"""Operators that copy elements: half precision loses nothing that their input had."""

_COMPUTES = (
    "Abs Add AveragePool Clip Elu Erf Gelu GlobalMaxPool HardSigmoid HardSwish LeakyRelu Max MaxPool Min Mul Neg PRelu"
    " Relu Selu Sigmoid Sign Softsign Sub Sum Tanh ThresholdedRelu"
)
NORMALIZATIONS = frozenset({"GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization"})
"""Operators that compute mean and deviation of half-precision tensors in float32 by default (`stash_type`), and
round their result once.
"""

OPEN = MOVES | NORMALIZATIONS | frozenset(_COMPUTES.split())
"""Operators that may compute in either precision: each rounds once and amplifies little, because the slopes of the
curves (Erf, Gelu, Sigmoid, Tanh) are about 1.
"""

_FLOAT32 = {
    "adds up many numbers, which needs float32": (
        "CumSum Einsum GlobalAveragePool GlobalLpPool LpPool Mean ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp"
        " ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare LRN DFT STFT"
    ),
    "sums exponentials, which needs float32": "Softmax LogSoftmax Hardmax",
    "divides by a variance, which needs float32": "BatchNormalization LpNormalization MeanVarianceNormalization",
    "can leave the range of half numbers": "Div Exp Log Mish Pow Reciprocal Softplus Sqrt",
    "adds to its state at every step, where rounding would pile up": "GRU LSTM RNN Scan",
    "interpolates between positions, which needs float32": "AffineGrid GridSample Resize RoiAlign Upsample",
    "decides by comparing, and rounding makes ties": (
        "ArgMax ArgMin Ceil Equal Floor Greater GreaterOrEqual IsInf IsNaN Less LessOrEqual NonMaxSuppression NonZero"
        " OneHot Round TopK Unique"
    ),
    "is a loss, which needs float32": "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss",
}
REASONS = {name: reason for reason, names in _FLOAT32.items() for name in names.split()}

WINDOW = 16
"""Most elements that an AveragePool may sum in half precision."""
LOSS = 2.0**-8
"""Largest relative change, by norm, of a constant in half precision. Rounding in-range numbers to bfloat16 changes them
by half of this.
"""


@dataclass(frozen=True)
class Rules:
    """The rules for one model and one half-precision type. `captured` are values that branches and loops read."""

    half: ir.DataType
    opset: int
    captured: Collection[ir.Value]
    _checked: dict[tuple[ir.Value, bool], str | None] = field(default_factory=dict)

    def refusal(self, node: ir.Node) -> str | None:
        """Why a node with float32 numbers must keep them, or None when it may compute in half precision."""
        if node.domain == "":
            if node.op_type not in PRODUCTS | OPEN:
                return f"{node.op_type} {REASONS.get(node.op_type, 'is not known to be safe in half')}"
            if reason := _particular(node) or self._outside_schema(node):
                return reason
        elif not is_custom(node, *CUSTOM_PRODUCTS):
            return f"{node.domain}.{node.op_type} is not known in half; run precision before the pass that makes it"
        if any(value in self.captured for value in node.outputs):
            return "the body of a branch or loop reads its result"
        for value in node.inputs:
            if value is not None and value.dtype == ir.DataType.FLOAT and (reason := self._constant(value)):
                return reason
        return None

    def _outside_schema(self, node: ir.Node) -> str | None:
        wanted = f"tensor({self.half.name.lower()})"
        if _allows(node, wanted, self.opset):
            return None
        newest = onnx.defs.onnx_opset_version()
        later = next((v for v in range(self.opset + 1, newest + 1) if _allows(node, wanted, v)), None)
        advice = f"; opset {later} has" if later else ""
        return f"{node.op_type} of opset {self.opset} has no {self.half.name.lower()}{advice}"

    def _constant(self, value: ir.Value) -> str | None:
        key = value, only_masks(value)
        if key not in self._checked:
            array = array_of(value)
            self._checked[key] = None if array is None else unfit(array, self.half, str(value.name), saturate=key[1])
        return self._checked[key]


def concerned(node: ir.Node) -> bool:
    """Whether a node reads or writes float32 numbers."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    return any(value.dtype == ir.DataType.FLOAT for value in values)


def is_product(node: ir.Node) -> bool:
    """Whether a node is a convolution, matrix product or attention, which half precision speeds up."""
    return is_op(node, *PRODUCTS) or is_custom(node, *CUSTOM_PRODUCTS)


def _particular(node: ir.Node) -> str | None:
    """Reasons against half precision that depend on more than the operator."""
    if is_op(node, "AveragePool") and int(np.prod(ints(node, "kernel_shape", ()))) > WINDOW:
        return f"AveragePool adds up more than {WINDOW} numbers, which needs float32"
    if is_op(node, "Mul") and node.inputs[0] is node.inputs[1]:
        return "squares can leave the range of half numbers"
    if is_op(node, *NORMALIZATIONS) and node.attributes.get_int("stash_type", 1) != ir.DataType.FLOAT:
        return f"{node.op_type} is to find its deviation in the type of its numbers"
    if is_op(node, *NORMALIZATIONS) and any(value.name for value in node.outputs[1:]):
        return f"{node.op_type} also gives its mean or deviation, which stay float32"
    if is_op(node, "MaxPool") and len(node.outputs) > 1 and node.outputs[1].uses():
        return "the indices of MaxPool decide by comparing, and rounding makes ties"
    return None


def _allows(node: ir.Node, wanted: str, opset: int) -> bool:
    """Whether the operator's schema allows the type `wanted` wherever the node has float32."""
    schema = onnx.defs.get_schema(node.op_type, opset, "")
    used: Iterable[tuple[Any, Any]] = (
        (formal[min(index, len(formal) - 1)], value)
        for formal, values in ((schema.inputs, node.inputs), (schema.outputs, node.outputs))
        for index, value in enumerate(values)
    )
    return all(
        wanted in formal.types for formal, value in used if value is not None and value.dtype == ir.DataType.FLOAT
    )


def only_masks(value: ir.Value) -> bool:
    """Whether a value is used as an attention mask only, directly or through operators that move elements."""
    if value.is_graph_output() or not value.uses():
        return False
    return all(
        is_mask(node, index) or (is_op(node, *MOVES) and len(node.outputs) == 1 and only_masks(node.outputs[0]))
        for node, index in value.uses()
    )


def is_mask(node: ir.Node, index: int) -> bool:
    """Whether input `index` of a node is added to attention scores before the softmax."""
    return index == 3 and is_custom(node, "AttentionMasked")


@functools.cache
def lowest_mask(half: ir.DataType) -> float:
    """Replacement of mask values below the range: its exponential is 0, and adding scores to it does not overflow."""
    return -float(_limits(half).max) / 2


def _limits(half: ir.DataType) -> Any:
    """`max`, `smallest_normal` and the like; numpy's own finfo does not know bfloat16."""
    return ml_dtypes.finfo(half.numpy())  # type: ignore[no-untyped-call]


def rounded(array: NDArray[Any], half: ir.DataType, *, saturate: bool = False) -> NDArray[Any]:
    """`array` converted to `half`; `saturate` raises finite elements below `lowest_mask` to it."""
    if saturate:
        array = np.where(np.isfinite(array), np.maximum(array, np.float32(lowest_mask(half))), array)
    with np.errstate(over="ignore"):
        return np.asarray(array.astype(half.numpy()))


def unfit(array: NDArray[Any], half: ir.DataType, name: str, *, saturate: bool = False) -> str | None:
    """Why a float32 constant cannot be in half precision: elements beyond the range, or most of it lost below it."""
    limits = _limits(half)
    squares = errors = 0.0
    small = nonzero = 0
    flat = array.reshape(-1)
    for part in np.array_split(flat, max(1, flat.size >> 20)):
        finite = part[np.isfinite(part)]
        wide = finite.astype(np.float64)
        narrow = rounded(finite, half, saturate=saturate).astype(np.float64)
        if np.isinf(narrow).any():
            largest = float(np.abs(wide).max())
            return f"{name} holds {largest:.3g}, beyond the largest {half.name.lower()}, {float(limits.max):.3g}"
        if saturate:
            continue
        squares += float(np.square(wide).sum())
        errors += float(np.square(wide - narrow).sum())
        small += int(((np.abs(wide) < float(limits.smallest_normal)) & (wide != 0)).sum())
        nonzero += int(np.count_nonzero(wide))
    if errors <= LOSS**2 * squares:
        return None
    return (
        f"{name} would change by {100 * (errors / squares) ** 0.5:.2g} %, because {100 * small / nonzero:.3g} % of its "
        f"numbers are below the smallest normal {half.name.lower()}, {float(limits.smallest_normal):.2g}"
    )
