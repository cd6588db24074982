"""Observers of a pipeline: callables that get an `Event` before the first pass and after every pass.

pipeline.run(model, [Check(), Dump(Path("dumps")), Verify(seed=0)])
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt import ops
from graphopt.errors import PipelineError, VerificationError
from graphopt.frontend.shapes import with_skeleton
from graphopt.frontend.valid import check
from graphopt.pipeline.pipeline import Event
from graphopt.verify.judge import Judge, judge
from graphopt.verify.oracle import TOLERANCES, Tolerance, needs_external_data, run_onnxruntime

if TYPE_CHECKING:
    from graphopt.verify.oracle import Reference

PASS_KEY = "graphopt.pass"
"""Metadata key of a dumped model: the spelling of the pass that wrote it."""

_DUMP_NAME = re.compile(r"\d{3}_.+\.(onnx|data)")


@dataclass(frozen=True)
class Check:
    """Fails when the model is not valid ONNX, or a custom operator lacks its function or an attribute."""

    def __call__(self, event: Event) -> None:
        """Check the model; raises PipelineError."""
        where = f"after pass {event.step.spelling}" if event.step else "before the first pass"
        try:
            with_skeleton(event.model, check)
        except Exception as error:  # serialization of a pass's result may fail too
            sentence = " ".join(str(error.__cause__ or error).split())
            raise PipelineError(f"{where} the model is not valid ONNX: {sentence}") from error
        names: set[str] = set()
        for node in event.model.graph.all_nodes():
            if not node.name or node.name in names:
                raise PipelineError(f"{where} two nodes are called {node.name!r}, or one has no name")
            names.add(node.name)
            if node.domain == ops.DOMAIN:
                _check_custom(event.model, node, where)


def _check_custom(model: ir.Model, node: ir.Node, where: str) -> None:
    function = model.functions.get(node.op_identifier())
    if function is None:
        raise PipelineError(f"{where} node {node.name} calls {node.op_type}, whose function is not in the model")
    missing = [
        name for name, value in function.attributes.items() if value.value is None and name not in node.attributes
    ]
    if missing:
        raise PipelineError(f"{where} node {node.name} lacks the attribute {missing[0]} of {node.op_type}")


@dataclass(frozen=True)
class Dump:
    """Writes `000_input.onnx`, `001_normalize.onnx`, ...; dumps of an earlier run in the folder are replaced.

    Every file is complete when its name appears. Large weights lie beside it (`001_normalize.data`).
    """

    directory: Path

    def __call__(self, event: Event) -> None:
        """Write one file; raises PipelineError where it cannot be written."""
        try:
            self._write(event)
        except OSError as error:
            raise PipelineError(
                f"the dump {self.directory} cannot be written: {error.strerror or error}; "
                "free some space or name a folder that can be written"
            ) from error

    def _write(self, event: Event) -> None:
        if event.step is None:
            self.directory.mkdir(parents=True, exist_ok=True)
            for stale in self.directory.iterdir():
                if _DUMP_NAME.fullmatch(stale.name):
                    stale.unlink()
        stem = f"{event.index:03d}_{event.name}"
        temporary = self.directory / f".{stem}.tmp"
        external = f"{stem}.data" if needs_external_data(event.model) else None
        event.model.metadata_props[PASS_KEY] = event.step.spelling if event.step else "input"
        try:
            ir.save(event.model, temporary, format="protobuf", external_data=external)
            os.replace(temporary, self.directory / f"{stem}.onnx")
        finally:
            del event.model.metadata_props[PASS_KEY]
            temporary.unlink(missing_ok=True)


@dataclass
class Verify:
    """Runs the user's model and every modified model on one set of inputs, and compares the outputs.

    After the first event `judge` holds inputs and expected outputs. With `each=False` it only prepares them, for a
    caller that compares the final result. With `keep` the first failure is kept in `failure`, not raised. `reference`
    is the user's model; None stands for the model of the first event.
    """

    seed: int = 0
    each: bool = True
    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: TOLERANCES)
    given: Mapping[str, Any] = field(default_factory=dict)
    keep: bool = False
    reference: Reference | None = None
    failure: str = ""
    judge: Judge | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """The notes of the judge."""
        return () if self.judge is None else tuple(self.judge.notes)

    def __call__(self, event: Event) -> None:
        """Verify the model; raises VerificationError that names the pass and the worst element."""
        where = f"after pass {event.step.spelling}" if event.step else "after loading"
        if event.step is None:
            original = event.model.clone() if self.reference is None else self.reference
            self.judge = judge(original, event.model, self.seed, self.given, self.tolerances)
        if not self.each or self.failure or (event.step is not None and not event.step.modified):
            return
        assert self.judge is not None
        self.require(run_onnxruntime(event.model, self.judge.feeds), where)

    def require(self, actual: Mapping[str, Any], where: str) -> None:
        """Compare `actual` with the expected outputs; raises VerificationError unless `keep`."""
        assert self.judge is not None
        try:
            self.judge.require(actual, where)
        except VerificationError as error:
            self.fail(str(error))

    def fail(self, sentence: str) -> None:
        """Raise `sentence` as a VerificationError, or keep it with `keep`; "" is no failure."""
        if sentence and not self.keep:
            raise VerificationError(sentence)
        self.failure = self.failure or sentence
