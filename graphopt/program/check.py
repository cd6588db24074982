"""Validation of a Program before it runs: arena bounds, known names and dtypes, and a schedule without deadlock."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from graphopt.program import schedule
from graphopt.program.guards import guard_problems
from graphopt.program.program import (
    ALIGNMENT,
    ITEM_BYTES,
    MAX_BYTES,
    FallbackSegment,
    KernelCall,
    Launch,
    NativeSegment,
    Place,
    Port,
    Program,
    SelectSegment,
    Stage,
    Value,
    Verb,
)
from graphopt.program.states import state_problems
from graphopt.program.views import base_of, located

MAX_GRID, MAX_THREADS, MAX_SHARED = (1 << 31) - 1, 1024, 1 << 20
"""Upper bounds on any device: blocks along a grid axis, threads per block, bytes of shared memory per block."""

_SYMBOL = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,511}", re.ASCII)
_FILE = re.compile(r"[A-Za-z0-9_.-]{1,100}(/[A-Za-z0-9_.-]{1,100}){0,3}", re.ASCII)


def file_name_problem(name: str) -> str | None:
    """Why `name` may not be the name of a file inside an artifact, or None.

    Only relative names of plain characters: `program.json`, `fallback/segment_0.onnx`.
    """
    if not _FILE.fullmatch(name) or any(part.startswith(".") for part in name.split("/")):
        return f"the file name {name[:100]!r} is not allowed (letters, digits, '_', '-', '.' and '/', nothing hidden)"
    return None


def problems(program: Program) -> list[str]:
    """Every reason, as a sentence, why `program` must not run; empty if it may."""
    reasons = list(_program_problems(program))
    for stage in program.stages:
        reasons += [f"stage {stage.index}: {reason}" for reason in _stage_problems(stage)]
    if not reasons:
        reasons += _flow_problems(program)
    if not reasons and (stuck := schedule.deadlock(program.actions)) is not None:
        reasons.append(stuck.partition("\n")[0])
    return reasons


def _program_problems(program: Program) -> Iterator[str]:
    if not program.stages:
        yield "the program has no stage"
    for position, stage in enumerate(program.stages):
        if stage.index != position:
            yield f"stage {stage.index} stands at position {position}"
    if len(program.actions) != len(program.stages):
        yield f"there are {len(program.actions)} action lists for {len(program.stages)} stages"
    if program.micro_batches < 1:
        yield f"there are {program.micro_batches} micro-batches"
    for kind, ports in (("input", program.inputs), ("output", program.outputs)):
        if len({port.name for port in ports}) != len(ports):
            yield f"two {kind}s have the same name"
        for port in ports:
            if port.shape is not None and port.dtype not in ITEM_BYTES:
                yield f"{kind} {port.name!r} has the unknown type {port.dtype!r}"
            if port.shape is not None and min(port.shape, default=0) < 0:
                yield f"{kind} {port.name!r} has a negative dimension"
            if program.micro_batches > 1 and not port.shape:
                yield f"{kind} {port.name!r} has no first axis to split into {program.micro_batches} micro-batches"


def _stage_problems(stage: Stage) -> Iterator[str]:
    values = {value.name: value for value in stage.values}
    if len(values) != len(stage.values):
        yield "two values have the same name"
    if not 0 <= stage.arena_lower_bound <= stage.arena_bytes <= MAX_BYTES:
        yield f"an arena of {stage.arena_bytes} bytes with the lower bound {stage.arena_lower_bound} is impossible"
    for value in stage.values:
        yield from _value_problems(value, values, stage)
    for kind, names in (("input", stage.inputs), ("output", stage.outputs)):
        if len(set(names)) != len(names):
            yield f"an {kind} is listed twice"
        for name in names:
            if name not in values:
                yield f"{kind} {name!r} is not a value of the stage"
            elif kind == "input" and values[name].place not in (Place.ARENA, Place.HOST):
                yield f"input {name!r} is a {values[name].place} value, which cannot be fed"
    for file in (stage.library, stage.weights, stage.initial):
        if file and (reason := file_name_problem(file)) is not None:
            yield reason
    for segment in stage.segments:
        if isinstance(segment, NativeSegment):
            for call in segment.calls:
                yield from _call_problems(call, values, stage)
        elif isinstance(segment, SelectSegment):
            yield from _select_problems(segment, values)
        else:
            yield from _fallback_problems(segment, values)
            if segment.weights and not stage.weights:
                yield f"fallback model {segment.model!r} has no weights file"
    calls = [call for segment in stage.segments if isinstance(segment, NativeSegment) for call in segment.calls]
    yield from _recompute_problems(calls)
    if len({bool(call.launches) for call in calls}) > 1:
        yield "some of its kernels run on a device and some do not"
    conditional = any(segment.guard or isinstance(segment, SelectSegment) for segment in stage.segments)
    if conditional and any(call.launches for call in calls):
        yield "a device runs all of its kernels, and some depend on a condition"
    yield from guard_problems(stage, values)
    yield from state_problems(stage, values)


def _value_problems(value: Value, values: dict[str, Value], stage: Stage) -> Iterator[str]:
    name = repr(value.name)
    if value.place is Place.HOST:
        if value.shape is not None:
            yield f"host value {name} has a fixed shape"
        return
    if value.shape is None:
        yield f"{value.place} value {name} has no shape"
        return
    if value.dtype not in ITEM_BYTES:
        yield f"value {name} has the unknown type {value.dtype!r}"
        return
    if min(value.shape, default=0) < 0 or value.nbytes > MAX_BYTES:
        yield f"value {name} has the impossible shape {value.shape}"
    elif value.place is Place.ARENA:
        if value.offset < 0 or value.offset % ALIGNMENT or value.offset + value.nbytes > stage.arena_bytes:
            yield (
                f"value {name} at offset {value.offset} with {value.nbytes} bytes does not fit, "
                f"aligned to {ALIGNMENT}, into the arena of {stage.arena_bytes} bytes"
            )
    elif value.place is Place.WEIGHT and not stage.weights:
        yield f"weight {name} has no weights file"
    elif value.place is Place.VIEW:
        location = located(value, values)
        if location is None or location[0].shape is None or location[0].dtype not in ITEM_BYTES:
            yield f"view {name} leads to no value with bytes"
        elif value.offset < 0 or value.offset % ALIGNMENT or location[1] + value.nbytes > location[0].nbytes:
            yield (
                f"view {name} of {value.nbytes} bytes at offset {location[1]} does not fit, aligned to {ALIGNMENT}, "
                f"into {location[0].name!r} of {location[0].nbytes} bytes"
            )


def _call_problems(call: KernelCall, values: dict[str, Value], stage: Stage) -> Iterator[str]:
    if not _SYMBOL.fullmatch(call.symbol):
        yield f"{call.symbol[:100]!r} is no function name"
    if not stage.library:
        yield f"kernel {call.symbol!r} has no library"
    for name in (*call.inputs, *call.outputs, *call.scratch):
        if name not in values:
            yield f"kernel {call.symbol!r} uses the unknown value {name!r}"
        elif values[name].place is Place.HOST:
            yield f"kernel {call.symbol!r} uses the host value {name!r}"
    yield from _written_problems(f"kernel {call.symbol!r}", (*call.outputs, *call.scratch), values)
    for read, written in call.in_place:
        if not (read < len(call.inputs) and written < len(call.outputs)):
            yield f"kernel {call.symbol!r} may write input {read} as output {written}, and has no such pair"
    for launch in call.launches:
        yield from _launch_problems(launch, call)


def _recompute_problems(calls: Sequence[KernelCall]) -> Iterator[str]:
    made: dict[str, KernelCall] = {}
    for call in calls:
        first = made.get(call.recompute_of)
        if call.recompute_of and (first is None or first.symbol != call.symbol):
            yield f"kernel {call.symbol!r} repeats the call that makes {call.recompute_of!r}, and no such call precedes"
        for name in call.outputs:
            made.setdefault(name, call)


def _launch_problems(launch: Launch, call: KernelCall) -> Iterator[str]:
    if not _SYMBOL.fullmatch(launch.entry):
        yield f"{launch.entry[:100]!r} is no function name"
    count = len(call.inputs) + len(call.outputs) + len(call.scratch)
    if not launch.arguments or not all(0 <= place < count for place in launch.arguments):
        yield f"kernel {launch.entry!r} takes arguments that {call.symbol!r} does not have"
    if not all(1 <= extent <= MAX_GRID for extent in launch.grid):
        yield f"kernel {launch.entry!r} has the impossible grid {launch.grid}"
    if min(launch.block) < 1 or math.prod(launch.block) > MAX_THREADS or not 0 <= launch.shared <= MAX_SHARED:
        yield f"kernel {launch.entry!r} has the impossible block {launch.block} with {launch.shared} bytes shared"


def _fallback_problems(segment: FallbackSegment, values: dict[str, Value]) -> Iterator[str]:
    if (reason := file_name_problem(segment.model)) is not None:
        yield reason
    for name in (*segment.inputs, *segment.outputs):
        if name not in values:
            yield f"fallback model {segment.model!r} uses the unknown value {name!r}"
    if len(set(segment.weights)) != len(segment.weights):
        yield f"fallback model {segment.model!r} takes a weight twice"
    yield from _written_problems(f"fallback model {segment.model!r}", segment.outputs, values)


def _select_problems(segment: SelectSegment, values: dict[str, Value]) -> Iterator[str]:
    if not len(segment.outputs) == len(segment.when_true) == len(segment.when_false):
        yield f"the choice by {segment.condition!r} has not as many values on both sides as outputs"
        return
    for names in zip(segment.outputs, segment.when_true, segment.when_false, strict=True):
        unknown = next((name for name in names if name not in values), None)
        if unknown is not None:
            yield f"the choice by {segment.condition!r} uses the unknown value {unknown!r}"
        elif len({(values[name].dtype, values[name].shape) for name in names}) > 1 or values[names[0]].shape is None:
            yield f"the choice of {names[0]!r} is between values of other types, or of none"
    yield from _written_problems(f"the choice by {segment.condition!r}", segment.outputs, values)


def _written_problems(writer: str, names: tuple[str, ...], values: dict[str, Value]) -> Iterator[str]:
    for name in names:
        if name in values and (base := base_of(values[name], values)) is not None and base.place is Place.WEIGHT:
            yield f"{writer} writes the weight {base.name!r}"


def _flow_problems(program: Program) -> Iterator[str]:
    """Reasons why a value that a stage needs is neither fed nor received, or a program output never computed."""
    edges = schedule.carried(program.actions)
    fed = {port.name for port in program.inputs}
    tables = [{value.name: value for value in stage.values} for stage in program.stages]
    for stage, values in zip(program.stages, tables, strict=True):
        for port in program.inputs:
            if port.name in stage.inputs:
                yield from _port_problems("input", port, values[port.name], stage.index)
    for port in program.outputs:
        maker = next((stage.index for stage in program.stages if port.name in stage.outputs), None)
        if maker is None:
            yield f"output {port.name!r} comes out of no stage"
        else:
            yield from _port_problems("output", port, tables[maker][port.name], maker)
    for rank, (stage, actions) in enumerate(zip(program.stages, program.actions, strict=True)):
        ran: list[int] = []
        received: dict[int, set[str]] = {}
        for action in actions:
            if action.stage != rank or not 0 <= action.micro_batch < program.micro_batches:
                yield f"rank {rank} cannot do {action}"
            elif action.verb is Verb.RUN:
                lacking = set(stage.inputs) - fed - received.get(action.micro_batch, set())
                if lacking:
                    yield f"rank {rank} runs {action} without having received {sorted(lacking)[0]!r}"
                ran.append(action.micro_batch)
            elif not 0 <= action.peer < len(program.stages) or action.peer == rank:
                yield f"rank {rank} cannot do {action}: there is no such neighbour"
            else:
                yield from _message_problems(program, rank, action.verb, action.peer, action.values, edges, tables)
                if action.verb is Verb.RECV:
                    received.setdefault(action.micro_batch, set()).update(action.values)
                elif action.micro_batch not in ran:
                    yield f"rank {rank} sends {action} before it ran micro-batch {action.micro_batch}"
        if len(ran) != program.micro_batches or ran != list(range(program.micro_batches)):
            yield f"rank {rank} runs {len(ran)} micro-batches and not each of {program.micro_batches} once, in order"


def _message_problems(
    program: Program,
    rank: int,
    verb: Verb,
    peer: int,
    names: tuple[str, ...],
    edges: dict[tuple[int, int], tuple[str, ...]],
    tables: list[dict[str, Value]],
) -> Iterator[str]:
    source, target = (rank, peer) if verb is Verb.SEND else (peer, rank)
    if source > target:
        yield f"the message {source}>{target} goes backwards"
    if not names or len(set(names)) != len(names):
        yield f"the message {source}>{target} carries no value, or one twice"
    elif names != edges[source, target]:
        yield f"the messages {source}>{target} do not all carry the same values"
    for name in names:
        if name not in program.stages[source].outputs or name not in program.stages[target].inputs:
            yield f"value {name!r} cannot go from stage {source} to stage {target}: no output there, or no input here"
            continue
        sent, received = tables[source][name], tables[target][name]
        if sent.shape is None or (sent.dtype, sent.shape) != (received.dtype, received.shape):
            yield f"value {name!r} has no fixed type and shape that stages {source} and {target} agree on"


def _port_problems(kind: str, port: Port, value: Value, stage: int) -> Iterator[str]:
    if port.shape is not None and value.shape is not None and (port.dtype, port.shape) != (value.dtype, value.shape):
        yield f"{kind} {port.name!r} is {port.dtype} {port.shape}, but in stage {stage} {value.dtype} {value.shape}"
    if port.shape is None and value.shape is not None:
        yield f"{kind} {port.name!r} has no fixed shape, but in stage {stage} {value.shape}"
