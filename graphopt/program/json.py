"""A Program as JSON: strict in both directions, so that a damaged or hostile file is refused before anything uses it.

Every object must have exactly the keys written here, every number must be in its range, and the program must satisfy
`graphopt.program.check.problems`. Nothing is executed while reading.

msgspec 0.23, a library for typed JSON, decodes a union of segments only by a tag in each, so that artifacts made before
could not be opened; it takes unknown keys of dataclasses, and keys that stand twice.
"""

from __future__ import annotations

import json
from typing import Any

from graphopt.errors import ArtifactError
from graphopt.program.check import problems
from graphopt.program.program import (
    Action,
    FallbackSegment,
    Guard,
    KernelCall,
    Launch,
    NativeSegment,
    Place,
    Port,
    Program,
    Segment,
    SelectSegment,
    Stage,
    State,
    Value,
    Verb,
)
from graphopt.program.strict import boolean, integer, list_of, object_of, present, shown, strict_json, text, texts

FORMAT = 4
"""Version of the layout below; another version is refused."""


def dumps(program: Program) -> bytes:
    """`program` as UTF-8 JSON, the same bytes for equal programs."""
    document = {
        "format": FORMAT,
        "micro_batches": program.micro_batches,
        "inputs": [_from_port(port) for port in program.inputs],
        "outputs": [_from_port(port) for port in program.outputs],
        "stages": [_from_stage(stage) for stage in program.stages],
        "actions": [[_from_action(action) for action in actions] for actions in program.actions],
    }
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def loads(data: bytes) -> Program:
    """Parse the Program that `dumps` wrote.

    Raises:
        ArtifactError: the text is no such document, or the program in it is not valid.
    """
    document = strict_json(data, "program.json")
    fields = object_of(document, "program", "format", "micro_batches", "inputs", "outputs", "stages", "actions")
    if fields["format"] != FORMAT:
        raise ArtifactError(
            f"program.json has format {shown(fields['format'])} and this graphopt reads {FORMAT}: "
            "compile the model again"
        )
    program = Program(
        stages=list_of(fields["stages"], "stages", _to_stage),
        actions=list_of(fields["actions"], "actions", lambda item, where: list_of(item, where, _to_action)),
        inputs=list_of(fields["inputs"], "inputs", _to_port),
        outputs=list_of(fields["outputs"], "outputs", _to_port),
        micro_batches=integer(fields["micro_batches"], "micro_batches"),
    )
    reasons = problems(program)
    if reasons:
        raise ArtifactError(f"program.json is not valid: {reasons[0]}")
    return program


def _from_port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": _from_shape(port.shape)}


def _from_stage(stage: Stage) -> dict[str, Any]:
    fields = {
        "index": stage.index,
        "library": stage.library,
        "weights": stage.weights,
        "arena_bytes": stage.arena_bytes,
        "arena_lower_bound": stage.arena_lower_bound,
        "inputs": list(stage.inputs),
        "outputs": list(stage.outputs),
        "values": [_from_value(value) for value in stage.values],
        "segments": [_from_segment(segment) for segment in stage.segments],
    }
    if not stage.states:
        return fields
    states = [[state.value, state.role, state.becomes] for state in stage.states]
    return {**fields, "states": states, "state_bytes": stage.state_bytes, "initial": stage.initial}


def _from_value(value: Value) -> dict[str, Any]:
    fields = {"name": value.name, "dtype": value.dtype, "shape": _from_shape(value.shape), "place": value.place.value}
    if value.place in (Place.ARENA, Place.STATE):
        return {**fields, "offset": value.offset}
    if value.place is Place.VIEW:
        return {**fields, "of": value.of, "offset": value.offset}
    return fields


def _from_segment(segment: Segment) -> dict[str, Any]:
    guard = [list(literal) for literal in segment.guard]
    if isinstance(segment, NativeSegment):
        return {"calls": [_from_call(call) for call in segment.calls], "guard": guard}
    if isinstance(segment, SelectSegment):
        return {
            "condition": segment.condition,
            "outputs": list(segment.outputs),
            "when_true": list(segment.when_true),
            "when_false": list(segment.when_false),
            "origin": list(segment.origin),
            "guard": guard,
        }
    return {
        "model": segment.model,
        "inputs": list(segment.inputs),
        "outputs": list(segment.outputs),
        "reasons": [list(reason) for reason in segment.reasons],
        "weights": list(segment.weights),
        "spin": segment.spin,
        "guard": guard,
    }


def _from_call(call: KernelCall) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "symbol": call.symbol,
        "inputs": list(call.inputs),
        "outputs": list(call.outputs),
        "scratch": list(call.scratch),
        "origin": list(call.origin),
    }
    if call.launches:
        fields["launches"] = [_from_launch(launch) for launch in call.launches]
    if call.in_place:
        fields["in_place"] = [list(pair) for pair in call.in_place]
    if call.recompute_of:
        fields["recompute_of"] = call.recompute_of
    return fields


def _from_launch(launch: Launch) -> dict[str, Any]:
    return {
        "entry": launch.entry,
        "grid": list(launch.grid),
        "block": list(launch.block),
        "arguments": list(launch.arguments),
        "shared": launch.shared,
    }


def _from_action(action: Action) -> dict[str, Any]:
    fields: dict[str, Any] = {"verb": action.verb.value, "stage": action.stage, "micro_batch": action.micro_batch}
    return fields if action.verb is Verb.RUN else {**fields, "peer": action.peer, "values": list(action.values)}


def _from_shape(shape: tuple[int, ...] | None) -> list[int] | None:
    return None if shape is None else list(shape)


def _to_port(item: object, where: str) -> Port:
    fields = object_of(item, where, "name", "dtype", "shape")
    return Port(
        text(fields["name"], f"{where}.name"),
        text(fields["dtype"], f"{where}.dtype"),
        _to_shape(fields["shape"], where),
    )


_STAGE = ("index", "library", "weights", "arena_bytes", "arena_lower_bound", "inputs", "outputs", "values", "segments")
_STATES = ("states", "state_bytes", "initial")
"""Keys of a stage that has state."""


def _to_stage(item: object, where: str) -> Stage:
    extra = _STATES if present(item, "states") else ()
    fields = object_of(item, where, *_STAGE, *extra)
    return Stage(
        index=integer(fields["index"], f"{where}.index"),
        values=list_of(fields["values"], f"{where}.values", _to_value),
        inputs=texts(fields["inputs"], f"{where}.inputs"),
        outputs=texts(fields["outputs"], f"{where}.outputs"),
        segments=list_of(fields["segments"], f"{where}.segments", _to_segment),
        arena_bytes=integer(fields["arena_bytes"], f"{where}.arena_bytes"),
        arena_lower_bound=integer(fields["arena_lower_bound"], f"{where}.arena_lower_bound"),
        library=text(fields["library"], f"{where}.library"),
        weights=text(fields["weights"], f"{where}.weights"),
        states=list_of(fields["states"], f"{where}.states", _to_state) if extra else (),
        state_bytes=integer(fields["state_bytes"], f"{where}.state_bytes") if extra else 0,
        initial=text(fields["initial"], f"{where}.initial") if extra else "",
    )


def _to_state(item: object, where: str) -> State:
    words = texts(item, where)
    if len(words) != 3:
        raise ArtifactError(f"program.json is not valid: {where} is not a value, its role and what it becomes")
    return State(*words)


def _to_value(item: object, where: str) -> Value:
    place = item.get("place") if isinstance(item, dict) else None
    if not isinstance(place, str) or place not in set(Place):
        raise ArtifactError(f"program.json is not valid: {where}.place is {shown(place)}")
    extra = {"arena": ("offset",), "state": ("offset",), "view": ("of", "offset")}.get(place, ())
    fields = object_of(item, where, "name", "dtype", "shape", "place", *extra)
    return Value(
        name=text(fields["name"], f"{where}.name"),
        dtype=text(fields["dtype"], f"{where}.dtype"),
        shape=_to_shape(fields["shape"], where),
        place=Place(place),
        offset=integer(fields.get("offset", 0), f"{where}.offset"),
        of=text(fields.get("of", ""), f"{where}.of"),
    )


def _to_segment(item: object, where: str) -> Segment:
    if isinstance(item, dict) and "calls" in item:
        fields = object_of(item, where, "calls", "guard")
        return NativeSegment(list_of(fields["calls"], f"{where}.calls", _to_call), _to_guard(fields["guard"], where))
    if isinstance(item, dict) and "condition" in item:
        fields = object_of(item, where, "condition", "outputs", "when_true", "when_false", "origin", "guard")
        return SelectSegment(
            condition=text(fields["condition"], f"{where}.condition"),
            outputs=texts(fields["outputs"], f"{where}.outputs"),
            when_true=texts(fields["when_true"], f"{where}.when_true"),
            when_false=texts(fields["when_false"], f"{where}.when_false"),
            origin=texts(fields["origin"], f"{where}.origin"),
            guard=_to_guard(fields["guard"], where),
        )
    fields = object_of(item, where, "model", "inputs", "outputs", "reasons", "weights", "spin", "guard")
    return FallbackSegment(
        model=text(fields["model"], f"{where}.model"),
        inputs=texts(fields["inputs"], f"{where}.inputs"),
        outputs=texts(fields["outputs"], f"{where}.outputs"),
        reasons=list_of(fields["reasons"], f"{where}.reasons", _to_reason),
        weights=texts(fields["weights"], f"{where}.weights"),
        spin=boolean(fields["spin"], f"{where}.spin"),
        guard=_to_guard(fields["guard"], where),
    )


def _to_guard(item: object, where: str) -> Guard:
    return list_of(item, f"{where}.guard", _to_literal)


def _to_literal(item: object, where: str) -> tuple[str, bool]:
    if not isinstance(item, list) or len(item) != 2:
        raise ArtifactError(f"program.json is not valid: {where} is {shown(item)}, not a value and what it must be")
    return text(item[0], where), boolean(item[1], where)


def _to_reason(item: object, where: str) -> tuple[str, str]:
    pair = texts(item, where)
    if len(pair) != 2:
        raise ArtifactError(f"program.json is not valid: {where} is not a node and its reason")
    return pair[0], pair[1]


def _to_call(item: object, where: str) -> KernelCall:
    extra = present(item, "launches", "in_place", "recompute_of")
    fields = object_of(item, where, "symbol", "inputs", "outputs", "scratch", "origin", *extra)
    return KernelCall(
        symbol=text(fields["symbol"], f"{where}.symbol"),
        inputs=texts(fields["inputs"], f"{where}.inputs"),
        outputs=texts(fields["outputs"], f"{where}.outputs"),
        scratch=texts(fields["scratch"], f"{where}.scratch"),
        origin=texts(fields["origin"], f"{where}.origin"),
        launches=list_of(fields.get("launches", []), f"{where}.launches", _to_launch),
        in_place=list_of(fields.get("in_place", []), f"{where}.in_place", _to_pair),
        recompute_of=text(fields.get("recompute_of", ""), f"{where}.recompute_of"),
    )


def _to_pair(item: object, where: str) -> tuple[int, int]:
    numbers = list_of(item, where, integer)
    if len(numbers) != 2:
        raise ArtifactError(f"program.json is not valid: {where} is {shown(item)}, not an input and an output")
    return numbers[0], numbers[1]


def _to_launch(item: object, where: str) -> Launch:
    fields = object_of(item, where, "entry", "grid", "block", "arguments", "shared")
    return Launch(
        entry=text(fields["entry"], f"{where}.entry"),
        grid=_extents(fields["grid"], f"{where}.grid"),
        block=_extents(fields["block"], f"{where}.block"),
        arguments=list_of(fields["arguments"], f"{where}.arguments", integer),
        shared=integer(fields["shared"], f"{where}.shared"),
    )


def _extents(item: object, where: str) -> tuple[int, int, int]:
    extents = list_of(item, where, integer)
    if len(extents) != 3:
        raise ArtifactError(f"program.json is not valid: {where} is {shown(item)}, not three extents")
    return extents[0], extents[1], extents[2]


def _to_action(item: object, where: str) -> Action:
    verb = item.get("verb") if isinstance(item, dict) else None
    if not isinstance(verb, str) or verb not in set(Verb):
        raise ArtifactError(f"program.json is not valid: {where}.verb is {shown(verb)}")
    extra = () if verb == Verb.RUN.value else ("peer", "values")
    fields = object_of(item, where, "verb", "stage", "micro_batch", *extra)
    return Action(
        verb=Verb(verb),
        stage=integer(fields["stage"], f"{where}.stage"),
        micro_batch=integer(fields["micro_batch"], f"{where}.micro_batch"),
        peer=integer(fields["peer"], f"{where}.peer") if extra else -1,
        values=texts(fields["values"], f"{where}.values") if extra else (),
    )


def _to_shape(item: object, where: str) -> tuple[int, ...] | None:
    return None if item is None else list_of(item, f"{where}.shape", integer)
