"""Validation of a stage's state: each value has memory of its own, and no call reads what a run has replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from graphopt.program.program import (
    ALIGNMENT,
    MAX_BYTES,
    FallbackSegment,
    Guard,
    KernelCall,
    NativeSegment,
    Place,
    Role,
    SelectSegment,
    Stage,
    Value,
)
from graphopt.program.views import located


def state_problems(stage: Stage, values: Mapping[str, Value]) -> Iterator[str]:
    """Every reason, as a sentence, why the state of `stage` cannot be kept."""
    listed = [state.value for state in stage.states]
    owned = [value for value in stage.values if value.place is Place.STATE]
    if sorted(listed) != sorted(value.name for value in owned):
        yield "its list of states and its state values are not the same"
        return
    if bool(stage.initial) != bool(listed) or not 0 <= stage.state_bytes <= MAX_BYTES:
        yield f"its state of {stage.state_bytes} bytes in the file {stage.initial!r} is impossible"
    end = 0
    for value in sorted(owned, key=lambda value: (value.offset, value.nbytes)):
        if value.offset % ALIGNMENT or not end <= value.offset <= stage.state_bytes - value.nbytes:
            yield (
                f"state {value.name!r} at offset {value.offset} with {value.nbytes} bytes has not, aligned to "
                f"{ALIGNMENT}, a place of its own in {stage.state_bytes} bytes"
            )
        end = max(end, value.offset + value.nbytes)
    for state in stage.states:
        if state.role not in set(Role):
            yield f"state {state.value!r} has the unknown role {state.role[:100]!r}"
        if state.becomes and not _is_all_of(state.becomes, state.value, values):
            yield f"state {state.value!r} becomes {state.becomes!r}, which is not a view of all its bytes"
    yield from _Writes({state.value for state in stage.states if state.becomes}, values).problems(stage)


def _is_all_of(name: str, state: str, values: Mapping[str, Value]) -> bool:
    value = values.get(name)
    location = None if value is None else located(value, values)
    if value is None or location is None or value.name == state:
        return False
    base = location[0]
    return base.name == state and (value.dtype, value.shape) == (base.dtype, base.shape)


@dataclass(slots=True)
class _Writes:
    """Follows the segments of a stage in order, and what they have written of each state."""

    changing: set[str]
    values: Mapping[str, Value]
    written: dict[str, set[str]] = field(default_factory=dict)  # state -> names that calls wrote
    guards: dict[str, list[Guard]] = field(default_factory=dict)  # state -> guards of the calls that wrote it

    def problems(self, stage: Stage) -> Iterator[str]:
        for segment in stage.segments:
            if isinstance(segment, NativeSegment):
                for call in segment.calls:
                    pairs = {(call.inputs[i], call.outputs[o]) for i, o in call.in_place if self._fits(call, i, o)}
                    writes = (*call.outputs, *call.scratch)
                    yield from self._step(f"kernel {call.symbol!r}", call.inputs, writes, segment.guard, pairs)
            elif isinstance(segment, FallbackSegment):
                reads, writer = segment.inputs, f"fallback model {segment.model!r}"
                yield from self._step(writer, reads, segment.outputs, segment.guard, set())
            else:
                yield from self._select(segment)

    @staticmethod
    def _fits(call: KernelCall, source: int, target: int) -> bool:
        return source < len(call.inputs) and target < len(call.outputs)

    def _state(self, name: str) -> str | None:
        """The state that a value lies in."""
        value = self.values.get(name)
        location = None if value is None else located(value, self.values)
        return location[0].name if location is not None and location[0].place is Place.STATE else None

    def _is_new(self, name: str, state: str) -> bool:
        """Whether a value is what a call wrote into the state, or a view of that."""
        while name != state:
            if name in self.written.get(state, ()):
                return True
            name = self.values[name].of
        return False

    def _step(
        self, what: str, reads: Iterable[str], writes: Iterable[str], guard: Guard, pairs: set[tuple[str, str]]
    ) -> Iterator[str]:
        targets = {name: state for name in writes if (state := self._state(name)) is not None}
        for name in reads:
            state = self._state(name)
            if state is None:
                continue
            earlier = [other for other in self.guards.get(state, ()) if not _exclusive(guard, other)]
            if earlier and not self._is_new(name, state):
                yield f"{what} reads {name!r} after the run has replaced the state {state!r}"
            for target in (target for target, owner in targets.items() if owner == state):
                if (name, target) not in pairs:
                    yield f"{what} replaces the state {state!r} while it reads {name!r}"
        for name, state in targets.items():
            if state not in self.changing or name == state:
                yield f"{what} writes the state {state!r}, which is not said to become {name!r}"
            elif not _is_all_of(name, state, self.values):
                yield f"{what} writes a part of the state {state!r}"
            elif any(not _exclusive(guard, other) for other in self.guards.get(state, ())):
                yield f"{what} replaces the state {state!r} for the second time"
            self.written.setdefault(state, set()).add(name)
            self.guards.setdefault(state, []).append(guard)

    def _select(self, segment: SelectSegment) -> Iterator[str]:
        """A choice into a state: only a side that is not the state itself is copied, and so replaces it."""
        for output, *sides in zip(segment.outputs, segment.when_true, segment.when_false, strict=False):
            state, copied = self._state(output), []
            for wanted, side in zip((True, False), sides, strict=True):
                guard = (*segment.guard, (segment.condition, wanted))
                other = self._state(side)
                if state is None or other != state:
                    yield from self._step(f"the choice of {output!r}", [side], [], guard, set())
                    copied.append(guard)
            for guard in copied if state is not None else ():
                yield from self._step(f"the choice of {output!r}", [], [output], guard, set())


def _exclusive(one: Guard, other: Guard) -> bool:
    """Whether no run executes both."""
    return any((name, not wanted) in other for name, wanted in one)
