"""Run a model on a user's samples: an .npz file with arrays named as the model's inputs, and perhaps `labels`."""

from __future__ import annotations

import contextlib
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import FeedError, GraphoptError
from graphopt.verify.oracle import open_onnxruntime

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

    from graphopt.verify.oracle import Reference

LABELS = "labels"
BATCH = 32
"""Samples of a run where the model leaves its batch open."""

MAX_BYTES = 1 << 33
"""Arrays of a file that are larger together are refused (8 GiB): a small zip can unpack to any size."""

_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(bfloat16)": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Samples:
    """The arrays of a file by name, and the labels if it has them."""

    path: Path
    arrays: Mapping[str, NDArray[Any]]
    labels: NDArray[Any] | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores [samples, ..., classes], the output they are of, and whether its last operator is a Softmax."""

    output: str
    values: NDArray[Any]
    softmax: bool


def read_samples(path: Path, flag: str = "--eval") -> Samples:
    """Read the .npz file at `path`; nothing is unpickled, and no array is larger than the file says.

    Args:
        flag: the option that named the file, for messages.

    Raises:
        FeedError: it is missing, no .npz file, damaged, empty, too large, or holds Python objects.
    """
    if not path.is_file():
        raise FeedError(f"{flag} {path} is not a file; give a .npz file that numpy.savez wrote")
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if sum(member.file_size for member in members) > MAX_BYTES:
                raise FeedError(f"{flag} {path} holds more than {MAX_BYTES >> 30} GiB; take fewer samples")
            for member in members:
                if member.filename.endswith(".npy"):
                    name = member.filename.removesuffix(".npy")
                    arrays[name] = _read_member(archive, member, f"{flag} {path}: {name}")
    except FeedError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise FeedError(f"{flag} {path} cannot be read ({reason}); write it with numpy.savez") from error
    if not arrays:
        raise FeedError(f"{flag} {path} holds no array; write it with numpy.savez(file, INPUT=array)")
    return Samples(path, arrays, arrays.pop(LABELS, None) if len(arrays) > 1 else None)


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, where: str) -> NDArray[Any]:
    """One array, whose header must describe as many bytes as follow it."""
    with archive.open(member) as stream:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise FeedError(f"{where} is in version {version[0]} of the .npy format; write it with numpy.savez")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        try:
            shape, fortran, dtype = read(stream)
        except Exception as error:  # numpy evaluates the header: a bad one can raise anything
            raise FeedError(f"{where} has a damaged header; write it with numpy.savez") from error
        if dtype.hasobject:
            raise FeedError(f"{where} holds Python objects; save an array of numbers")
        size = math.prod(shape) * dtype.itemsize
        if any(extent < 0 for extent in shape) or size != member.file_size - stream.tell():
            raise FeedError(f"{where} is shorter or longer than its header says; write it with numpy.savez")
        content = stream.read(size)
    array = np.frombuffer(content, dtype).reshape(shape[::-1] if fortran else shape)
    array = array.T if fortran else array
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def score(
    model: Reference, samples: Samples, output: str | None = None, progress: Callable[[str], None] | None = None
) -> Scores:
    """The scores of a model for all samples, from ONNX Runtime, in runs of the model's batch.

    Every input has a sample in each row of its first axis; an array of exactly the input's shape, where others hold
    several batches, is given to every run. The last batch is padded with its last sample.

    Args:
        output: name of the output with the scores; None takes the first of floats with at least two classes.

    Raises:
        FeedError: names, shapes or dtypes of the samples do not fit the inputs.
        GraphoptError: the model has no such output.
        VerificationError: ONNX Runtime rejects the model, or a run.
    """
    with open_onnxruntime(model, optimize=True) as session:
        chosen = _choose(session, output)
        batch, count, runs = _plan(session, samples)
        parts = []
        for index, feeds in enumerate(runs):
            if progress is not None and index % 16 == 0:
                progress(f"evaluating {min(index * batch, count)} of {count} samples")
            try:
                (value,) = session.run([chosen], feeds)
            except Exception as error:  # ONNX Runtime's exceptions share no base class
                raise FeedError(
                    f"{samples.path}: ONNX Runtime cannot run the model on it: {' '.join(str(error).split())}"
                ) from error
            valid = min(batch, count - index * batch)
            parts.append(_valid(np.asarray(value), valid, batch, chosen))
    values = np.concatenate(parts)
    if values.shape[-1] < 2:
        raise GraphoptError(f"output {chosen!r} has shape {values.shape}: scores need at least two classes")
    return Scores(chosen, values, ends_in_softmax(model, chosen))


def _choose(session: onnxruntime.InferenceSession, asked: str | None) -> str:
    outputs = session.get_outputs()
    names = [each.name for each in outputs]
    if asked is not None:
        if asked not in names:
            raise GraphoptError(f"--eval-output names {asked!r}, and the outputs are {', '.join(names)}")
        return asked
    for each in outputs:
        shape = each.shape
        is_float = each.type in ("tensor(float)", "tensor(double)", "tensor(float16)")
        if is_float and shape and not (isinstance(shape[-1], int) and shape[-1] < 2):
            return str(each.name)
    raise GraphoptError(
        f"no output of {', '.join(names)} holds scores: floats with at least two classes on the last axis"
    )


def _plan(
    session: onnxruntime.InferenceSession, samples: Samples
) -> tuple[int, int, list[dict[str, NDArray[Any]]] | _Runs]:
    """Samples of a run, samples in all, and the feeds of every run."""
    inputs = {each.name: each for each in session.get_inputs()}
    path, arrays = samples.path, samples.arrays
    for name in arrays:
        if name not in inputs:
            raise FeedError(
                f"--eval {path} holds {name!r}, which is no input; inputs are {', '.join(inputs) or 'none'}"
            )
    for name, each in inputs.items():
        if name not in arrays:
            raise FeedError(f"--eval {path} lacks the input {name!r}; save an array of that name")
        _check(path, name, each, arrays[name])
    whole = {name for name, each in inputs.items() if list(arrays[name].shape) == list(each.shape)}
    many = [name for name in inputs if name not in whole]
    if not many:  # one run
        extents = {arrays[name].shape[0] for name in inputs if arrays[name].ndim}
        count = extents.pop() if len(extents) == 1 else 1
        return count, count, [dict(arrays)]
    fixed = {each.shape[0] for name, each in inputs.items() if name in many and isinstance(each.shape[0], int)}
    counts = {len(arrays[name]) for name in many}
    if len(fixed) > 1 or len(counts) > 1:
        listed = ", ".join(f"{name} {len(arrays[name])}" for name in many)
        raise FeedError(f"--eval {path}: the inputs hold different numbers of samples ({listed}); give as many of each")
    batch, count = min(fixed, default=BATCH), counts.pop()
    return batch, count, _Runs(arrays, frozenset(many), batch, count, bool(fixed))


def _check(path: Path, name: str, each: Any, array: NDArray[Any]) -> None:
    dtype = _TYPES.get(each.type, each.type.removeprefix("tensor(").removesuffix(")"))
    if array.dtype.name != dtype:
        raise FeedError(f"--eval {path}: {name!r} is {array.dtype}, and {dtype} is expected: convert it with .astype")
    shape = list(each.shape)
    fits = array.ndim == len(shape) and all(
        not isinstance(want, int) or want == have for want, have in zip(shape[1:], array.shape[1:], strict=False)
    )
    if not fits or (not shape and array.ndim):
        rest = [str(want) if isinstance(want, int) else "any" for want in shape[1:]]
        spelled = "x".join(["samples", *rest] if shape else ["a scalar"])
        raise FeedError(f"--eval {path}: {name!r} has shape {array.shape}, and {spelled} is expected")
    if not array.size:
        raise FeedError(f"--eval {path}: {name!r} is empty; give at least one sample")


@dataclass(frozen=True, slots=True)
class _Runs:
    """The feeds of one run after the other, so that no more than one is copied."""

    arrays: Mapping[str, NDArray[Any]]
    many: frozenset[str]
    batch: int
    count: int
    pad: bool

    def __iter__(self) -> Any:
        for start in range(0, self.count, self.batch):
            feeds = dict(self.arrays)
            for name in self.many:
                piece = self.arrays[name][start : start + self.batch]
                if self.pad and len(piece) < self.batch:
                    piece = np.concatenate([piece, np.repeat(piece[-1:], self.batch - len(piece), axis=0)])
                feeds[name] = np.ascontiguousarray(piece)
            yield feeds


def _valid(value: NDArray[Any], valid: int, batch: int, name: str) -> NDArray[Any]:
    """The rows of `value` that belong to the first `valid` samples of the batch."""
    value = value[np.newaxis] if value.ndim < 2 else value
    rows = len(value)
    if valid == batch or rows == valid:
        return value
    if rows % batch:
        raise GraphoptError(
            f"output {name!r} has {rows} rows for a batch of {batch}; give a number of samples that {batch} divides"
        )
    return value[: rows // batch * valid]


def ends_in_softmax(model: Reference, output: str) -> bool:
    """Whether a Softmax over the last axis computes `output`, seen through operators that keep numbers."""
    graph = _graph(model)
    value = next((each for each in graph.outputs if each.name == output), None) if graph is not None else None
    node = None if value is None else value.producer()
    while node is not None and node.op_type in ("Identity", "Cast", "Dropout", "Squeeze", "Unsqueeze", "Reshape"):
        source = node.inputs[0]
        node = None if source is None else source.producer()
    return node is not None and node.op_type == "Softmax"


def _graph(model: Reference) -> ir.Graph | None:
    import onnx
    import onnx_ir as ir

    if isinstance(model, ir.Model):
        return model.graph
    if isinstance(model, Path):
        with contextlib.suppress(Exception):  # what ONNX Runtime has just opened
            return ir.from_proto(onnx.load(model, load_external_data=False)).graph
        return None
    return ir.from_proto(model).graph
