"""A Program as JSON: strict in both directions, so that a damaged or hostile file is refused before anything uses it.

Every object must have exactly the keys written here, every number must be in its range, and the program must satisfy
`graphopt.program.check.problems`. Nothing is executed while reading.

msgspec 0.23, a library for typed JSON, decodes a union of segments only by a tag in each, so that artifacts made before
could not be opened; it takes unknown keys of dataclasses, and keys that stand twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

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
    Value,
    Verb,
)

FORMAT = 4
"""Version of the layout below; another version is refused."""

_MAX_INTEGER = 1 << 62
_MAX_TEXT = 100_000

_T = TypeVar("_T")


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
    fields = _object(document, "program", "format", "micro_batches", "inputs", "outputs", "stages", "actions")
    if fields["format"] != FORMAT:
        raise ArtifactError(
            f"program.json has format {_shown(fields['format'])} and this graphopt reads {FORMAT}: "
            "compile the model again"
        )
    program = Program(
        stages=_list(fields["stages"], "stages", _to_stage),
        actions=_list(fields["actions"], "actions", lambda item, where: _list(item, where, _to_action)),
        inputs=_list(fields["inputs"], "inputs", _to_port),
        outputs=_list(fields["outputs"], "outputs", _to_port),
        micro_batches=_integer(fields["micro_batches"], "micro_batches"),
    )
    reasons = problems(program)
    if reasons:
        raise ArtifactError(f"program.json is not valid: {reasons[0]}")
    return program


def strict_json(data: bytes, name: str) -> object:
    """Parse JSON without duplicate keys, without NaN and of limited depth.

    Raises:
        ArtifactError: the text is anything else.
    """
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).partition("\n")[0]
        raise ArtifactError(f"{name} is damaged: {reason}") from None


def _from_port(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": _from_shape(port.shape)}


def _from_stage(stage: Stage) -> dict[str, Any]:
    return {
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


def _from_value(value: Value) -> dict[str, Any]:
    fields = {"name": value.name, "dtype": value.dtype, "shape": _from_shape(value.shape), "place": value.place.value}
    if value.place is Place.ARENA:
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
    fields = _object(item, where, "name", "dtype", "shape")
    return Port(
        _text(fields["name"], f"{where}.name"),
        _text(fields["dtype"], f"{where}.dtype"),
        _to_shape(fields["shape"], where),
    )


def _to_stage(item: object, where: str) -> Stage:
    fields = _object(
        item,
        where,
        *("index", "library", "weights", "arena_bytes", "arena_lower_bound", "inputs", "outputs", "values", "segments"),
    )
    return Stage(
        index=_integer(fields["index"], f"{where}.index"),
        values=_list(fields["values"], f"{where}.values", _to_value),
        inputs=_texts(fields["inputs"], f"{where}.inputs"),
        outputs=_texts(fields["outputs"], f"{where}.outputs"),
        segments=_list(fields["segments"], f"{where}.segments", _to_segment),
        arena_bytes=_integer(fields["arena_bytes"], f"{where}.arena_bytes"),
        arena_lower_bound=_integer(fields["arena_lower_bound"], f"{where}.arena_lower_bound"),
        library=_text(fields["library"], f"{where}.library"),
        weights=_text(fields["weights"], f"{where}.weights"),
    )


def _to_value(item: object, where: str) -> Value:
    place = item.get("place") if isinstance(item, dict) else None
    if not isinstance(place, str) or place not in set(Place):
        raise ArtifactError(f"program.json is not valid: {where}.place is {_shown(place)}")
    extra = {"arena": ("offset",), "view": ("of", "offset")}.get(place, ())
    fields = _object(item, where, "name", "dtype", "shape", "place", *extra)
    return Value(
        name=_text(fields["name"], f"{where}.name"),
        dtype=_text(fields["dtype"], f"{where}.dtype"),
        shape=_to_shape(fields["shape"], where),
        place=Place(place),
        offset=_integer(fields.get("offset", 0), f"{where}.offset"),
        of=_text(fields.get("of", ""), f"{where}.of"),
    )


def _to_segment(item: object, where: str) -> Segment:
    if isinstance(item, dict) and "calls" in item:
        fields = _object(item, where, "calls", "guard")
        return NativeSegment(_list(fields["calls"], f"{where}.calls", _to_call), _to_guard(fields["guard"], where))
    if isinstance(item, dict) and "condition" in item:
        fields = _object(item, where, "condition", "outputs", "when_true", "when_false", "origin", "guard")
        return SelectSegment(
            condition=_text(fields["condition"], f"{where}.condition"),
            outputs=_texts(fields["outputs"], f"{where}.outputs"),
            when_true=_texts(fields["when_true"], f"{where}.when_true"),
            when_false=_texts(fields["when_false"], f"{where}.when_false"),
            origin=_texts(fields["origin"], f"{where}.origin"),
            guard=_to_guard(fields["guard"], where),
        )
    fields = _object(item, where, "model", "inputs", "outputs", "reasons", "weights", "spin", "guard")
    return FallbackSegment(
        model=_text(fields["model"], f"{where}.model"),
        inputs=_texts(fields["inputs"], f"{where}.inputs"),
        outputs=_texts(fields["outputs"], f"{where}.outputs"),
        reasons=_list(fields["reasons"], f"{where}.reasons", _to_reason),
        weights=_texts(fields["weights"], f"{where}.weights"),
        spin=_boolean(fields["spin"], f"{where}.spin"),
        guard=_to_guard(fields["guard"], where),
    )


def _to_guard(item: object, where: str) -> Guard:
    return _list(item, f"{where}.guard", _to_literal)


def _to_literal(item: object, where: str) -> tuple[str, bool]:
    if not isinstance(item, list) or len(item) != 2:
        raise ArtifactError(f"program.json is not valid: {where} is {_shown(item)}, not a value and what it must be")
    return _text(item[0], where), _boolean(item[1], where)


def _to_reason(item: object, where: str) -> tuple[str, str]:
    texts = _texts(item, where)
    if len(texts) != 2:
        raise ArtifactError(f"program.json is not valid: {where} is not a node and its reason")
    return texts[0], texts[1]


def _to_call(item: object, where: str) -> KernelCall:
    optional = ("launches", "in_place", "recompute_of")
    extra = tuple(key for key in optional if key in item) if isinstance(item, dict) else ()
    fields = _object(item, where, "symbol", "inputs", "outputs", "scratch", "origin", *extra)
    return KernelCall(
        symbol=_text(fields["symbol"], f"{where}.symbol"),
        inputs=_texts(fields["inputs"], f"{where}.inputs"),
        outputs=_texts(fields["outputs"], f"{where}.outputs"),
        scratch=_texts(fields["scratch"], f"{where}.scratch"),
        origin=_texts(fields["origin"], f"{where}.origin"),
        launches=_list(fields.get("launches", []), f"{where}.launches", _to_launch),
        in_place=_list(fields.get("in_place", []), f"{where}.in_place", _to_pair),
        recompute_of=_text(fields.get("recompute_of", ""), f"{where}.recompute_of"),
    )


def _to_launch(item: object, where: str) -> Launch:
    fields = _object(item, where, "entry", "grid", "block", "arguments", "shared")
    return Launch(
        entry=_text(fields["entry"], f"{where}.entry"),
        grid=_extents(fields["grid"], f"{where}.grid"),
        block=_extents(fields["block"], f"{where}.block"),
        arguments=_list(fields["arguments"], f"{where}.arguments", _integer),
        shared=_integer(fields["shared"], f"{where}.shared"),
    )


def _to_pair(item: object, where: str) -> tuple[int, int]:
    pair = _list(item, where, _integer)
    if len(pair) != 2:
        raise ArtifactError(f"program.json is not valid: {where} is {_shown(item)}, not an input and an output")
    return pair[0], pair[1]


def _extents(item: object, where: str) -> tuple[int, int, int]:
    extents = _list(item, where, _integer)
    if len(extents) != 3:
        raise ArtifactError(f"program.json is not valid: {where} is {_shown(item)}, not three extents")
    return extents[0], extents[1], extents[2]


def _to_action(item: object, where: str) -> Action:
    verb = item.get("verb") if isinstance(item, dict) else None
    if not isinstance(verb, str) or verb not in set(Verb):
        raise ArtifactError(f"program.json is not valid: {where}.verb is {_shown(verb)}")
    extra = () if verb == Verb.RUN.value else ("peer", "values")
    fields = _object(item, where, "verb", "stage", "micro_batch", *extra)
    return Action(
        verb=Verb(verb),
        stage=_integer(fields["stage"], f"{where}.stage"),
        micro_batch=_integer(fields["micro_batch"], f"{where}.micro_batch"),
        peer=_integer(fields["peer"], f"{where}.peer") if extra else -1,
        values=_texts(fields["values"], f"{where}.values") if extra else (),
    )


def _to_shape(item: object, where: str) -> tuple[int, ...] | None:
    return None if item is None else _list(item, f"{where}.shape", _integer)


def _object(item: object, where: str, *keys: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise ArtifactError(f"program.json is not valid: {where} is {_shown(item)}, not an object")
    if set(item) != set(keys):
        odd = sorted(set(item) ^ set(keys))[0]
        raise ArtifactError(f"program.json is not valid: {where} has the wrong keys, see {_shown(odd)}")
    return item


def _list(item: object, where: str, parse: Callable[[object, str], _T]) -> tuple[_T, ...]:
    if not isinstance(item, list):
        raise ArtifactError(f"program.json is not valid: {where} is {_shown(item)}, not a list")
    return tuple(parse(element, f"{where}[{index}]") for index, element in enumerate(item))


def _integer(item: object, where: str) -> int:
    if type(item) is not int or not 0 <= item <= _MAX_INTEGER:
        raise ArtifactError(f"program.json is not valid: {where} is {_shown(item)}, not a whole number from 0 on")
    return item


def _boolean(item: object, where: str) -> bool:
    if not isinstance(item, bool):
        raise ArtifactError(f"program.json is not valid: {where} is {_shown(item)}, neither true nor false")
    return item


def _text(item: object, where: str) -> str:
    if not isinstance(item, str) or len(item) > _MAX_TEXT:
        raise ArtifactError(f"program.json is not valid: {where} is {_shown(item)}, not a text")
    return item


def _texts(item: object, where: str) -> tuple[str, ...]:
    return _list(item, where, _text)


def _shown(item: object) -> str:
    text = repr(item)
    return text if len(text) <= 60 else text[:57] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
