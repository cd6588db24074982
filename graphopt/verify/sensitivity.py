"""How far a model's outputs move under rounding alone: ONNX Runtime against itself.

A quantized model rounds to steps: a last bit before one becomes a whole step after it, and no fixed tolerance tells
that from a mistake. So ONNX Runtime runs the model as it is (optimizations on, which sums in another order) and with
every floating point number that enters, inputs and weights, moved by one unit in its last place.

    spreads = spread(model, feeds, expected)     # the largest difference of each output
    allowed = allowances(spreads, expected)      # a small multiple of it, with a cap
    lost = unstable(spreads, expected)           # outputs of which nothing is left under rounding
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.errors import VerificationError
from graphopt.graph.constness import stored
from graphopt.verify.oracle import own_copy, run_onnxruntime

if TYPE_CHECKING:
    from graphopt.verify.oracle import Reference

Array = NDArray[Any]

FACTOR = 4.0
"""Multiple of the measured spread that is allowed: a few runs show only part of what rounding can do."""

CAPS = {"float64": 1e-3, "float32": 0.05, "float16": 0.1, "bfloat16": 0.1}
"""Share of an output's largest value above which a difference is a mistake, whatever the model does under rounding."""

STEPS = 2.0
"""Largest difference of an output of 8 bits, in steps."""

SEEDS = 3

_MAX_WEIGHT_BYTES = 1 << 30
"""Larger weights are left as they are: moving them takes as much memory again."""


def spread(model: Reference, feeds: Mapping[str, Array], expected: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference between `expected` and what ONNX Runtime gives under rounding, by output.

    It is infinite for outputs that move in shape or in the places of NaN and infinities. Outputs that are no numbers
    have none.
    """
    largest: dict[str, float] = {}
    for name, distance in ((name, d) for outputs in _runs(model, feeds) for name, d in _distances(expected, outputs)):
        largest[name] = max(largest.get(name, 0.0), distance)
    return largest


def allowances(spreads: Mapping[str, float], expected: Mapping[str, Any]) -> dict[str, float]:
    """The absolute difference that each output may have."""
    finite = {name: distance for name, distance in spreads.items() if np.isfinite(distance)}
    return {name: min(FACTOR * distance, _cap(expected[name])) for name, distance in finite.items()}


def unstable(spreads: Mapping[str, float], expected: Mapping[str, Any]) -> set[str]:
    """The outputs that rounding alone moves further than any difference may be: they cannot be compared."""
    return {name for name, distance in spreads.items() if distance > _cap(expected[name])}


def _cap(output: Any) -> float:
    value = np.asarray(output)
    if value.dtype.name in ("int8", "uint8"):
        return STEPS
    wide = value.astype(np.float64)
    return CAPS[value.dtype.name] * float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0))


def _runs(model: Reference, feeds: Mapping[str, Array]) -> Iterator[dict[str, Any]]:
    with contextlib.suppress(VerificationError):  # the optimizer may stumble where the model as it stands runs
        yield run_onnxruntime(model, feeds, optimize=True)
    for seed in range(SEEDS):
        generator = np.random.default_rng(seed)
        moved = {name: nudge(np.asarray(array), generator) for name, array in feeds.items()}
        try:
            yield run_onnxruntime(_nudged(model, generator), moved)
        except VerificationError:
            return


def nudge(array: Array, generator: np.random.Generator) -> Array:
    """Floating point numbers with a relative error of one unit in the last place, up or down; others as they are.

    Whole numbers stay: they may be sizes, and are usually exact.
    """
    if array.dtype.name not in CAPS:
        return array
    step = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[array.dtype.name]
    signs = generator.choice(np.array([-step, step]), array.shape)
    wide = array.astype(np.float64)
    with np.errstate(all="ignore"):
        moved: Array = np.where(wide == np.round(wide), wide, wide + wide * signs).astype(array.dtype)
    return moved


def _nudged(model: Reference, generator: np.random.Generator) -> ir.Model:
    """A copy of the model whose floating point weights are nudged."""
    copy = own_copy(model)
    left = _MAX_WEIGHT_BYTES

    def nudged(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        nonlocal left
        left -= tensor.nbytes
        if left < 0 or not tensor.dtype.is_floating_point() or tensor.numpy().dtype.name not in CAPS:
            return tensor
        return ir.Tensor(nudge(tensor.numpy(), generator), dtype=tensor.dtype, name=tensor.name)

    for graph in copy.graphs():
        for value in graph.initializers.values():
            if (tensor := stored(value)) is not None:
                value.const_value = nudged(tensor)
        for node in graph:
            held = node.attributes.get("value") if node.op_type == "Constant" else None
            if held is not None and held.type == ir.AttributeType.TENSOR and not held.is_ref():
                node.attributes["value"] = ir.AttrTensor("value", nudged(held.as_tensor()))
    return copy


def _distances(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in expected.items():
        other = actual.get(name)
        if not isinstance(value, np.ndarray) or not isinstance(other, np.ndarray):
            continue
        if value.dtype.name not in (*CAPS, "int8", "uint8") or value.dtype != other.dtype:
            continue
        if value.shape != other.shape:
            yield name, np.inf
            continue
        x, y = value.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        moved = not ((x == y) | finite | (np.isnan(x) & np.isnan(y))).all()
        yield name, np.inf if moved else float(np.abs(x[finite] - y[finite]).max(initial=0.0))
