"""Chooses the costs of a compilation: `measured` on this machine, `roofline`, or those of an earlier artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from graphopt.artifact import open_artifact
from graphopt.cost.model import CostModel, MeasuredCosts, RecordedCosts
from graphopt.cost.roofline import Machine
from graphopt.cost.table import Context, CostTable, default_path
from graphopt.cost.workload import Timing, Workload
from graphopt.errors import ArtifactError, GraphoptError

MEASURED, ROOFLINE = "measured", "roofline"
VARIABLE = "GRAPHOPT_COSTS"
"""Environment variable with the default of --costs."""


class Costed(Protocol):
    """What a target provides for costs."""

    @property
    def machine(self) -> Machine:
        """The machine that the roofline assumes."""

    def describe(self) -> dict[str, Any]:
        """The manifest's `target`: name, architecture and the features a processor must have."""

    def estimate(self, workload: Workload, units: str) -> float | None:
        """Seconds of `workload`, see `graphopt.cost.model.Estimate`."""

    def tiles(self, workload: Workload) -> Sequence[str]:
        """Tiles that the kernel of `workload` may use, the best by estimate first."""

    def measure(
        self, groups: Sequence[Sequence[tuple[Workload, str]]], progress: Callable[[str], None] | None = None
    ) -> Sequence[Sequence[Timing | None]]:
        """Seconds of every (workload, tile) here, interleaved within a group; None where the kernel cannot be built."""

    def cannot_measure(self) -> str | None:
        """Why kernels for this target cannot be timed on this machine, in a sentence; None if they can."""

    def cost_facts(self) -> dict[str, str]:
        """Everything that measured seconds depend on besides the workload and its tile."""


def open_costs(
    source: str,
    target: Costed,
    note: Callable[[str], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> CostModel:
    """The cost model that `source` names: `measured`, `roofline`, or the path of an artifact.

    `note` receives the reason where estimates replace measurements, `progress` the state of a measurement.

    Raises:
        GraphoptError: `source` is none of these, or the artifact holds no costs for this target.
    """
    if source == ROOFLINE:
        return CostModel(target.machine, target.estimate)
    if source == MEASURED:
        if (reason := target.cannot_measure()) is not None:
            if note is not None:
                note(f"costs are estimates: {reason}")
            return CostModel(target.machine, target.estimate)
        facts = target.cost_facts()
        if "gpu" in facts and note is not None:
            note(f"costs are measured on {facts['gpu']}")
        table = CostTable(default_path(), Context.of(facts))

        def measure(groups: Sequence[Sequence[tuple[Workload, str]]]) -> Sequence[Sequence[Timing | None]]:
            timings = target.measure(groups, progress)
            if note is not None and timings and not any(timing is not None for group in timings for timing in group):
                note(f"none of {sum(map(len, timings))} kernels could be measured: their costs are estimates")
            return timings

        return MeasuredCosts(target.machine, table, target.tiles, measure, target.estimate)
    if not Path(source).exists():
        raise GraphoptError(
            f"--costs (or {VARIABLE}) is {source}, which is neither {MEASURED}, {ROOFLINE} nor an artifact that exists"
        )
    manifest = open_artifact(source, check_cpu=False).manifest
    if manifest.get("target") != target.describe():
        raise GraphoptError(
            f"--costs {source} was built for another target; compile for the same, or leave --costs out"
        )
    recorded = parse(manifest.get("costs", {}), source)
    if not recorded:  # the artifact was built by estimates, which are reproducible
        return CostModel(target.machine, target.estimate)
    return RecordedCosts(target.machine, recorded, source, target.estimate)


def record(model: CostModel) -> dict[str, list[Any] | None]:
    """The timings that a compilation used, as JSON values; null for a workload that could not be measured."""
    return {
        key: None if timing is None else [timing.seconds, timing.low, timing.high, timing.tile]
        for key, timing in sorted(model.used.items())
    }


def parse(document: object, source: str) -> dict[str, Timing | None]:
    """Parse the timings that `record` wrote.

    Raises:
        ArtifactError: `document` has another form.
    """
    timings: dict[str, Timing | None] = {}
    try:
        if not isinstance(document, Mapping):
            raise TypeError
        for key, row in document.items():
            if row is None:
                timings[str(key)] = None
                continue
            seconds, low, high, tile = row
            if not isinstance(tile, str):
                raise TypeError
            timings[str(key)] = Timing(float(seconds), float(low), float(high), tile)
    except (TypeError, ValueError):
        raise ArtifactError(f"the costs in the manifest of {source} cannot be read; compile the model again") from None
    return timings
