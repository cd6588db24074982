"""From a user's inference model to a step model: loaded for training, with loss, backward pass and update.

load(training=True) -> loss -> differentiate -> optimizer -> microbatch

A model that is a step model already (its graph names a loss in its metadata) is taken as it is.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError
from graphopt.frontend.load import as_given, load
from graphopt.frontend.shapes import infer_shapes
from graphopt.graph.constness import STATE, is_constant, is_input, stored
from graphopt.graph.state import LOSS, Role, next_value, role, states
from graphopt.pipeline.pipeline import Pipeline
from graphopt.training.data.dataset import Signature
from graphopt.training.data.ranges import integer_ranges, labels_input
from graphopt.training.engine import RATE
from graphopt.training.reference import ports

if TYPE_CHECKING:
    import onnx

APPLY = "apply"
"""The input of a step model of micro-batches: whether the update is done after this one, a bool scalar."""

_ZOO = re.compile(r"zoo:(?P<name>.+?)(-b[0-9]+)?")


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a step model is made.

    Attributes:
        batch: samples of one run of the step; of an update, divided by `micro_batches`.
        loss: kind of the loss, as the pass `loss` names it.
        output: the output that the loss compares with the labels; None lets the pass choose.
        optimizer: kind of the optimizer, as the pass `optimizer` names it.
        optimizer_options: further options of that pass, as texts.
        freeze: patterns of the names of parameters that stay as they are.
        shapes: static shapes of inputs, beside the batch.
        micro_batches: how many runs make one update.
    """

    batch: int = 32
    loss: str = "cross-entropy"
    output: str | None = None
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, str] = field(default_factory=dict)
    freeze: Sequence[str] = ()
    shapes: Mapping[str, Sequence[int]] | None = None
    micro_batches: int = 1


@dataclass(frozen=True, slots=True)
class StepModel:
    """A step model, and what the loop has to know of it.

    Attributes:
        model: one pure ONNX model, with the state marked.
        loss: name of the output that is the loss.
        kind: kind of the loss; empty if a step model was given, of which it is not known.
        signature: its data.
        original: the user's inference model; None if a step model was given.
        output: the output of `original` that the loss compares with the labels; None if that is not known.
        notes: sentences on what was assumed or changed.
        micro_batches: how many runs make one update.
    """

    model: ir.Model
    loss: str
    kind: str
    signature: Signature
    original: Path | onnx.ModelProto | ir.Model | None = None
    output: str | None = None
    notes: tuple[str, ...] = ()
    micro_batches: int = 1

    @property
    def roles(self) -> dict[str, Role]:
        """Every state value and its role."""
        return {str(value.name): found for value in states(self.model.graph) if (found := role(value)) is not None}

    def digest(self) -> str:
        """SHA-256 of the graph, its constants, and the names and types of its state, without the state's numbers."""
        digest = hashlib.sha256()
        for line in _lines(self.model.graph):
            digest.update(line)
        return digest.hexdigest()


def build_step(source: Any, options: StepOptions) -> StepModel:
    """Make the step model of `source`, which is as in `graphopt.load`, or a step model.

    Raises:
        GraphoptError: the model cannot be trained, in one sentence that names the node, option or pattern.
    """
    given = as_given(_sized(source, options.batch))
    if LOSS in given.model.graph.metadata_props:
        return from_step_model(given.model, given.notes)
    wanted = _shapes(given.model, options)
    training: dict[str, Any] = {"training": True}
    loaded = load(_sized(source, options.batch), shapes=wanted, **training)
    model = loaded.model
    notes = [*loaded.notes, *freeze(model, options.freeze)]
    result = Pipeline.parse(pipeline(options)).run(model)
    notes += [note for step in result.steps for note in step.notes]
    made = from_step_model(model, tuple(notes))
    output = options.output or next((str(value.name) for value in given.model.graph.outputs), None)
    return StepModel(
        model,
        made.loss,
        options.loss,
        made.signature,
        loaded.original,
        output,
        tuple(notes),
        options.micro_batches,
    )


def pipeline(options: StepOptions) -> str:
    """The passes that make a step of a loaded model, spelled."""
    output = f",output={options.output}" if options.output else ""
    extra = "".join(f",{name}={text}" for name, text in options.optimizer_options.items())
    passes = [
        f"loss{{kind={options.loss}{output}}}",
        "differentiate",
        f"optimizer{{kind={options.optimizer}{extra}}}",
    ]
    if options.micro_batches > 1:
        passes.append(f"microbatch{{count={options.micro_batches}}}")
    return ",".join(passes)


def from_step_model(model: ir.Model, notes: tuple[str, ...] = ()) -> StepModel:
    """What the loop has to know of a finished step model.

    Raises:
        ModelError: it has no scalar loss, no parameter, or metadata that name nothing.
        GraphoptError: an input has no fixed shape.
    """
    graph = model.graph
    if any(value.shape is None for node in graph for value in node.outputs):
        infer_shapes(model)
    name = graph.metadata_props.get(LOSS, "")
    loss = next((value for value in graph.outputs if value.name == name), None)
    if loss is None:
        raise ModelError(f"the loss is named {name!r}, which is no output of the step model; name one")
    if loss.shape is None or len(loss.shape) or loss.dtype is None or not loss.dtype.is_floating_point():
        raise ModelError(f"the loss {name} is {loss.dtype} {loss.shape}, and a scalar of floats is needed; average it")
    for value in states(graph):
        next_value(value, graph)
    if not any(role(value) is Role.PARAMETER for value in states(graph)):
        raise ModelError("the step model has no parameter to train; mark the weights, or freeze fewer")
    special = {RATE, APPLY}
    data = tuple(port for port in ports(model) if port.name not in special)
    return StepModel(model, name, "", Signature(data, labels_input(model), integer_ranges(model)), notes=notes)


def freeze(model: ir.Model, patterns: Sequence[str]) -> list[str]:
    """Make constants of the parameters whose names match; a sentence for each pattern.

    Raises:
        GraphoptError: a pattern matches none, or no parameter is left.
    """
    notes = []
    parameters = [value for value in states(model.graph) if role(value) is Role.PARAMETER]
    for pattern in patterns:
        matching = [value for value in parameters if fnmatch.fnmatchcase(str(value.name), pattern)]
        if not matching:
            names = ", ".join(str(value.name) for value in parameters[:8])
            more = ", ..." if len(parameters) > 8 else ""
            raise GraphoptError(f"--freeze {pattern} matches no parameter; there are {names}{more}")
        for value in matching:
            value.metadata_props.pop(STATE, None)
        notes.append(f"--freeze {pattern}: {len(matching)} of {len(parameters)} parameters stay as they are")
    if parameters and not any(role(value) is Role.PARAMETER for value in parameters):
        raise GraphoptError(f"--freeze {' '.join(patterns)} leaves no parameter to train; freeze fewer")
    return notes


def _sized(source: Any, batch: int) -> Any:
    """A model of the zoo in the size of the batch, where it can be built in any."""
    match = _ZOO.fullmatch(source) if isinstance(source, str) else None
    if match is None or match[2] or batch == 1:
        return source
    sized = f"{source}-b{batch}"
    try:
        as_given(sized)
    except ModelError:  # a trained or shipped model, which has one batch
        return source
    return sized


def _shapes(model: ir.Model, options: StepOptions) -> dict[str, Sequence[int]]:
    """The shapes of all inputs, with the batch where the first axis is open.

    Raises:
        ModelError: an input has another batch.
    """
    found = dict(options.shapes or {})
    for value in filter(is_input, model.graph.inputs):
        name = str(value.name)
        if name in found or value.shape is None or not len(value.shape):
            continue
        first = value.shape[0]
        if isinstance(first, int):
            if first != options.batch:
                raise ModelError(
                    f"input {name} has a fixed batch of {first}, not {options.batch}; export the model with an open "
                    f"batch, or give --batch {first}"
                )
        elif all(isinstance(extent, int) for extent in value.shape[1:]):
            found[name] = (options.batch, *(int(extent) for extent in value.shape[1:]))  # type: ignore[arg-type]
    return found


def _lines(graph: ir.Graph) -> Iterator[bytes]:
    """What a graph computes, line by line."""
    for value in graph.inputs:
        yield f"input {value.name} {value.dtype} {value.shape}\n".encode()
    for value in graph.initializers.values():
        yield f"initializer {value.name} {value.dtype} {value.shape} {sorted(value.metadata_props.items())}\n".encode()
        tensor = stored(value)
        if is_constant(value) and tensor is not None:
            yield np.ascontiguousarray(tensor.numpy()).tobytes()
    for node in graph:
        attributes = sorted((name, _attribute(attribute)) for name, attribute in node.attributes.items())
        names = [[None if value is None else value.name for value in values] for values in (node.inputs, node.outputs)]
        yield json.dumps([node.domain, node.op_type, names, attributes]).encode() + b"\n"
    for value in graph.outputs:
        yield f"output {value.name}\n".encode()


def _attribute(attribute: ir.Attr) -> str:
    if attribute.type == ir.AttributeType.GRAPH:
        return hashlib.sha256(b"".join(_lines(attribute.as_graph()))).hexdigest()
    if attribute.type == ir.AttributeType.TENSOR:
        tensor = attribute.as_tensor()
        return f"{tensor.dtype} {tensor.shape} {hashlib.sha256(tensor.tobytes()).hexdigest()}"
    return str(attribute.value)
