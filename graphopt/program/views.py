"""Where the bytes of a value lie: in itself, or in the value at the end of a chain of views."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.program.program import MAX_VIEWS, Place, Value


def base_of(value: Value, values: Mapping[str, Value]) -> Value | None:
    """The owner of the bytes of `value`: itself unless it is a view; None if the view chain is broken or too long."""
    location = located(value, values)
    return None if location is None else location[0]


def located(value: Value, values: Mapping[str, Value]) -> tuple[Value, int] | None:
    """The value that owns the bytes of `value`, and the byte where `value` starts in it; None as in `base_of`."""
    start = 0
    for _ in range(MAX_VIEWS):
        if value.place is not Place.VIEW:
            return value, start
        following = values.get(value.of)
        if following is None:
            return None
        start += value.offset
        value = following
    return None
