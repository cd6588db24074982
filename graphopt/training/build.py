"""From a user's inference model to a step model: loaded for training, with loss, backward pass and update.

load(training=True) -> loss -> mixed-precision -> sparse-training -> differentiate -> optimizer -> microbatch

A model that is a step model already (its graph names a loss in its metadata) is taken as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError, PipelineError
from graphopt.frontend.load import Loaded, as_given, load
from graphopt.frontend.shapes import infer_shapes
from graphopt.graph.constness import is_constant, is_input, stored
from graphopt.graph.state import CORRECT, LOSS, Role, next_value, role, states
from graphopt.passes.training.sparse.parameter import sparse_parameters
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.spelling import split
from graphopt.training.data.dataset import Signature
from graphopt.training.data.ranges import integer_ranges, labels_input
from graphopt.training.engine import COUNT, RATE
from graphopt.training.open_batch import fixed_batch, open_batch
from graphopt.training.reference import ports

if TYPE_CHECKING:
    import onnx

APPLY = "apply"
"""The input of a step model of micro-batches: whether the update is done after this one, a bool scalar."""

LEARNED = (Role.PARAMETER, Role.STATISTIC)
"""Roles of what the trained model holds."""

_ZOO = re.compile(r"zoo:(?P<name>.+?)(-b[0-9]+)?")


@dataclass(frozen=True, slots=True)
class StepOptions:
    """How a step model is made.

    Attributes:
        batch: samples of one run of the step.
        loss: kind of the loss, as the pass `loss` names it.
        output: the output that the loss compares with the labels; None lets the pass choose.
        loss_options: further options of that pass, as texts.
        optimizer: kind of the optimizer, as the pass `optimizer` names it.
        optimizer_options: further options of that pass, as texts.
        freeze: patterns of the names of parameters that stay as they are.
        shapes: static shapes of inputs, beside the batch.
        micro_batches: how many runs make one update; above 1, the step has an input that says when it is made.
        precision: type of the 16-bit numbers, as the pass `mixed-precision` names it; fp32 has none.
        precision_options: further options of that pass, as texts.
        sparse_options: options of the pass `sparse-training`; None trains all weights.
    """

    batch: int = 32
    loss: str = "cross-entropy"
    output: str | None = None
    loss_options: Mapping[str, str] = field(default_factory=dict)
    optimizer: str = "sgd"
    optimizer_options: Mapping[str, str] = field(default_factory=dict)
    freeze: Sequence[str] = ()
    shapes: Mapping[str, Sequence[int]] | None = None
    micro_batches: int = 1
    precision: str = "fp32"
    precision_options: Mapping[str, str] = field(default_factory=dict)
    sparse_options: Mapping[str, str] | None = None


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
    """

    model: ir.Model
    loss: str
    kind: str
    signature: Signature
    original: Path | onnx.ModelProto | ir.Model | None = None
    output: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def correct(self) -> str | None:
        """The output that counts right predictions; None if there is none."""
        named = self.model.graph.metadata_props.get(CORRECT, COUNT)
        return named if any(value.name == named for value in self.model.graph.outputs) else None

    @property
    def roles(self) -> dict[str, Role]:
        """Every state value and its role."""
        return {str(value.name): found for value in states(self.model.graph) if (found := role(value)) is not None}

    @property
    def learned(self) -> frozenset[str]:
        """Names of what the trained model holds; of a sparse parameter that of the dense one."""
        names = {name for name, role in self.roles.items() if role in LEARNED}
        sparse = sparse_parameters(self.model.graph)
        return frozenset((names - {each.values for each in sparse}) | {each.name for each in sparse})

    def digest(self) -> str:
        """SHA-256 of the graph, its constants, and the names and types of its state, without the state's numbers."""
        digest = hashlib.sha256()
        for line in _lines(self.model.graph):
            digest.update(line)
        return digest.hexdigest()


def build_step(source: Any, options: StepOptions, example_inputs: Any = None) -> StepModel:
    """Make the step model of `source`, which is as in `graphopt.load`, or a step model.

    Raises:
        GraphoptError: the model cannot be trained, in one sentence that names the node, option or pattern.
    """
    given = _sized(source, options.batch, example_inputs)
    if LOSS in given.model.graph.metadata_props:
        return from_step_model(given.model, given.notes)
    model, opened = _with_batch(given.model, options)
    shapes = _shapes(model, options)
    loaded = load(model if opened else given.original, shapes=shapes, training=True, freeze=options.freeze)
    result = Pipeline.parse(pipeline(options)).run(loaded.model)
    notes = (*opened, *loaded.notes, *(note for step in result.steps for note in step.notes))
    made = from_step_model(loaded.model, notes)
    scores = options.output or next((str(value.name) for value in given.model.graph.outputs), None)
    return replace(made, kind=options.loss, original=given.original, output=scores)


def step_of(
    source: Any,
    *,
    batch: int = 32,
    micro_batches: int = 1,
    loss: str = "cross-entropy",
    optimizer: str = "sgd{momentum=0.9}",
    precision: str = "fp32",
    shapes: Mapping[str, Sequence[int]] | None = None,
) -> StepModel:
    """The step model of `source`, with options as the command line spells them; errors are those of `build_step`."""
    options = spelled_options(
        batch=batch, micro_batches=micro_batches, loss=loss, optimizer=optimizer, precision=precision, shapes=shapes
    )
    return build_step(source, options)


def spelled_options(
    *,
    batch: int,
    micro_batches: int,
    loss: str,
    optimizer: str,
    precision: str,
    optimizer_options: Mapping[str, str] = MappingProxyType({}),
    **others: Any,
) -> StepOptions:
    """The options of a step whose kinds are spelled with options of their own: `adamw{beta2=0.99}`.

    Args:
        batch: samples of one update.
        optimizer_options: further options of the pass `optimizer`.
        others: fields of `StepOptions`.

    Raises:
        GraphoptError: a number is below 1, the batch has no such equal parts, or a kind is spelled wrongly.
    """
    for name, number in (("batch", batch), ("micro_batches", micro_batches)):
        if number < 1:
            raise GraphoptError(f"{name} is {number}; give 1 or more")
    if batch % micro_batches:
        raise GraphoptError(f"a batch of {batch} has no {micro_batches} equal parts; give a multiple of them")
    (kind, loss_options), (formula, formula_options) = kind_of(loss, "loss"), kind_of(optimizer, "optimizer")
    numbers, number_options = kind_of(precision, "precision")
    return StepOptions(
        batch=batch // micro_batches,
        loss=kind,
        loss_options=loss_options,
        optimizer=formula,
        optimizer_options={**formula_options, **optimizer_options},
        micro_batches=micro_batches,
        precision=numbers,
        precision_options=number_options,
        **others,
    )


def pipeline(options: StepOptions) -> str:
    """The passes that make a step of a loaded model, spelled."""
    loss = {"kind": options.loss, **({"output": options.output} if options.output else {}), **options.loss_options}
    optimizer = {"kind": options.optimizer, **options.optimizer_options}
    shrinking = []
    if options.precision != "fp32":
        shrinking.append(f"mixed-precision{_spelled({'to': options.precision, **options.precision_options})}")
    if options.sparse_options is not None:
        sparse = f"sparse-training{_spelled(options.sparse_options)}"
        # Parameters of 16 bits become sparse as such; 16-bit copies are made of what is sparse.
        shrinking.insert(len(shrinking) if options.precision_options.get("master") == "false" else 0, sparse)
    passes = [f"loss{_spelled(loss)}", *shrinking, "differentiate", f"optimizer{_spelled(optimizer)}"]
    if options.micro_batches > 1:
        passes.append(f"microbatch{{count={options.micro_batches}}}")
    return ",".join(passes)


def _spelled(options: Mapping[str, str]) -> str:
    return "{" + ",".join(f"{name}={text}" for name, text in options.items()) + "}"


def kind_of(text: str, what: str) -> tuple[str, dict[str, str]]:
    """The kind and the options of `adamw{beta2=0.99}`.

    Raises:
        GraphoptError: it is not spelled so; `what` says what it is.
    """
    try:
        ((kind, options),) = split(text)
    except (PipelineError, ValueError):
        raise GraphoptError(f"cannot read the {what} {text!r}; write it as NAME{{option=value}}") from None
    return kind, options


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


def _sized(source: Any, batch: int, example_inputs: Any) -> Loaded:
    """The model as given; one of the zoo in the size of the batch, if it can be built in any."""
    match = _ZOO.fullmatch(source) if isinstance(source, str) else None
    if match is not None and not match[2] and batch > 1:
        with contextlib.suppress(ModelError):  # a trained or shipped model has one batch
            return as_given(f"{source}-b{batch}")
    return as_given(source, example_inputs)


def _with_batch(model: ir.Model, options: StepOptions) -> tuple[ir.Model, list[str]]:
    """The model, with an open batch if it has another than the one asked for, and a sentence on that.

    Raises:
        ModelError: its batch cannot be opened.
    """
    fixed = fixed_batch(model)
    if fixed is None or fixed == options.batch or options.shapes:
        return model, []
    try:
        opened = open_batch(model)
    except ModelError as error:
        raise ModelError(
            f"the model has a fixed batch of {fixed}, not {options.batch}, and {error}; export it with an open batch, "
            f"or give --batch {fixed}"
        ) from error
    return opened, [f"the model was exported for a batch of {fixed}; its batch was opened, and runs gave the same"]


def _shapes(model: ir.Model, options: StepOptions) -> dict[str, Sequence[int]]:
    """The shapes of all inputs, with the batch where the first axis is open."""
    found = dict(options.shapes or {})
    for value in filter(is_input, model.graph.inputs):
        name = str(value.name)
        if name in found or value.shape is None or not len(value.shape) or isinstance(value.shape[0], int):
            continue
        rest = [extent for extent in value.shape[1:] if isinstance(extent, int)]
        if len(rest) == len(value.shape) - 1:
            found[name] = (options.batch, *rest)
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
