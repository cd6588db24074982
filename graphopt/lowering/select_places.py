"""Place the operands of a selection in the memory of its output, so that nothing is copied.

a: 4 KiB  b: 4 KiB  y = a if c else b     ->     a, b: views of y
"""

from __future__ import annotations

from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import replace

from graphopt.program.guards import written
from graphopt.program.program import Guard, Place, Segment, SelectSegment, Value
from graphopt.program.views import located


def place_sides(segments: Sequence[Segment], values: MutableMapping[str, Value], ports: Collection[str]) -> None:
    """Make operands of selections views of the output, in place.

    This is valid for a value that is written only when its side is chosen: then neither the other side nor the
    selection writes the output. `ports` are the inputs and outputs of the stage, which keep their own places.
    """
    guards: dict[str, list[Guard]] = {}
    for segment in segments:
        for name in written(segment):
            if (location := located(values[name], values)) is not None:
                guards.setdefault(location[0].name, []).append(segment.guard)
    for segment in segments:
        if not isinstance(segment, SelectSegment):
            continue
        for wanted, side in ((True, segment.when_true), (False, segment.when_false)):
            for output, name in zip(segment.outputs, side, strict=True):
                location = located(values[name], values)
                if location is None or location[1] or location[0].name in (output, *ports):
                    continue
                base, target = location[0], values[output]
                alone = all((segment.condition, wanted) in guard for guard in guards.get(base.name, [()]))
                if not alone or {base.place, target.place} != {Place.ARENA} or base.nbytes != target.nbytes:
                    continue
                _move(base, target, values)
                guards[output] = [*guards.get(output, []), *guards.pop(base.name)]


def _move(base: Value, target: Value, values: MutableMapping[str, Value]) -> None:
    """Make `base` and all of its views views of `target`."""
    values[base.name] = replace(base, place=Place.VIEW, of=target.name, offset=0)
    for value in list(values.values()):
        if value.place is Place.VIEW and value.of == base.name:
            values[value.name] = replace(value, of=target.name)
