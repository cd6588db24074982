"""Strict readers of JSON: each returns a value of its type, or says which field of program.json is something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from graphopt.errors import ArtifactError

_MAX_INTEGER = 1 << 62
_MAX_TEXT = 100_000

_T = TypeVar("_T")


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


def present(item: object, *keys: str) -> tuple[str, ...]:
    """Which of the optional `keys` an object has."""
    return tuple(key for key in keys if isinstance(item, dict) and key in item)


def object_of(item: object, where: str, *keys: str) -> dict[str, Any]:
    """The fields of an object that has exactly these keys."""
    if not isinstance(item, dict):
        raise ArtifactError(f"program.json is not valid: {where} is {shown(item)}, not an object")
    if set(item) != set(keys):
        odd = sorted(set(item) ^ set(keys))[0]
        raise ArtifactError(f"program.json is not valid: {where} has the wrong keys, see {shown(odd)}")
    return item


def list_of(item: object, where: str, parse: Callable[[object, str], _T]) -> tuple[_T, ...]:
    """The items of a list, each read by `parse`."""
    if not isinstance(item, list):
        raise ArtifactError(f"program.json is not valid: {where} is {shown(item)}, not a list")
    return tuple(parse(element, f"{where}[{index}]") for index, element in enumerate(item))


def integer(item: object, where: str) -> int:
    """A whole number from 0 on."""
    if type(item) is not int or not 0 <= item <= _MAX_INTEGER:
        raise ArtifactError(f"program.json is not valid: {where} is {shown(item)}, not a whole number from 0 on")
    return item


def boolean(item: object, where: str) -> bool:
    """True or false."""
    if not isinstance(item, bool):
        raise ArtifactError(f"program.json is not valid: {where} is {shown(item)}, neither true nor false")
    return item


def text(item: object, where: str) -> str:
    """A text of bounded length."""
    if not isinstance(item, str) or len(item) > _MAX_TEXT:
        raise ArtifactError(f"program.json is not valid: {where} is {shown(item)}, not a text")
    return item


def texts(item: object, where: str) -> tuple[str, ...]:
    """A list of texts."""
    return list_of(item, where, text)


def shown(item: object) -> str:
    """The beginning of a value, for messages."""
    literal = repr(item)
    return literal if len(literal) <= 60 else literal[:57] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")
