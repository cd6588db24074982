"""The state of a stage: each value gets a place of its own, and what replaces it is written over it.

    w1 = w - lr * g                 w.next: view of w           the kernel reads an element of w to write the same one
    w1 = transpose(v)               w.next: copy of w1          after every reader of w

Whatever reads the old value comes first; where the order of the calls does not allow that, the new value is computed
in the arena and copied at the end of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from graphopt.program.program import (
    Guard,
    KernelCall,
    NativeSegment,
    Place,
    Segment,
    SelectSegment,
    State,
    Value,
)
from graphopt.program.views import located


@dataclass(frozen=True, slots=True)
class Update:
    """The state value `state`, and the value `becomes` that replaces it after a run ("" if none does)."""

    state: str
    role: str
    becomes: str


def place_updates(
    updates: Sequence[Update],
    segments: list[Segment],
    values: dict[str, Value],
    ports: set[str],
    copy: Callable[[Value, Value], KernelCall],
) -> tuple[State, ...]:
    """Write every new state over the old one, in place; changes `segments` and `values`.

    Args:
        ports: inputs and outputs of the stage, which keep their own places.
        copy: gives a call that copies one value into another.
    """
    bases = {name: location[0].name for name, value in values.items() if (location := located(value, values))}
    states, first, copies = [], [], []
    for update in updates:
        state = values[update.state]
        if not update.becomes or bases.get(update.becomes) == state.name:
            states.append(State(update.state, update.role))  # no run changes it
            continue
        if _overwrites(_Reads(state.name, bases.get(update.becomes, ""), bases, values), segments, ports):
            states.append(State(update.state, update.role, update.becomes))
            continue
        name = f"{update.becomes}~copy"
        values[name] = Value(name, state.dtype, state.shape, Place.VIEW, of=state.name)
        source = values[update.becomes]
        if values[bases[update.becomes]].place is Place.STATE:  # it may be replaced before it is copied
            kept = values[f"{name}~kept"] = Value(f"{name}~kept", source.dtype, source.shape, Place.ARENA)
            first.append(copy(source, kept))
            source = kept
        copies.append(copy(source, values[name]))
        states.append(State(update.state, update.role, name))
    if first:
        segments.insert(0, NativeSegment(tuple(first)))
    if copies:
        segments.append(NativeSegment(tuple(copies)))
    return tuple(states)


def _overwrites(reads: _Reads, segments: list[Segment], ports: set[str]) -> bool:
    """Make the new value a view of the state if no call then reads what it should not; says whether it did."""
    values = reads.values
    state, base = values[reads.state], values.get(reads.new)
    if base is None or base.place is not Place.ARENA or base.name in ports:
        return False
    if (base.nbytes, base.dtype) != (state.nbytes, state.dtype):
        return False
    order = _order(segments, reads)
    if order is None:
        return False
    segments[:] = order
    values[base.name] = replace(base, place=Place.VIEW, of=state.name, offset=0)
    for name in [name for name, owner in reads.bases.items() if owner == base.name]:
        reads.bases[name] = state.name
    return True


@dataclass(frozen=True, slots=True)
class _Reads:
    """What calls do with the old `state` and with the value `new` that replaces it.

    `bases` maps every value to the one that owns its bytes.
    """

    state: str
    new: str
    bases: dict[str, str]
    values: dict[str, Value]

    def reads(self, names: Iterable[str]) -> bool:
        return any(self.bases.get(name) == self.state for name in names)

    def writes(self, names: Iterable[str]) -> bool:
        return any(self.bases.get(name) == self.new for name in names)

    def safe(self, call: KernelCall) -> bool:
        """Whether a call that writes the new value may do so over the old one."""
        pairs = {(call.inputs[i], call.outputs[o]) for i, o in call.in_place}
        olds = [name for name in call.inputs if self.bases.get(name) == self.state]
        news = [name for name in (*call.outputs, *call.scratch) if self.bases.get(name) == self.new]
        whole = all(self.values[name].nbytes == self.values[self.new].nbytes for name in news)
        return whole and all((old, new) in pairs for old in olds for new in news)


def _order(segments: Sequence[Segment], reads: _Reads) -> list[Segment] | None:
    """The segments, calls inside them reordered so that readers of the old value precede its writer; None if none is.

    A reader under a guard that excludes the writer's needs no order.
    """
    ordered: list[Segment] = []
    done: list[Guard] = []  # guards of the calls that have replaced the value
    for segment in segments:
        if isinstance(segment, SelectSegment):
            for output, *sides in zip(segment.outputs, segment.when_true, segment.when_false, strict=True):
                for wanted, side in zip((True, False), sides, strict=True):
                    guard = (*segment.guard, (segment.condition, wanted))
                    late = any(not _exclusive(guard, other) for other in done)
                    if reads.reads([side]) and late and not reads.writes([output]):
                        return None
                    if reads.writes([output]) and not reads.writes([side]) and not reads.reads([side]):
                        if late:
                            return None
                        done.append(guard)
            ordered.append(segment)
            continue
        if not isinstance(segment, NativeSegment):
            late = any(not _exclusive(segment.guard, other) for other in done)
            if reads.writes(segment.outputs) or (reads.reads(segment.inputs) and late):
                return None
            ordered.append(segment)
            continue
        writers = [i for i, call in enumerate(segment.calls) if reads.writes((*call.outputs, *call.scratch))]
        readers = [i for i, call in enumerate(segment.calls) if reads.reads(call.inputs)]
        late = any(not _exclusive(segment.guard, other) for other in done)
        if late and (readers or writers):
            return None
        if not writers:
            ordered.append(segment)
            continue
        if len(writers) > 1 or not reads.safe(segment.calls[writers[0]]):
            return None
        calls = _readers_first(segment.calls, readers, writers[0], reads.bases)
        if calls is None:
            return None
        ordered.append(replace(segment, calls=calls))
        done.append(segment.guard)
    return ordered


def _readers_first(
    calls: tuple[KernelCall, ...], readers: Sequence[int], writer: int, bases: Mapping[str, str]
) -> tuple[KernelCall, ...] | None:
    """The calls with `writer`, and what needs its result, after all of `readers`; None if a reader needs its result."""
    last = max((reader for reader in readers if reader != writer), default=writer)
    if last < writer:
        return calls
    moved, touched, moved_writes = [writer], _touched(calls[writer], bases), _written(calls[writer], bases)
    for index in range(writer + 1, last + 1):
        writes, uses = _written(calls[index], bases), _touched(calls[index], bases)
        if uses & moved_writes or writes & touched:
            if index in readers:
                return None
            moved.append(index)
            touched |= uses
            moved_writes |= writes
    late = set(moved)
    kept = [calls[i] for i in range(writer, last + 1) if i not in late]
    return (*calls[:writer], *kept, *(calls[i] for i in moved), *calls[last + 1 :])


def _written(call: KernelCall, bases: Mapping[str, str]) -> set[str]:
    return {bases.get(name, name) for name in (*call.outputs, *call.scratch)}


def _touched(call: KernelCall, bases: Mapping[str, str]) -> set[str]:
    return {bases.get(name, name) for name in (*call.inputs, *call.outputs, *call.scratch)}


def _exclusive(one: Guard, other: Guard) -> bool:
    """Whether no run executes both."""
    return any((name, not wanted) in other for name, wanted in one)
