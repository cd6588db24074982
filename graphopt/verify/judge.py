"""Judge whether a program, or a model during compilation, computes what ONNX Runtime computes of the user's model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import FeedError, VerificationError
from graphopt.graph.analysis import static_type
from graphopt.graph.constness import is_input
from graphopt.verify.draws import random_inputs, smaller
from graphopt.verify.oracle import TOLERANCES, UNSTABLE, Mismatch, Tolerance, compare, open_onnxruntime, run_onnxruntime

if TYPE_CHECKING:
    from graphopt.verify.oracle import Reference


@dataclass
class Judge:
    """Inputs, the outputs that ONNX Runtime computes from them, and the differences that are allowed.

    A mismatch of an output that rounding alone moves arbitrarily far is of the kind "unstable": it proves nothing.

    After judging, `notes` report what was unusual: a model that ONNX Runtime takes only as loaded, and outputs that
    were above their tolerance but within what rounding alone does to the model.
    """

    reference: Reference
    feeds: Mapping[str, Any]
    expected: Mapping[str, Any]
    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: TOLERANCES)
    notes: list[str] = field(default_factory=list)
    allowed: dict[str, float] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)
    """The unstable outputs that did not agree the last time."""
    _weighed: bool = False
    _unstable: set[str] = field(default_factory=set)

    def mismatches(self, actual: Mapping[str, Any]) -> list[Mismatch]:
        """The mismatches of `actual`. The model's sensitivity to rounding is measured only if there are any."""
        mismatches = compare(self.expected, actual, self.tolerances, self.allowed)
        if mismatches and not self._weighed:
            mismatches = self._weigh(actual, mismatches)
        self.lost = {
            mismatch.output for mismatch in mismatches if self._excused(mismatch.output, actual.get(mismatch.output))
        }
        return [
            replace(mismatch, kind=UNSTABLE) if mismatch.output in self.lost else mismatch for mismatch in mismatches
        ]

    def _excused(self, name: str, array: Any) -> bool:
        """Whether an output has no stable value, but the expected dtype and rank."""
        wanted = self.expected.get(name)
        if name not in self._unstable or not isinstance(array, np.ndarray) or not isinstance(wanted, np.ndarray):
            return False
        return bool(array.dtype == wanted.dtype and array.ndim == wanted.ndim)

    def _weigh(self, actual: Mapping[str, Any], mismatches: list[Mismatch]) -> list[Mismatch]:
        """Those of `mismatches` that remain when the model's sensitivity to rounding is allowed for."""
        from graphopt.verify.sensitivity import allowances, spread, unstable

        self._weighed = True
        spreads = spread(self.reference, self.feeds, self.expected)
        self.allowed = allowances(spreads, self.expected)
        self._unstable = unstable(spreads, self.expected)
        left = compare(self.expected, actual, self.tolerances, self.allowed)
        excused = {mismatch.output for mismatch in mismatches} - {mismatch.output for mismatch in left}
        for name in sorted(excused):
            self.notes.append(
                f"output {name} was judged by the model's own sensitivity: under rounding alone ONNX Runtime differs "
                f"from itself by up to {spreads[name]:.3g}, so {self.allowed[name]:.3g} was allowed"
            )
        for name in sorted(self._unstable & {mismatch.output for mismatch in left}):
            how = f"by {spreads[name]:.3g}" if np.isfinite(spreads[name]) else "in shape or in the places of NaN"
            self.notes.append(f"output {name} has no stable value: under rounding alone ONNX Runtime moves it {how}")
        return left

    def require(self, actual: Mapping[str, Any], where: str) -> None:
        """Raise a VerificationError that begins with `where` unless `actual` agrees with the expected outputs."""
        mismatches = [mismatch for mismatch in self.mismatches(actual) if mismatch.kind != UNSTABLE]
        if mismatches:
            others = f"; {len(mismatches) - 1} more outputs differ" if len(mismatches) > 1 else ""
            raise VerificationError(f"{where}: {mismatches[0].message}{others}")


def judge(
    original: Reference,
    loaded: ir.Model,
    seed: int = 0,
    given: Mapping[str, Any] | None = None,
    tolerances: Mapping[str, Tolerance] = TOLERANCES,
) -> Judge:
    """A judge over one set of inputs: those that are given, and random ones.

    Args:
        original: the model as the user gave it, the reference.
        loaded: the same model with static shapes, for which inputs are drawn.

    Raises:
        FeedError: what is given does not fit the model's inputs.
        VerificationError: ONNX Runtime cannot run the model on these inputs.
    """
    feeds = _feeds(loaded, seed, given or {})
    reference, notes = original, []
    try:
        with open_onnxruntime(original):
            pass
    except VerificationError as error:
        reference = loaded.clone()
        notes.append(f"{error}, so the reference is the model as loaded")
    refused: VerificationError | None = None
    for tried in (feeds, *smaller(feeds, given or {})):
        try:
            expected = run_onnxruntime(reference, tried)
        except VerificationError as error:
            refused = refused or error
            continue
        if refused is not None:
            notes.append("the model does not take the integers that were drawn, so it was given zeros and ones")
        return Judge(reference, tried, expected, tolerances, notes)
    raise VerificationError(f"{refused}; give inputs that the model takes with --input") from refused


def _feeds(loaded: ir.Model, seed: int, given: Mapping[str, Any]) -> dict[str, Any]:
    inputs = {str(value.name): value for value in loaded.graph.inputs if is_input(value)}
    for name, array in given.items():
        if name not in inputs:
            raise FeedError(f"--input names {name!r}, which is no input; the inputs are {', '.join(inputs) or 'none'}")
        wanted = static_type(inputs[name])
        if wanted is not None and (str(np.asarray(array).dtype), np.shape(array)) != wanted:
            actual = np.asarray(array)
            raise FeedError(
                f"--input {name} is {actual.dtype} {actual.shape}, and the model is compiled for "
                f"{wanted[0]} {wanted[1]}; give such an array, or the sizes with --shapes"
            )
    return {**random_inputs(loaded, seed, given), **given}
