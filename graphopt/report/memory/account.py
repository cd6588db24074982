"""The account of a stage's bytes: what it holds always, what is live at every step, and by name what is at the peak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.lowering.memory.stage_problem import StageProblem, stage_problem
from graphopt.lowering.memory.steps import state_bytes
from graphopt.program.contents import Contents
from graphopt.program.program import KernelCall, Role, Stage
from graphopt.report.document import Block, Table
from graphopt.report.memory_plan import last, names_of_values, short
from graphopt.report.units import nbytes
from graphopt.solve.recompute.liveness import Lifetimes, Simulator

TOP = 12
"""Rows of the table of what lives at the peak."""


class Kind(StrEnum):
    """What bytes are for."""

    PARAMETERS = "parameters"
    OPTIMIZER = "optimizer state"
    GRADIENTS = "gradients"
    STATISTICS = "statistics"
    CONSTANTS = "weights"
    STATE = "other state"
    INPUTS = "inputs"
    OUTPUTS = "outputs"
    ACTIVATIONS = "activations"
    WORKSPACE = "workspace"


_ROLES = {
    Role.PARAMETER: Kind.PARAMETERS,
    Role.OPTIMIZER: Kind.OPTIMIZER,
    Role.GRADIENT: Kind.GRADIENTS,
    Role.STATISTIC: Kind.STATISTICS,
    Role.COUNTER: Kind.STATE,
}


@dataclass(frozen=True, slots=True)
class Live:
    """A value or scratch that is live at the peak; `nodes` are those that compute it."""

    name: str
    nodes: tuple[str, ...]
    kind: Kind
    size: int


@dataclass(frozen=True)
class Account:
    """Bytes of one stage. `held` are outside of the arena; `live[kind][i]` are in it at step i.

    Step 0 takes the inputs, the last gives the outputs; `peak` is the step where most is live. `again` are the steps
    that repeat a call.
    """

    stage: int
    held: Mapping[Kind, int]
    live: Mapping[Kind, NDArray[np.int64]]
    titles: tuple[str, ...]
    peak: int
    at_peak: tuple[Live, ...]
    again: tuple[int, ...]
    arena: int
    lower_bound: int

    @property
    def total(self) -> int:
        """Bytes that the rank of this stage holds: what is held always, and the arena."""
        return sum(self.held.values()) + self.arena

    @property
    def ratio(self) -> float:
        """Arena over lower bound."""
        return self.arena / self.lower_bound if self.lower_bound else 1.0


def account(stage: Stage, contents: Contents, kinds: Mapping[str, Kind] | None = None) -> Account:
    """The account of a stage.

    Args:
        kinds: what named values are for: state, and values of the arena that are gradients.
    """
    kinds = {**_of_roles(stage), **(kinds or {})}
    values = {value.name: value for value in stage.values}
    staged = stage_problem(stage.segments, values, stage.inputs, stage.outputs)
    lifetimes = Simulator(staged.problem).run(range(len(staged.steps)))
    shown = names_of_values(stage, last)
    steps = len(lifetimes.live)
    live = {kind: np.zeros(steps, np.int64) for kind in Kind}
    sizes = np.array(staged.problem.sizes, np.int64)
    into = {int(new) for _, new in lifetimes.merged.tolist()}
    kind_of = [_kind(name, staged, stage, kinds) for name in staged.tensors]
    for version, tensor in enumerate(lifetimes.tensors.tolist()):
        first = int(lifetimes.first[version]) + (version in into)  # at that step its bytes are still its input's
        live[kind_of[tensor]][first : int(lifetimes.last[version]) + 1] += sizes[tensor]
    for index, operation in enumerate(staged.problem.operations, 1):
        live[Kind.WORKSPACE][index] += operation.scratch
    peak = int(lifetimes.live.argmax())
    return Account(
        stage.index,
        _held(stage, contents, kinds),
        {kind: series for kind, series in live.items() if series.any()},
        ("inputs", *(_title(step.part) for step in staged.steps), "outputs"),
        peak,
        _at(peak, staged, lifetimes, kind_of, shown, into),
        tuple(i for i, step in enumerate(staged.steps, 1) if getattr(step.part, "recompute_of", "")),
        stage.arena_bytes,
        stage.arena_lower_bound,
    )


def _of_roles(stage: Stage) -> dict[str, Kind]:
    """What the state of a training step and the gradients of its parameters are for."""
    kinds = {state.value: _ROLES[Role(state.role)] for state in stage.states}
    gradients = {f"{state.value}.gradient" for state in stage.states}
    return kinds | {value.name: Kind.GRADIENTS for value in stage.values if value.name in gradients}


def _kind(name: str, staged: StageProblem, stage: Stage, kinds: Mapping[str, Kind]) -> Kind:
    if name in kinds:
        return kinds[name]
    if name in stage.inputs:
        return Kind.INPUTS
    return Kind.OUTPUTS if staged.tensors.index(name) in staged.problem.wanted else Kind.ACTIVATIONS


def _held(stage: Stage, contents: Contents, kinds: Mapping[str, Kind]) -> dict[Kind, int]:
    held: dict[Kind, int] = {}
    entries = contents.weights(stage.weights)[1] if stage.weights else {}
    for name, entry in entries.items():
        kind = kinds.get(name, Kind.CONSTANTS)
        held[kind] = held.get(kind, 0) + entry.nbytes
    for name, size in state_bytes(stage.values).items():
        kind = kinds.get(name, Kind.STATE)
        held[kind] = held.get(kind, 0) + size
    return {kind: held[kind] for kind in Kind if held.get(kind)}


def _title(part: object) -> str:
    if isinstance(part, KernelCall):
        return short(part.origin) or part.symbol
    return str(getattr(part, "model", "") or f"choice by {getattr(part, 'condition', '?')}")


def _at(
    peak: int,
    staged: StageProblem,
    lifetimes: Lifetimes,
    kind_of: Sequence[Kind],
    shown: Mapping[str, str],
    into: set[int],
) -> tuple[Live, ...]:
    origins: dict[int, tuple[str, ...]] = {}
    for step, operation in zip(staged.steps, staged.problem.operations, strict=True):
        for tensor in operation.outputs:
            origins.setdefault(tensor, getattr(step.part, "origin", ()))
    found = []
    for version, tensor in enumerate(lifetimes.tensors.tolist()):
        first = int(lifetimes.first[version]) + (version in into)
        if first <= peak <= lifetimes.last[version] and staged.problem.sizes[tensor]:
            name = shown[staged.tensors[tensor]]
            found.append(Live(name, origins.get(tensor, ()), kind_of[tensor], staged.problem.sizes[tensor]))
    if 0 < peak <= len(staged.steps) and staged.problem.operations[peak - 1].scratch:
        part = staged.steps[peak - 1].part
        nodes = getattr(part, "origin", ())
        found.append(
            Live(f"scratch of {_title(part)}", nodes, Kind.WORKSPACE, staged.problem.operations[peak - 1].scratch)
        )
    return tuple(sorted(found, key=lambda each: (-each.size, each.name)))


def document(found: Account) -> dict[str, Any]:
    """The account as JSON values."""
    return {
        "stage": found.stage,
        "held": {kind.value: size for kind, size in found.held.items()},
        "peak": {
            "step": found.peak,
            "at": found.titles[found.peak],
            "bytes": {kind.value: int(series[found.peak]) for kind, series in found.live.items()},
            "live": [
                {"value": each.name, "nodes": list(each.nodes), "kind": each.kind.value, "bytes": each.size}
                for each in found.at_peak
            ],
        },
        "arena": found.arena,
        "lower_bound": found.lower_bound,
        "ratio": found.ratio,
        "total": found.total,
        "repeated_calls": len(found.again),
        "steps": list(found.titles),
        "live": {kind.value: series.tolist() for kind, series in found.live.items()},
    }


def blocks(found: Account, stages: int = 1) -> list[Block]:
    """The table of bytes, and what lives at the peak."""
    title = f"Bytes of stage {found.stage}" if stages > 1 else "Bytes"
    rows = [(kind.value, nbytes(size), "always") for kind, size in found.held.items()]
    at = f"step {found.peak} of {len(found.titles) - 1}, {found.titles[found.peak]}"
    for kind, series in found.live.items():
        if series[found.peak]:
            rows.append((kind.value, nbytes(int(series[found.peak])), "at the peak"))
    rows.append(("arena", nbytes(found.arena), f"{found.ratio:.3f} times the lower bound {nbytes(found.lower_bound)}"))
    rows.append(("total", nbytes(found.total), "what is held always, and the arena"))
    listed = [
        (nbytes(each.size), each.kind.value, each.name, "" if last(each.nodes) in each.name else last(each.nodes))
        for each in found.at_peak[:TOP]
    ]
    rest = found.at_peak[TOP:]
    if rest:
        listed.append((nbytes(sum(each.size for each in rest)), "", f"and {len(rest)} more", ""))
    return [
        Table(("what", "bytes", "when"), tuple(rows), title, ("bytes",)),
        Table(("bytes", "kind", "value", "computed by"), tuple(listed), f"Live at the peak: {at}", ("bytes",)),
    ]
