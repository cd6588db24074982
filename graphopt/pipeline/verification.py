"""Verify a compiled program against ONNX Runtime, and locate the fault if they disagree."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError
from graphopt.graph import state
from graphopt.pipeline.observe import Verify
from graphopt.verify.oracle import run_onnxruntime

if TYPE_CHECKING:
    from graphopt.artifact import Artifact
    from graphopt.pipeline.blame import Trail
    from graphopt.verify.judge import Judge


def given_shapes(source: Any, given: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shapes of the given arrays whose inputs have open dimensions; loading reports what is wrong with the others."""
    import onnx

    from graphopt.storage.restore import is_compressed_file, skeleton

    if not given:
        return {}
    if isinstance(source, str | os.PathLike) and not str(source).startswith("zoo:"):
        try:
            compressed = is_compressed_file(source)
            source = skeleton(source) if compressed else onnx.load(source, load_external_data=False)
        except Exception:  # whatever a file that is no model provokes
            return {}
    if isinstance(source, onnx.ModelProto):
        inputs = [ir.serde.deserialize_value_info_proto(info, None) for info in source.graph.input]
    else:
        inputs = list(source.graph.inputs) if isinstance(source, ir.Model) else []
    open_ones = {str(value.name) for value in inputs if value.shape is None or not value.shape.is_static()}
    return {name: tuple(np.shape(array)) for name, array in given.items() if name in open_ones}


def verify_program(artifact: Artifact, verifier: Verify, model: ir.Model) -> dict[str, float]:
    """Run the program on the inputs of the judge; all micro-batches get the same inputs, and each is judged.

    Where an output has no stable value, every step of the passes and of the program is judged separately.

    Args:
        model: the graph that the program was lowered from.

    Returns:
        The largest error of each floating-point output, relative to its largest value.

    Raises:
        VerificationError: the outputs of the program differ, unless the verifier keeps failures.
    """
    judge = verifier.judge
    assert judge is not None
    count = artifact.program.micro_batches
    feeds = {name: np.concatenate([value] * count) if count > 1 else value for name, value in judge.feeds.items()}
    session = artifact.session()
    actual = session.run(feeds)
    successors = dict(state.successors(model.graph))
    replaced = session.state() if successors else {}
    for piece in range(count):
        part = actual if count == 1 else {name: np.split(value, count)[piece] for name, value in actual.items()}
        part |= {new: replaced[name] for name, new in successors.items()}
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
    """The relative errors (`errors`) of a rewritten graph that ONNX Runtime runs."""
    assert verifier.judge is not None
    return errors(run_onnxruntime(model, verifier.judge.feeds), verifier.judge.expected)


def errors(actual: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, float]:
    """The largest error of each floating-point output, relative to its largest value."""
    relative_errors = {}
    for name, expected in wanted.items():
        comparable = isinstance(expected, np.ndarray) and expected.dtype.kind == "f" and expected.size
        if comparable and actual[name].shape == expected.shape:
            scale = float(np.abs(expected).max()) or 1.0
            relative_errors[name] = float(np.abs(np.subtract(actual[name], expected, dtype=np.float64)).max()) / scale
    return relative_errors


def whose_fault(
    verifier: Verify, again: Callable[[Trail], object], artifact: Artifact | None, model: ir.Model | None
) -> str:
    """The first wrong pass, kernel and node, as the end of a sentence; "" if none is identified.

    Args:
        again: loads and rewrites the model once more, with an observer.
        artifact: the program, if the passes completed.
        model: the graph that the program was lowered from.
    """
    from graphopt.pipeline.blame import Trail, wrong_kernel

    judge = verifier.judge
    if judge is None:
        return ""
    trail = Trail(judge.feeds, judge.expected, judge.reference, judge.tolerances, judge.allowed)
    try:
        again(trail)
        if trail.fault or artifact is None or model is None:
            return f"; {trail.fault}" if trail.fault else ""
        kernel = wrong_kernel(artifact, model, judge.feeds, judge.tolerances)
        return f"; the passes agree with ONNX Runtime{', and ' if kernel else ''}{kernel}"
    except GraphoptError:  # the second run may fail in another way: the sentence stands without this end
        return ""
