"""The oracle: run a model in ONNX Runtime without its optimizations and compare numbers.

feeds = random_inputs(model, seed=0)
expected = run_onnxruntime(model, feeds)
mismatches = compare(expected, actual)          # () when they agree
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import VerificationError
from graphopt.graph.constness import stored
from graphopt.verify.draws import random_inputs as random_inputs

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import onnxruntime

    Reference = ir.Model | onnx.ModelProto | Path

Array = NDArray[Any]

_NEWEST_IR_VERSION = 13
"""Newest IR version that ONNX Runtime 1.31 reads; that of a model in memory says little more than who wrote it."""

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


UNSTABLE = "unstable"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One output that differs: the place where it is worst, both values there, and the sentence to print."""

    output: str
    index: tuple[int, ...]
    expected: object
    actual: object
    message: str
    kind: str = "structure"
    """"value" where numbers differ, else "structure": shape, dtype, places of NaN, or an output that is missing.
    UNSTABLE where the model itself does not give the same twice (`judge`)."""


def run_onnxruntime(model: Reference, feeds: Mapping[str, Array], optimize: bool = False) -> dict[str, Array]:
    """Outputs by name, from ONNX Runtime, with every graph optimization off unless `optimize`.

    `model` is a model, or the path of a file (whose external data lies beside it).

    Raises:
        VerificationError: ONNX Runtime rejects the model or the feeds; its own sentence is repeated.
    """
    with open_onnxruntime(model, optimize) as session:
        names = list(dict.fromkeys(output.name for output in session.get_outputs()))
        try:
            return dict(zip(names, session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise _cannot("run", model, error) from error


@contextlib.contextmanager
def open_onnxruntime(
    model: Reference, optimize: bool = False, threads: int | None = None
) -> Iterator[onnxruntime.InferenceSession]:
    """The session that `run_onnxruntime` uses; raises VerificationError where ONNX Runtime rejects the model."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory(prefix="graphopt-") as directory:
        try:
            source = _source(model, Path(directory))
            session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise _cannot("open", model, error) from error
        yield session


def _cannot(verb: str, model: Reference, error: Exception) -> VerificationError:
    where = model if isinstance(model, Path) else model.graph.name or "the model"
    return VerificationError(f"ONNX Runtime cannot {verb} {where}: {' '.join(str(error).split())}")


def _source(model: Reference, directory: Path) -> str | bytes:
    """What `InferenceSession` takes: a path, or the bytes of a small model."""
    import onnx
    import onnx_ir as ir

    if isinstance(model, Path):
        return str(model)
    if isinstance(model, onnx.ModelProto):
        model = ir.from_proto(model)
    path = directory / "model.onnx"
    external = "model.data" if needs_external_data(model) else None
    version, newest = model.ir_version, min(model.ir_version, _NEWEST_IR_VERSION)
    try:
        model.ir_version = newest
        if external is None:
            return bytes(ir.to_proto(model).SerializeToString())
        ir.save(model, path, external_data=external)
    finally:
        model.ir_version = version
    return str(path)


def own_copy(model: Reference) -> ir.Model:
    """A copy of the model in IR form, which the caller may modify."""
    import onnx_ir as ir

    if isinstance(model, Path):
        return ir.load(model)
    return model.clone() if isinstance(model, ir.Model) else ir.from_proto(model)


def needs_external_data(model: ir.Model) -> bool:
    """Whether the weights must be written beside the model: they are large, or mapped from another file."""
    import onnx_ir as ir

    tensors = [stored(value) for graph in model.graphs() for value in graph.initializers.values()]
    external = any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors)
    return external or sum(tensor.nbytes for tensor in tensors if tensor is not None) > IN_MEMORY_BYTES


def compare(
    expected: Mapping[str, Any],
    actual: Mapping[str, Any],
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
    allowed: Mapping[str, float] = MappingProxyType({}),
) -> list[Mismatch]:
    """Every output of `expected` that `actual` lacks or has with another shape, dtype or other numbers.

    Outputs that only `actual` has are ignored. A sequence is compared element by element as `name[0]`, ...
    `allowed` are absolute differences that single outputs may have though they are above their tolerance.
    """
    mismatches: list[Mismatch] = []
    for name, value in expected.items():
        if name not in actual:
            mismatches.append(Mismatch(name, (), None, None, f"output {name} is missing"))
        elif isinstance(value, Sequence) and not isinstance(value, str):
            mismatches += _compare_sequences(name, value, actual[name], tolerances)
        else:
            bound = allowed.get(name, 0.0)
            mismatch = _compare_arrays(name, np.asarray(value), np.asarray(actual[name]), tolerances, bound)
            mismatches += [mismatch] if mismatch else []
    return mismatches


def _compare_sequences(
    name: str, expected: Sequence[Any], actual: Sequence[Any], tolerances: Mapping[str, Tolerance]
) -> list[Mismatch]:
    if len(expected) != len(actual):
        message = f"output {name} has {len(actual)} elements, expected {len(expected)}"
        return [Mismatch(name, (), len(expected), len(actual), message)]
    numbered = [{f"{name}[{i}]": item for i, item in enumerate(items)} for items in (expected, actual)]
    return compare(numbered[0], numbered[1], tolerances)


def _collected_nothing(a: object, b: object) -> bool:
    """Whether both shapes may be of what a loop collects in zero iterations, where an unknown extent is 0."""
    if not isinstance(a, tuple) or not isinstance(b, tuple) or len(a) != len(b) or not len(a) > 1 or a[0] or b[0]:
        return False
    return all(x == y or 0 in (x, y) for x, y in zip(a, b, strict=True))


def _compare_arrays(
    name: str, a: Array, b: Array, tolerances: Mapping[str, Tolerance], allowed: float
) -> Mismatch | None:
    for what, left, right in (("shape", a.shape, b.shape), ("dtype", a.dtype.name, b.dtype.name)):
        if left != right and not _collected_nothing(left, right):
            return Mismatch(name, (), left, right, f"output {name} has {what} {right}, expected {left}")
    if not a.size or not b.size:
        return None
    tolerance = tolerances.get(a.dtype.name, EXACT)
    if (tolerance == EXACT and not allowed) or a.dtype.kind not in "fciuV":
        wrong = np.asarray(a != b)
        return _mismatch(name, a, b, wrong.astype(np.int8), "must be equal") if wrong.any() else None
    wide = np.complex128 if a.dtype.kind == "c" else np.float64
    x, y = a.astype(wide), b.astype(wide)
    finite = np.isfinite(x) & np.isfinite(y)
    same = finite | (x == y) | (np.isnan(x) & np.isnan(y))
    if not same.all():
        return _mismatch(
            name, a, b, (~same).astype(np.int8), "NaN and infinities must be at the same places", "structure"
        )
    difference = np.zeros(x.shape)
    np.subtract(x, y, out=(signed := np.zeros_like(x)), where=finite)
    np.abs(signed, out=difference)
    largest = float(np.abs(x[finite]).max(initial=0.0))
    bound = max(tolerance.atol + tolerance.rtol * largest, allowed)
    worst = float(difference.max())
    if worst <= bound:
        return None
    return _mismatch(name, a, b, difference, f"|difference| {worst:.3g} is above {bound:.3g}")


def _mismatch(name: str, a: Array, b: Array, badness: Array, why: str, kind: str = "value") -> Mismatch:
    index = tuple(int(i) for i in np.unravel_index(int(badness.argmax()), a.shape))
    left, right = a[index], b[index]
    place = list(index)
    return Mismatch(name, index, left, right, f"output {name} at {place} is {right}, expected {left} ({why})", kind)
