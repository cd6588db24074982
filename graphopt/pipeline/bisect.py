"""Find the pass and the node that first changed what a model computes, by running all of its dumps.

verdict = bisect(Path("dumps"))        # the folder that observe.Dump wrote
verdict.ok, verdict.sentence
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.errors import ModelError, VerificationError
from graphopt.ops.layout import blocks
from graphopt.pipeline.observe import PASS_KEY
from graphopt.verify.oracle import TOLERANCES, Mismatch, Tolerance, compare, random_inputs, run_onnxruntime

_DUMP = re.compile(r"(\d{3})_(.+)\.onnx")
_BLOCKED = re.compile(r"(.+)\.blocked(\.\d+)?")
ORIGIN_KEY = "graphopt.origin"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of `bisect`. When `ok`, only `sentence` is set.

    `dump` is the first file that differs from the previous one, `spelling` the pass that wrote it, `node` the first
    node in it whose value differs, `value` that value, `origin` the nodes of the loaded model that `node` stands for,
    and `suspects` the nodes between the last values that agree and `value`, `node` included.
    """

    ok: bool
    sentence: str
    dump: str = ""
    spelling: str = ""
    node: str = ""
    value: str = ""
    origin: str = ""
    suspects: tuple[str, ...] = ()


def bisect(directory: Path, seed: int = 0, tolerances: Mapping[str, Tolerance] = TOLERANCES) -> Verdict:
    """Run all dumps of `directory` on the same random inputs, and compare each with the previous one.

    Raises:
        ModelError: the folder does not hold all dumps of a compilation, or one is damaged.
    """
    dumps = _dumps(directory)
    before = dumps[0]
    feeds = random_inputs(_read(before), seed)
    expected = run_onnxruntime(before, feeds)
    for after in dumps[1:]:
        spelling = _read(after).metadata_props.get(PASS_KEY, after.name)
        try:
            actual = run_onnxruntime(after, feeds)
        except VerificationError as error:
            return Verdict(
                False, f"pass {spelling} wrote {after.name}, which does not run: {error}", after.name, spelling
            )
        mismatches = compare(expected, actual, tolerances)
        if mismatches:
            return _verdict(before, after, spelling, feeds, mismatches[0], tolerances)
        before, expected = after, actual
    return Verdict(True, f"all {len(dumps)} dumps in {directory} compute the same outputs")


def _dumps(directory: Path) -> list[Path]:
    """The dumps in the order in which they were written, none missing between them."""
    if directory.exists() and not directory.is_dir():
        raise ModelError(f"{directory} is a file; name the folder that graphopt compile MODEL --dump FOLDER wrote")
    dumps = sorted(path for path in directory.glob("*.onnx") if _DUMP.fullmatch(path.name))
    if len(dumps) < 2:
        raise ModelError(
            f"{directory} holds {len(dumps)} dumps; write them with graphopt compile MODEL --dump {directory}"
        )
    for number, path in enumerate(dumps):
        if int(path.name[:3]) != number:
            raise ModelError(
                f"{directory} has no dump {number:03}; write them again with graphopt compile MODEL --dump"
            )
    return dumps


def _read(path: Path) -> ir.Model:
    try:
        return ir.load(path)
    except (DecodeError, ValueError, OSError) as error:
        raise ModelError(f"the dump {path} is damaged; write it again with graphopt compile MODEL --dump") from error


def _verdict(
    before: Path,
    after: Path,
    spelling: str,
    feeds: Mapping[str, Any],
    output: Mismatch,
    tolerances: Mapping[str, Tolerance],
) -> Verdict:
    first = f"pass {spelling} wrote {after.name}, the first dump that differs"
    difference = first_difference(_read(before), _read(after), feeds, tolerances)
    if difference is None:
        return Verdict(False, f"{first}: {output.message}", after.name, spelling, value=output.output)
    return Verdict(
        False,
        f"{first}; {difference.sentence}",
        after.name,
        spelling,
        difference.node,
        difference.value,
        difference.origin,
        difference.suspects,
    )


@dataclass(frozen=True, slots=True)
class Difference:
    """The first node of a model whose value differs; the fields are those of `Verdict`."""

    node: str
    value: str
    origin: str
    suspects: tuple[str, ...]
    message: str

    @property
    def sentence(self) -> str:
        """The difference as a sentence, without a final stop."""
        return f"node {self.node} (from {self.origin}) is the first that computes something else: {self.message}"


def first_difference(
    before: ir.Model, after: ir.Model, feeds: Mapping[str, Any], tolerances: Mapping[str, Tolerance] = TOLERANCES
) -> Difference | None:
    """The first value of `after`, in the order of computation, that differs from its counterpart in `before`.

    Both models get every value as an output. None where all values that both have agree.
    """
    old_values = run_onnxruntime(with_all_outputs(before), feeds)
    new_values = run_onnxruntime(with_all_outputs(after), feeds)
    agreeing = {str(value.name) for value in after.graph.inputs} | set(after.graph.initializers)
    for node in after.graph:
        for value in node.outputs:
            pair = _pair(str(value.name), old_values, new_values)
            if pair is None:
                continue
            mismatches = compare({str(value.name): pair[0]}, {str(value.name): pair[1]}, tolerances)
            if not mismatches:
                agreeing.add(str(value.name))
                continue
            suspects = tuple(str(n.name) for n in _between(value, agreeing))
            origin = node.metadata_props.get(ORIGIN_KEY, str(node.name))
            return Difference(str(node.name), str(value.name), origin, suspects, mismatches[0].message)
    return None


def with_all_outputs(model: ir.Model) -> ir.Model:
    """The model with every typed value of its main graph among the outputs."""
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.dtype is not None and not value.is_graph_output():
                model.graph.outputs.append(value)
    return model


def _pair(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> tuple[Any, Any] | None:
    """(old, new) numbers of a value: of the same name, or planar before and blocked (`x.blocked`) after."""
    if name in old and name in new:
        return old[name], new[name]
    match = _BLOCKED.fullmatch(name)
    planar = old.get(match[1]) if match else None
    blocked = new.get(name)
    if planar is None or blocked is None or np.ndim(planar) != 4 or np.ndim(blocked) != 5:
        return None
    n, c, h, w = planar.shape
    block = blocked.shape[4]
    if blocked.shape != (n, blocks(c, block), h, w, block):
        return None
    return planar, blocked.transpose(0, 1, 4, 2, 3).reshape(n, -1, h, w)[:, :c]


def _between(value: ir.Value, agreeing: set[str]) -> Iterator[ir.Node]:
    """Nodes that lead from values that agree to `value`, its own first."""
    pending, seen = [value], {id(value)}
    while pending:
        node = pending.pop(0).producer()
        if node is None:
            continue
        yield node
        for source in node.inputs:
            if source is not None and source.name not in agreeing and id(source) not in seen:
                seen.add(id(source))
                pending.append(source)
