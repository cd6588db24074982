"""The verification of a compilation: the finished program beside ONNX Runtime, and where it went wrong if it did."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.pipeline.observe import Verify
from graphopt.verify.oracle import run_onnxruntime

if TYPE_CHECKING:
    from graphopt.artifact import Artifact
    from graphopt.pipeline.blame import Trail
    from graphopt.verify.judge import Judge


def given_shapes(source: Any, given: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of given arrays whose inputs leave dimensions open; loading says what is wrong with the rest."""
    import onnx

    if not given:
        return {}
    if isinstance(source, str | os.PathLike) and not str(source).startswith("zoo:"):
        try:
            source = onnx.load(source, load_external_data=False)
        except Exception:  # whatever a file that is no model provokes
            return {}
    if isinstance(source, onnx.ModelProto):
        inputs = [ir.serde.deserialize_value_info_proto(info, None) for info in source.graph.input]
    else:
        inputs = list(source.graph.inputs) if isinstance(source, ir.Model) else []
    open_ones = {str(value.name) for value in inputs if value.shape is None or not value.shape.is_static()}
    return {name: tuple(np.shape(array)) for name, array in given.items() if name in open_ones}


def verify_program(artifact: Artifact, verifier: Verify, model: ir.Model) -> dict[str, float]:
    """Run the program on the inputs of the judge; micro-batches all get the same piece, and each is judged.

    Where the model gives no stable outputs, every step of the passes and of the program is judged for itself.

    Args:
        model: the graph that the program was lowered from.

    Returns:
        The largest error of each output of floats over its largest value.

    Raises:
        VerificationError: it computes something else, unless the verifier keeps that.
    """
    judge = verifier.judge
    assert judge is not None
    count = artifact.program.micro_batches
    feeds = {name: np.concatenate([value] * count) if count > 1 else value for name, value in judge.feeds.items()}
    actual = artifact.session().run(feeds)
    for piece in range(count):
        part = actual if count == 1 else {name: np.split(value, count)[piece] for name, value in actual.items()}
        verifier.require(part, "in the compiled program")
        if judge.lost:
            verifier.fail(_every_step(artifact, judge, model))
            break
    return errors(part, judge.expected)


def _every_step(artifact: Artifact, judge: Judge, model: ir.Model) -> str:
    """What is wrong with a step of the passes or of the program; "" with a note to the judge if nothing is."""
    from graphopt.verify.forced import traced, values_of, wrong_steps

    lost = ", ".join(sorted(judge.lost))
    counts = []
    for what, values in (
        ("the passes", values_of(judge.reference, judge.feeds)),
        ("the program", traced(artifact, model, judge.feeds)),
    ):
        wrong, count = wrong_steps(model, values, judge.feeds, judge.tolerances)
        if wrong:
            return f"{what}, judged step by step because output {lost} has no stable value: {wrong[0].message}"
        if not count:
            return f"output {lost} has no stable value, and no step of {what} can be judged"
        counts.append(f"{count} values of {what}")
    judge.notes.append(f"{' and '.join(counts)} were judged instead, each from the same operands: all agree")
    return ""


def errors_of(model: ir.Model, verifier: Verify) -> dict[str, float]:
    """As `verify_program`, of a rewritten graph in ONNX Runtime."""
    assert verifier.judge is not None
    return errors(run_onnxruntime(model, verifier.judge.feeds), verifier.judge.expected)


def errors(actual: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, float]:
    """The largest error of each output of floats over its largest value."""
    found = {}
    for name, expected in wanted.items():
        comparable = isinstance(expected, np.ndarray) and expected.dtype.kind == "f" and expected.size
        if comparable and actual[name].shape == expected.shape:
            scale = float(np.abs(expected).max()) or 1.0
            found[name] = float(np.abs(np.subtract(actual[name], expected, dtype=np.float64)).max()) / scale
    return found


def whose_fault(
    verifier: Verify, again: Callable[[Trail], object], artifact: Artifact | None, model: ir.Model | None
) -> str:
    """The pass, kernel and node that first computed something else, as the end of a sentence; "" if nobody shows.

    Args:
        again: loads and rewrites the model once more, with an observer.
        artifact: the program, where the passes came to their end.
        model: the graph that it was lowered from.
    """
    from graphopt.pipeline.blame import Trail, wrong_kernel

    judge = verifier.judge
    if judge is None:
        return ""
    trail = Trail(judge.feeds, judge.expected, judge.reference, judge.tolerances, judge.allowed)
    try:
        again(trail)
        if trail.found or artifact is None or model is None:
            return f"; {trail.found}" if trail.found else ""
        kernel = wrong_kernel(artifact, model, judge.feeds, judge.tolerances)
        return f"; the passes agree with ONNX Runtime{', and ' if kernel else ''}{kernel}"
    except GraphoptError:  # what failed once may fail in another way again: the sentence stands without this end
        return ""
