"""Locate the fault of a compilation: in loading, in a pass or in a kernel, and the first wrong node.

The model is loaded and rewritten again, and ONNX Runtime runs it after every pass with all values as outputs; then the
program runs call by call, compared with the last of these models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import VerificationError
from graphopt.pipeline.bisect import first_difference, with_all_outputs
from graphopt.pipeline.pipeline import Event
from graphopt.verify.oracle import TOLERANCES, Tolerance, compare, own_copy, run_onnxruntime

if TYPE_CHECKING:
    from graphopt.artifact import Artifact
    from graphopt.verify.oracle import Reference


@dataclass
class Trail:
    """An observer that records in `fault` the first pass after which the outputs differ, and the first wrong node."""

    feeds: Mapping[str, Any]
    expected: Mapping[str, Any]
    original: Reference
    tolerances: Mapping[str, Tolerance] = field(default_factory=lambda: TOLERANCES)
    allowed: Mapping[str, float] = field(default_factory=dict)
    fault: str = ""
    _before: ir.Model | None = None

    def __call__(self, event: Event) -> None:
        """Compare the outputs of this model with the expected ones."""
        if self.fault or (event.step is not None and not event.step.modified):
            return
        actual = run_onnxruntime(event.model, self.feeds)
        if not compare(self.expected, actual, self.tolerances, self.allowed):
            self._before = event.model.clone()
            return
        before = self._before if self._before is not None else own_copy(self.original)
        what = "loading the model" if event.step is None else f"pass {event.step.spelling}"
        self.fault = f"{what} changed the numbers"
        try:
            difference = first_difference(before, event.model.clone(), self.feeds, self.tolerances)
        except VerificationError:  # a value that ONNX Runtime does not hand out
            difference = None
        if difference is not None:
            self.fault += f", and {difference.sentence}"


def wrong_kernel(
    artifact: Artifact, model: ir.Model, feeds: Mapping[str, Any], tolerances: Mapping[str, Tolerance] = TOLERANCES
) -> str:
    """The first kernel call whose result differs from that of `model`, the output of the last pass; "" if none does.

    A fused kernel computes several nodes, and writes the value of one of them.
    """
    try:
        values = run_onnxruntime(with_all_outputs(model.clone()), feeds)
    except VerificationError:
        return ""
    outputs_of = {str(node.name): [str(v.name) for v in node.outputs] for node in model.graph}
    for origin, written in artifact.session().trace(feeds):
        candidates = [name for node in origin for name in outputs_of.get(node, []) if name in values]
        for name, array in written.items():
            if not isinstance(array, np.ndarray):
                continue
            names = [name] if name in values else candidates
            same = [values[key] for key in names if np.shape(values[key]) == array.shape]
            same = [value for value in same if value.dtype == array.dtype]
            if same and all(compare({name: value}, {name: array}, tolerances) for value in same):
                return f"the kernel of {', '.join(origin)} is the first that computes something else"
    return ""
