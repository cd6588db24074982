"""One stage: its segments lowered, its constants collected, its values planned into one arena."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.analysis import static_type
from graphopt.partition import Part
from graphopt.program import FallbackSegment, NativeSegment, Place, Segment, Stage, Value
from graphopt.segments import NodeRun, node_runs, read_by
from graphopt.solve.memory import Buffer, MemoryProblem, solve
from graphopt.weights import save_weights
from graphopt.work import Plan

if TYPE_CHECKING:
    from graphopt.targets.base import Target


@dataclass(slots=True)
class BuiltStage:
    """A stage with everything that goes into its files."""

    stage: Stage
    functions: dict[str, Any]
    constants: dict[str, NDArray[Any]]
    fallbacks: dict[str, bytes]
    notes: list[str]
    plans: dict[str, Plan]

    def write(self, folder: Path, target: Target) -> dict[str, bytes | Path]:
        """Generate code and write weights below `folder`; the files of the artifact by name."""
        files: dict[str, bytes | Path] = dict(self.fallbacks)
        if self.stage.weights:  # first: meanwhile the target may compile
            path = folder / self.stage.weights
            save_weights(path, self.constants)
            files[self.stage.weights] = path
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
    plans: dict[str, Plan] = field(default_factory=dict)


def build_stage(index: int, model: ir.Model, part: Part, refusals: Mapping[ir.Node, str], target: Target) -> BuiltStage:
    """Lower the nodes of `part` and plan its memory."""
    draft = _Draft()
    for value in part.inputs:
        _declare(draft, value)
    for number, run in enumerate(node_runs(part.nodes, refusals, part.outputs)):
        if run.native:
            _add_native(draft, model, run, target, f"s{index}_{number}_")
        else:
            _add_fallback(draft, model, run, f"fallback/stage_{index}_{number}.onnx")
    for value in part.outputs:
        if value.const_value is not None:
            draft.constants[str(value.name)] = array = value.const_value.numpy()
            draft.values[str(value.name)] = Value(str(value.name), str(array.dtype), array.shape, Place.WEIGHT)
    inputs = tuple(str(value.name) for value in part.inputs)
    outputs = tuple(str(value.name) for value in part.outputs)
    values, arena, bound = _plan(draft, inputs, outputs)
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
    )
    return BuiltStage(stage, draft.functions, draft.constants, draft.fallbacks, draft.notes, draft.plans)


def _declare(draft: _Draft, value: ir.Value) -> None:
    name = str(value.name)
    if name in draft.values:
        return
    found = static_type(value)
    if found is None:
        draft.values[name] = Value(name, "object", None, Place.HOST)
    else:
        draft.values[name] = Value(name, *found, Place.ARENA)


def _add_native(draft: _Draft, model: ir.Model, run: NodeRun, target: Target, prefix: str) -> None:
    lowered = target.lower(run.nodes, run.inputs, run.outputs, model.opset_imports, prefix)
    for name, value in lowered.values.items():
        draft.values.setdefault(name, value)
    draft.functions.update(lowered.functions)
    draft.constants.update(lowered.constants)
    draft.notes.extend(lowered.notes)
    draft.plans.update(lowered.plans)
    draft.segments.append(NativeSegment(tuple(lowered.calls)))


def _add_fallback(draft: _Draft, model: ir.Model, run: NodeRun, file: str) -> None:
    for value in (*run.inputs, *run.outputs):
        _declare(draft, value)
    draft.fallbacks[file] = extract(model, run)
    inputs = tuple(str(value.name) for value in run.inputs)
    outputs = tuple(str(value.name) for value in run.outputs)
    draft.segments.append(FallbackSegment(file, inputs, outputs, run.reasons))


def extract(model: ir.Model, run: NodeRun) -> bytes:
    """The nodes of `run` as an ONNX model of their own, with their constants and the functions they call."""
    import onnx

    graph = onnx.GraphProto(name="fallback")
    graph.node.extend(ir.serde.serialize_node(node) for node in run.nodes)
    graph.input.extend(ir.serde.serialize_value(value) for value in run.inputs)
    graph.output.extend(ir.serde.serialize_value(value) for value in run.outputs)
    graph.initializer.extend(ir.serde.serialize_tensor(value.const_value) for value in _constants_of(run))
    functions = [ir.serde.serialize_function(function) for function in model.functions.values()]
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    proto = onnx.helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=model.ir_version)
    return bytes(proto.SerializeToString())


def _constants_of(run: NodeRun) -> Iterable[Any]:
    seen: dict[ir.Value, None] = {}
    inside = {value for node in run.nodes for value in node.outputs}
    for node in run.nodes:
        for value in read_by(node):
            if value.const_value is not None and value not in inside:
                seen[value] = None
    for value in seen:
        assert value.const_value is not None
        if value.const_value.name != value.name:
            value.const_value.name = value.name
        yield value


def _plan(draft: _Draft, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[tuple[Value, ...], int, int]:
    """Offsets for every ARENA value, from when it is first written to when it is last read."""
    steps: list[tuple[str, ...]] = [tuple(inputs)]
    for segment in draft.segments:
        if isinstance(segment, NativeSegment):
            steps.extend((*call.inputs, *call.outputs, *call.scratch) for call in segment.calls)
        else:
            steps.append((*segment.inputs, *segment.outputs))
    steps.append(tuple(outputs))
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, names in enumerate(steps):
        for name in names:
            value = draft.values[name]
            while value.place is Place.VIEW:
                value = draft.values[value.of]
            if value.place is Place.ARENA:
                first.setdefault(value.name, step)
                last[value.name] = step
    placed = list(first)
    problem = MemoryProblem(tuple(Buffer(draft.values[n].nbytes, first[n], last[n]) for n in placed))
    solution = solve(problem)
    offsets = dict(zip(placed, solution.offsets, strict=True))
    used = {name for names in steps for name in names}
    shown = [draft.values[name] for name in used]
    while shown := [draft.values[value.of] for value in shown if value.place is Place.VIEW]:
        used |= {value.name for value in shown}
    used |= set(draft.constants)
    values = tuple(
        replace(value, offset=offsets[value.name]) if value.name in offsets else value
        for value in draft.values.values()
        if value.name in used
    )
    return values, solution.arena_bytes, solution.lower_bound
