"""One stage: its segments lowered, its constants collected, its values planned into one arena."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost.workload import KernelPlan
from graphopt.distributed.partition import Part
from graphopt.errors import GraphoptError
from graphopt.graph import state
from graphopt.graph.analysis import static_type
from graphopt.graph.constness import constant_array, is_constant, stored
from graphopt.graph.fallback_models import FallbackModel, fallback_models, observed
from graphopt.graph.guards import Select
from graphopt.graph.segments import Guard, NodeRun, node_runs
from graphopt.lowering.memory.arena import placed
from graphopt.lowering.memory.stage_problem import stage_problem
from graphopt.lowering.memory.steps import used
from graphopt.lowering.select_places import place_sides
from graphopt.lowering.state import Update, place_updates
from graphopt.program.program import (
    ALIGNMENT,
    FallbackSegment,
    KernelCall,
    NativeSegment,
    Place,
    Segment,
    SelectSegment,
    Stage,
    State,
    Value,
)
from graphopt.program.weights import save_weights
from graphopt.runtime.devices import host
from graphopt.verify import draw_demands
from graphopt.verify.draws import random_array

if TYPE_CHECKING:
    from graphopt.lowering.target import Target


SPINNING = 4
"""Idle threads of a fallback segment spin if it has this many nodes per kernel call of the segment that follows it."""


@dataclass(slots=True)
class BuiltStage:
    """A stage with the contents of its files."""

    stage: Stage
    functions: dict[str, Any]
    constants: dict[str, NDArray[Any]]
    fallbacks: dict[str, bytes]
    notes: list[str]
    plans: dict[str, KernelPlan]
    initial: dict[str, NDArray[Any]]

    def write(self, folder: Path, target: Target) -> dict[str, bytes | Path]:
        """Generate code and write weights below `folder`; returns the files of the artifact by name."""
        files: dict[str, bytes | Path] = dict(self.fallbacks)
        if self.stage.weights:  # first: meanwhile the target may compile
            path = folder / self.stage.weights
            save_weights(path, self.constants)
            files[self.stage.weights] = path
        if self.stage.initial:
            path = folder / self.stage.initial
            save_weights(path, self.initial)
            files[self.stage.initial] = path
        if self.stage.library:
            files[self.stage.library] = target.library(self.functions)
        return files


@dataclass(slots=True)
class _Draft:
    values: dict[str, Value] = field(default_factory=dict)
    segments: list[Segment] = field(default_factory=list)
    functions: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    fallbacks: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    plans: dict[str, KernelPlan] = field(default_factory=dict)
    initial: dict[str, NDArray[Any]] = field(default_factory=dict)


def build_stage(
    index: int,
    model: ir.Model,
    part: Part,
    refusals: Mapping[ir.Node, str],
    target: Target,
    chosen: Mapping[ir.Node, Select] = MappingProxyType({}),
) -> BuiltStage:
    """Lower the nodes of `part` and plan its memory.

    Args:
        refusals: why a node is not native.
        chosen: the nodes that select among values; those that are refused too have a side that ONNX Runtime computes.
    """
    draft = _Draft()
    for value in part.inputs:
        _declare(draft, value)
    updates = _states(draft, model, part)
    replaced = {update.becomes for update in updates}
    kept = [
        *part.outputs,
        *state.gradients(part.nodes),
        *(value for node in part.nodes if node in chosen for value in node.outputs),
    ]
    guarded = {node: (*part.guarded.get(node, ()), *chosen[node].guard) for node in part.nodes if node in chosen}
    runs = node_runs(part.nodes, refusals, kept, {**part.guarded, **guarded}, chosen.keys() - refusals.keys())
    known = draw_demands.Model(model)
    segments: list[list[Segment]] = [[] for _ in runs]
    for number, run in enumerate(runs):
        if run.native:
            segments[number] = [_native(draft, model, run, target, f"s{index}_{number}_")]
    # Fallback runs come after native ones: constants that kernels also read are stored once, and kernel operands have
    # shapes.
    for number, run in enumerate(runs):
        if not run.native and not run.select:
            models = fallback_models(model, run, kept, draft.constants, host.default_threads())
            segments[number] = [
                _fallback(draft, fallback, known, _file(index, number, place)) for place, fallback in enumerate(models)
            ]
    for number, run in enumerate(runs):
        for node in run.nodes:
            if node in chosen:
                segments[number].append(_select(draft, node, chosen[node], part.guarded.get(node, ())))
    draft.segments = _spinning([segment for group in segments for segment in group])
    place_sides(draft.segments, draft.values, {str(value.name) for value in (*part.inputs, *part.outputs)})
    for value in part.outputs:
        if is_constant(value) and str(value.name) not in draft.constants:
            draft.constants[str(value.name)] = array = constant_array(value)
            draft.values[str(value.name)] = Value(str(value.name), str(array.dtype), array.shape, Place.WEIGHT)
    inputs = tuple(str(value.name) for value in part.inputs)
    outputs = tuple(str(value.name) for value in part.outputs if str(value.name) not in replaced)
    states = place_updates(
        updates,
        draft.segments,
        draft.values,
        {*inputs, *outputs},
        lambda source, result: _copy(draft, target, source, result, f"s{index}_copy"),
    )
    values, arena, bound = _plan(draft, inputs, outputs, states)
    stage = Stage(
        index,
        values,
        inputs,
        outputs,
        tuple(draft.segments),
        arena,
        bound,
        f"stage_{index}.{target.extension}" if draft.functions else "",
        f"weights_{index}.safetensors" if draft.constants else "",
        states,
        sum(-(-draft.values[state.value].nbytes // ALIGNMENT) * ALIGNMENT for state in states),
        f"state_{index}.safetensors" if states else "",
    )
    return BuiltStage(stage, draft.functions, draft.constants, draft.fallbacks, draft.notes, draft.plans, draft.initial)


def _states(draft: _Draft, model: ir.Model, part: Part) -> list[Update]:
    """Declare the state values of the model, each in memory of its own, with what they hold before the first run."""
    end, updates = 0, []
    for value in state.states(model.graph):
        tensor = stored(value)
        assert tensor is not None
        array = np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape.numpy())
        name, new = str(value.name), state.next_value(value, model.graph)
        draft.values[name] = declared = Value(name, str(array.dtype), array.shape, Place.STATE, end)
        draft.initial[name] = array
        end += -(-declared.nbytes // ALIGNMENT) * ALIGNMENT
        updates.append(Update(name, str(state.role(value)), "" if new is None else str(new.name)))
    return updates


def _copy(draft: _Draft, target: Target, source: Value, result: Value, prefix: str) -> KernelCall:
    """A call that copies `source` into `result`."""
    lowered = target.copy(source, result, f"{prefix}{len(draft.values)}_")
    draft.functions.update(lowered.functions)
    draft.plans.update(lowered.plans)
    for name, value in lowered.values.items():
        draft.values.setdefault(name, value)
    return lowered.calls[0]


def _declare(draft: _Draft, value: ir.Value) -> None:
    name = str(value.name)
    if name in draft.values:
        return
    tensor_type = static_type(value)
    if tensor_type is None:
        draft.values[name] = Value(name, "object", None, Place.HOST)
    else:
        draft.values[name] = Value(name, *tensor_type, Place.ARENA)


def _spinning(segments: Sequence[Segment]) -> list[Segment]:
    """Let the threads of a fallback segment spin where few kernels follow that would lose cores to them.

    A thread that sleeps between the nodes of a segment takes longer to wake than a small node takes.
    """
    adjusted = []
    for segment, following in itertools.zip_longest(segments, segments[1:]):
        if isinstance(segment, FallbackSegment):
            calls = len(following.calls) if isinstance(following, NativeSegment) else 0
            segment = replace(segment, spin=len(segment.reasons) >= SPINNING * max(calls, 1))
        adjusted.append(segment)
    return adjusted


def _both_empty(seen: tuple[str, tuple[int, ...]], inferred: tuple[str, tuple[int, ...]]) -> bool:
    """Whether both have no elements: ONNX Runtime gives what a loop collects in zero iterations arbitrary extents."""
    return seen[0] == inferred[0] and 0 in seen[1] and 0 in inferred[1]


def _declare_result(draft: _Draft, value: ir.Value, seen: tuple[str, tuple[int, ...]] | None, run: NodeRun) -> None:
    """Declare an output of a fallback run: on the host if ONNX Runtime gives another type or shape than was inferred.

    Raises:
        GraphoptError: a kernel reads such a value.
    """
    name, inferred = str(value.name), static_type(value)
    if seen is None or inferred is None or seen == inferred or _both_empty(seen, inferred):
        _declare(draft, value)
    elif name in draft.values:
        node = value.producer()
        raise GraphoptError(
            f"node {node.name if node else run.nodes[0].name} gives {name} as {seen[0]} {seen[1]} in ONNX Runtime, "
            f"and {inferred[0]} {inferred[1]} was inferred; correct the shapes that the model declares"
        )
    else:
        draft.values[name] = Value(name, "object", None, Place.HOST)


def _file(stage: int, number: int, place: int) -> str:
    return f"fallback/stage_{stage}_{number}" + (f"_{place}.onnx" if place else ".onnx")


def _native(draft: _Draft, model: ir.Model, run: NodeRun, target: Target, prefix: str) -> NativeSegment:
    lowered = target.lower(run.nodes, run.inputs, run.outputs, model.opset_imports, prefix)
    for name, value in lowered.values.items():
        draft.values.setdefault(name, value)
    draft.functions.update(lowered.functions)
    draft.constants.update(lowered.constants)
    draft.notes.extend(lowered.notes)
    draft.plans.update(lowered.plans)
    return NativeSegment(tuple(lowered.calls), _named(run.guard))


def _select(draft: _Draft, node: ir.Node, select: Select, guard: Guard) -> SelectSegment:
    """The segment that selects one of two values for each output; a side that ONNX Runtime computes is the output."""
    sides = [select.outputs if side is None else side for side in (select.when_true, select.when_false)]
    for value in (*select.outputs, *sides[0], *sides[1]):
        if not is_constant(value):
            _declare(draft, value)
        elif str(value.name) not in draft.values:  # it may be a constant already: a fallback model reads it too
            array = constant_array(value)
            draft.constants.setdefault(str(value.name), array)
            draft.values[str(value.name)] = Value(str(value.name), str(array.dtype), array.shape, Place.WEIGHT)
    outputs, when_true, when_false = (tuple(str(value.name) for value in side) for side in (select.outputs, *sides))
    origin = (str(node.name),)
    return SelectSegment(str(select.condition.name), outputs, when_true, when_false, origin, _named(guard))


def _named(guard: Guard) -> tuple[tuple[str, bool], ...]:
    return tuple((str(condition.name), wanted) for condition, wanted in guard)


def _fallback(draft: _Draft, fallback: FallbackModel, known: draw_demands.Model, file: str) -> FallbackSegment:
    for value in fallback.run.inputs:
        _declare(draft, value)
    generator = np.random.default_rng(0)
    seen = observed(fallback, lambda value: random_array(value, known.demand(value), generator))
    for value in fallback.run.outputs:
        _declare_result(draft, value, seen.get(str(value.name)), fallback.run)
    draft.fallbacks[file] = fallback.data
    draft.constants.update(fallback.weights)
    inputs = tuple(str(value.name) for value in fallback.run.inputs)
    outputs = tuple(str(value.name) for value in fallback.run.outputs)
    guard = _named(fallback.run.guard)
    return FallbackSegment(file, inputs, outputs, fallback.run.reasons, tuple(fallback.weights), guard=guard)


def _plan(
    draft: _Draft, inputs: Sequence[str], outputs: Sequence[str], states: Sequence[State]
) -> tuple[tuple[Value, ...], int, int]:
    """Plan the arena; every ARENA value is live from its first write to its last read.

    Returns the values that are used, with their offsets, the bytes of the arena, and a lower bound on them.
    """
    staged = stage_problem(draft.segments, draft.values, inputs, outputs)
    values, arena = placed(staged, draft.values)
    becomes = (state.becomes for state in states if state.becomes)
    kept = used(draft.segments, values, (*inputs, *outputs, *draft.constants, *draft.initial, *becomes))
    return tuple(value for value in values.values() if value.name in kept), arena.nbytes, arena.lower_bound
