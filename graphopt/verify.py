"""The oracle: run a model in ONNX Runtime without its optimizations and compare numbers.

feeds = random_inputs(model, seed=0)
expected = run_onnxruntime(model, feeds)
mismatches = compare(expected, actual)          # () when they agree
require_equal(expected, actual, "after fuse")   # raises VerificationError
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import ModelError, VerificationError

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]

IN_MEMORY_BYTES = 1 << 28
"""Weights above this many bytes go to ONNX Runtime through a file with external data (protobuf ends at 2 GiB)."""


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Two tensors agree when max |a - b| <= atol + rtol * max |a|, and NaN and infinities are at the same places.

    The bound is per tensor, not per element: a sum that cancels to nearly zero carries the rounding of its terms.
    """

    rtol: float
    atol: float


EXACT = Tolerance(0.0, 0.0)
TOLERANCES: Mapping[str, Tolerance] = {
    "float64": Tolerance(1e-10, 1e-12),
    "float32": Tolerance(1e-4, 1e-6),
    "float16": Tolerance(1e-2, 1e-3),
    "bfloat16": Tolerance(4e-2, 1e-2),
    "complex64": Tolerance(1e-4, 1e-6),
    "complex128": Tolerance(1e-10, 1e-12),
}
"""Per dtype name; a dtype that is not here (integers, bool, strings) must be equal exactly."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One output that differs: the place where it is worst, both values there, and the sentence to print."""

    output: str
    index: tuple[int, ...]
    expected: object
    actual: object
    message: str


def random_inputs(model: ir.Model, seed: int) -> dict[str, Array]:
    """One array per graph input, the same for the same model and seed.

    float     standard normal
    bool      fair coin
    int       within [0, extent) where the value reaches, unchanged in value, the indices of a Gather or Scatter;
              within [1, steps] for the sequence lengths of a recurrent node; 0 or 1 where it is compared or cast to
              float or bool (a mask); the full range for 8 bits; otherwise within [1, 8), which divides safely
    string    "a" or "b"

    Raises:
        ModelError: an input without a static shape, or of a type that has no random value.
    """
    generator = np.random.default_rng(seed)
    return {str(value.name): _random(value, generator) for value in model.graph.inputs if not value.is_initializer()}


def _random(value: ir.Value, generator: np.random.Generator) -> Array:
    shape = value.shape
    if shape is None or shape.is_dynamic():
        raise ModelError(f"input {value.name} has no static shape; fix it with --shapes {value.name}:DxDxD")
    dims = shape.numpy()
    dtype = value.dtype
    if dtype is None:
        raise ModelError(f"input {value.name} has no tensor type; random inputs need one")
    if dtype.name == "STRING":
        return generator.choice(np.array(["a", "b"], dtype=object), dims)
    numpy_dtype = dtype.numpy()
    if dtype.name == "BOOL":
        return generator.integers(0, 2, dims).astype(np.bool_)
    if dtype.is_floating_point():
        return generator.standard_normal(dims).astype(numpy_dtype)
    if dtype.name.startswith("COMPLEX"):
        return (generator.standard_normal(dims) + 1j * generator.standard_normal(dims)).astype(numpy_dtype)
    low, high = _integer_range(value)
    return generator.integers(low, high, dims).astype(numpy_dtype)


_SAME_VALUES = {
    "Identity",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Flatten",
    "Transpose",
    "Slice",
    "Expand",
    "Split",
    "Tile",
}
_COMPARISONS = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where", "Not", "And", "Or"}
_INDEX_AXIS = {"Gather": 0, "GatherElements": 0, "ScatterElements": 0}
_RECURRENT = {"RNN", "LSTM", "GRU"}


def _integer_range(value: ir.Value) -> tuple[int, int]:
    """[low, high) that every consumer accepts."""
    start = 0
    seen: set[int] = set()
    pending = [value]
    mask = False
    upper: list[int] = []
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        for node, position in current.uses():
            if node.op_type in _SAME_VALUES and position == 0:
                pending.extend(node.outputs)
            elif node.op_type == "Cast":
                to_integer = _is_integer(node.attributes.get_int("to", 0))
                mask = mask or not to_integer
                pending.extend(node.outputs if to_integer else ())
            elif node.op_type in _INDEX_AXIS and position == 1:
                upper += _extent(node, node.attributes.get_int("axis", 0))
            elif node.op_type in ("GatherND", "ScatterND") and position == 1:
                upper += _extent(node, None)
            elif node.op_type in _RECURRENT and position == 4:
                start = 1
                upper += [extent + 1 for extent in _extent(node, 0)]
            elif node.op_type in _COMPARISONS:
                mask = True
    if upper:
        return start, max(min(upper), start + 1)
    return (0, 2) if mask else _default_integers(value)


def _is_integer(dtype: int) -> bool:
    """Whether the number of an ONNX data type is that of an integer type."""
    import onnx_ir as ir

    return ir.DataType(dtype).is_integer()


def _default_integers(value: ir.Value) -> tuple[int, int]:
    name = value.dtype.name if value.dtype is not None else ""
    if name == "UINT8":
        return 0, 256
    return (-128, 128) if name == "INT8" else (1, 8)


def _extent(node: ir.Node, axis: int | None) -> list[int]:
    """Extent of the indexed tensor on `axis` (its smallest one for None), as a list; empty when unknown."""
    data = node.inputs[0]
    if data is None or data.shape is None or data.shape.is_dynamic():
        return []
    dims = data.shape.numpy()
    return [min(dims) if axis is None else dims[axis]]


def run_onnxruntime(model: ir.Model | Path, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Outputs by name, from ONNX Runtime with every graph optimization off.

    `model` is a model, or the path of a file (whose external data lies beside it).

    Raises:
        VerificationError: ONNX Runtime rejects the model or the feeds; its own sentence is repeated.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        with tempfile.TemporaryDirectory(prefix="graphopt-") as directory:
            source = _source(model, Path(directory))
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        where = model if isinstance(model, Path) else model.graph.name or "the model"
        sentence = " ".join(str(error).split())
        raise VerificationError(f"ONNX Runtime cannot run {where}: {sentence}") from error


def _source(model: ir.Model | Path, directory: Path) -> str | bytes:
    """What `InferenceSession` takes: a path, or the bytes of a small model."""
    import onnx_ir as ir

    if isinstance(model, Path):
        return str(model)
    if not needs_external_data(model):
        return bytes(ir.to_proto(model).SerializeToString())
    path = directory / "model.onnx"
    ir.save(model, path, external_data="model.data")
    return str(path)


def needs_external_data(model: ir.Model) -> bool:
    """Whether the weights must be written beside the model: they are large, or mapped from another file."""
    import onnx_ir as ir

    tensors = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    return external or sum(tensor.nbytes for tensor in tensors if tensor is not None) > IN_MEMORY_BYTES


def compare(
    expected: Mapping[str, Any], actual: Mapping[str, Any], tolerances: Mapping[str, Tolerance] = TOLERANCES
) -> list[Mismatch]:
    """Every output of `expected` that `actual` lacks or has with another shape, dtype or other numbers.

    Outputs that only `actual` has are not looked at. A sequence is compared element by element as `name[0]`, ...
    """
    mismatches: list[Mismatch] = []
    for name, value in expected.items():
        if name not in actual:
            mismatches.append(Mismatch(name, (), None, None, f"output {name} is missing"))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            mismatches += _compare_sequences(name, value, actual[name], tolerances)
        else:
            found = _compare_arrays(name, np.asarray(value), np.asarray(actual[name]), tolerances)
            mismatches += [found] if found else []
    return mismatches


def _compare_sequences(
    name: str, expected: Sequence[Any], actual: Sequence[Any], tolerances: Mapping[str, Tolerance]
) -> list[Mismatch]:
    if len(expected) != len(actual):
        message = f"output {name} has {len(actual)} elements, expected {len(expected)}"
        return [Mismatch(name, (), len(expected), len(actual), message)]
    numbered = [{f"{name}[{i}]": item for i, item in enumerate(items)} for items in (expected, actual)]
    return compare(numbered[0], numbered[1], tolerances)


def _compare_arrays(name: str, a: Array, b: Array, tolerances: Mapping[str, Tolerance]) -> Mismatch | None:
    for what, left, right in (("shape", a.shape, b.shape), ("dtype", a.dtype.name, b.dtype.name)):
        if left != right:
            return Mismatch(name, (), left, right, f"output {name} has {what} {right}, expected {left}")
    if not a.size:
        return None
    tolerance = tolerances.get(a.dtype.name, EXACT)
    if tolerance == EXACT or a.dtype.kind not in "fcV":
        wrong = np.asarray(a != b)
        return _mismatch(name, a, b, wrong.astype(np.int8), "must be equal") if wrong.any() else None
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    finite = np.isfinite(x) & np.isfinite(y)
    same = finite | (x == y) | (np.isnan(x) & np.isnan(y))
    if not same.all():
        return _mismatch(name, a, b, (~same).astype(np.int8), "NaN and infinities must be at the same places")
    difference = np.zeros(x.shape)
    np.subtract(x, y, out=(signed := np.zeros_like(x)), where=finite)
    np.abs(signed, out=difference)
    largest = float(np.abs(x[finite]).max(initial=0.0))
    bound = tolerance.atol + tolerance.rtol * largest
    worst = float(difference.max())
    if worst <= bound:
        return None
    return _mismatch(name, a, b, difference, f"|difference| {worst:.3g} is above {bound:.3g}")


def _mismatch(name: str, a: Array, b: Array, badness: Array, why: str) -> Mismatch:
    index = tuple(int(i) for i in np.unravel_index(int(badness.argmax()), a.shape))
    left, right = a[index], b[index]
    place = list(index)
    return Mismatch(name, index, left, right, f"output {name} at {place} is {right}, expected {left} ({why})")


def require_equal(
    expected: Mapping[str, Any],
    actual: Mapping[str, Any],
    where: str,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
) -> None:
    """Raise a VerificationError that begins with `where` when `compare` finds anything."""
    mismatches = compare(expected, actual, tolerances)
    if mismatches:
        others = f"; {len(mismatches) - 1} more outputs differ" if len(mismatches) > 1 else ""
        raise VerificationError(f"{where}: {mismatches[0].message}{others}")
