"""Cost models: a roofline, measurements on this machine, or the costs recorded in an artifact."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graphopt.cost.roofline import Machine
from graphopt.cost.table import CostTable
from graphopt.cost.workload import Timing, Workload
from graphopt.errors import GraphoptError

Measure = Callable[[Sequence[Sequence[tuple[Workload, str]]]], Sequence[Sequence[Timing | None]]]
"""Times groups of (workload, tile) pairs, interleaved within a group; None where no code can be generated."""

Tiles = Callable[[Workload], Sequence[str]]
"""Tiles of a workload, the best by estimate first; a single "" where there is nothing to choose."""


Estimate = Callable[[Workload, str], float | None]
"""A target's estimate of the seconds of a workload whose GEMMs may run on the units named ("tf32"; "" for CUDA cores or
scalar code).

Infinity if the target has no kernel for the workload; None to fall back to the roofline of `graphopt.cost.roofline`."""


CLEARLY = 0.97
"""A tile below this share of the default tile's seconds, in most rounds, replaces it."""


WITHIN_REACH = 1.4
"""Prune workloads whose default tile is this many times slower than the group's best: other tiles rarely gain more."""


class CostModel:
    """Estimates alone: it has no timings, so callers fall back to `estimated`."""

    def __init__(self, machine: Machine | None = None, estimate: Estimate | None = None) -> None:
        """Args: estimate: the target's own estimate, which replaces the roofline."""
        self.machine = machine or Machine()
        self.used: dict[str, Timing | None] = {}
        self._estimate = estimate

    def estimated(self, workload: Workload, roofline: float, units: str = "") -> float:
        """Seconds of `workload` by the target's own estimate, or else `roofline`."""
        estimate = None if self._estimate is None else self._estimate(workload, units)
        return roofline if estimate is None else estimate

    def timings(self, groups: Sequence[Sequence[Workload]]) -> list[list[Timing | None]]:
        """Seconds and best tile of every workload; the workloads of a group compete and are measured interleaved."""
        return [[None] * len(group) for group in groups]

    def known(self, workload: Workload) -> Timing | None:
        """The timing of `workload` that is known without measuring; None if there is none."""
        del workload
        return None


class MeasuredCosts(CostModel):
    """Timings from the cost table; missing ones are measured now and added to it.

    Tiles in the table that `tiles` does not offer, which tuning added, are candidates too.
    """

    def __init__(
        self, machine: Machine, table: CostTable, tiles: Tiles, measure: Measure, estimate: Estimate | None = None
    ) -> None:
        """Args: estimate: finds the workloads that are not worth measuring, as in `CostModel`."""
        super().__init__(machine, estimate)
        self.table, self.measure, self._tiles = table, measure, tiles
        self.measured = 0

    def timings(self, groups: Sequence[Sequence[Workload]]) -> list[list[Timing | None]]:
        """Per workload, the tile that beats the default by more than the noise, or the default.

        Measures every workload with its default tile first; then the other tiles of those close to the group's best.
        """
        distinct = {workload.key: workload for group in groups for workload in group}
        known = {key: self.table.get(key) for key in distinct}
        tiles = {key: tuple(dict.fromkeys((*self._tiles(workload), *known[key]))) for key, workload in distinct.items()}
        self._complete(groups, {key: offered[:1] for key, offered in tiles.items()}, known)
        near = {
            workload.key
            for group in groups
            for seconds in [[_least(known[workload.key]) for workload in group]]
            for workload, least in zip(group, seconds, strict=True)
            if least <= WITHIN_REACH * min(seconds)
        }
        self._complete(groups, {key: offered if key in near else () for key, offered in tiles.items()}, known)
        best = {key: _best([known[key][tile] for tile in tiles[key] if tile in known[key]]) for key in distinct}
        self.used.update(best)
        return [[best[workload.key] for workload in group] for group in groups]

    def known(self, workload: Workload) -> Timing | None:
        """The timing used so far, else the best one of the table, which is then recorded as used for a rebuild."""
        if workload.key not in self.used:
            timings = self.table.get(workload.key)
            offered = dict.fromkeys((*self._tiles(workload), *timings)) if timings else ()
            best = _best([timings[tile] for tile in offered if tile in timings])
            if best is None:
                return None
            self.used[workload.key] = best
        return self.used[workload.key]

    def _complete(
        self,
        groups: Sequence[Sequence[Workload]],
        tiles: Mapping[str, Sequence[str]],
        known: Mapping[str, dict[str, Timing]],
    ) -> None:
        """Measure the tiles that are not `known`, and add them there and to the table.

        The known timings of a group were measured at another time, when the machine may have been slower or faster. So
        the fastest of them is measured again among the new ones and gives the ratio of the two times.
        """
        missing: list[_Missing] = []
        asked: set[str] = set()
        for group in groups:
            fresh = {workload.key: workload for workload in group if workload.key not in asked}
            asked |= set(fresh)
            wanted = [
                (workload, tile) for key, workload in fresh.items() for tile in tiles[key] if tile not in known[key]
            ]
            if wanted:
                before = [(workload, timing) for workload in fresh.values() for timing in known[workload.key].values()]
                reference = min(before, key=lambda pair: pair[1].seconds, default=None)
                missing.append(_Missing(wanted, reference, set(fresh)))
        measured = self.measure([asking.pairs for asking in missing]) if missing else ()
        for asking, timings in zip(missing, measured, strict=True):
            slower = asking.slower(timings)
            rows = [
                (workload.key, timing.scaled(1 / max(slower, 1.0)))
                for (workload, _), timing in zip(asking.wanted, timings, strict=False)
                if timing is not None
            ]
            self.measured += len(rows)
            if slower < 1.0:  # the machine was disturbed when the known timings were taken
                rows += [(key, timing.scaled(slower)) for key in sorted(asking.keys) for timing in known[key].values()]
            self.table.put(rows)
            for key, timing in rows:
                known[key][timing.tile] = timing


@dataclass(frozen=True)
class _Missing:
    """Missing measurements of a group, and its fastest known timing as the reference."""

    wanted: list[tuple[Workload, str]]
    reference: tuple[Workload, Timing] | None
    keys: set[str]

    @property
    def pairs(self) -> list[tuple[Workload, str]]:
        """Workloads and tiles, the reference last."""
        return self.wanted if self.reference is None else [*self.wanted, (self.reference[0], self.reference[1].tile)]

    def slower(self, timings: Sequence[Timing | None]) -> float:
        """Slowdown since the reference was first measured."""
        again = timings[-1] if self.reference is not None else None
        return 1.0 if again is None or self.reference is None else again.seconds / self.reference[1].seconds


class RecordedCosts(CostModel):
    """The timings that an artifact was built with, so that a rebuild measures nothing and makes the same choices."""

    def __init__(
        self, machine: Machine, record: Mapping[str, Timing | None], source: str, estimate: Estimate | None = None
    ) -> None:
        """Args: record: timings by workload key; source: the artifact, for errors; estimate: as in `CostModel`."""
        super().__init__(machine, estimate)
        self._record, self._source = record, source

    def timings(self, groups: Sequence[Sequence[Workload]]) -> list[list[Timing | None]]:
        """The recorded timings of every workload.

        Raises:
            GraphoptError: a workload is not in the record.
        """
        timings: list[list[Timing | None]] = []
        for group in groups:
            for workload in group:
                if workload.key not in self._record:
                    raise GraphoptError(
                        f"{self._source} holds no cost of a {workload.op_type} on {list(workload.operands[0].shape)}: "
                        "it was built from another model or by another version; leave --costs out"
                    )
                self.used[workload.key] = self._record[workload.key]
            timings.append([self._record[workload.key] for workload in group])
        return timings

    def known(self, workload: Workload) -> Timing | None:
        """The recorded timing of `workload`; None if there is none."""
        if workload.key in self._record:
            self.used[workload.key] = self._record[workload.key]
        return self._record.get(workload.key)


def _least(timings: Mapping[str, Timing]) -> float:
    """Seconds of the fastest timing; infinity without any."""
    return min((timing.seconds for timing in timings.values()), default=math.inf)


def _best(timings: Sequence[Timing]) -> Timing | None:
    """The first timing, unless another is clearly faster: choices should not follow noise."""
    best: Timing | None = None
    for timing in timings:
        if (
            best is None
            or timing.high < best.low
            or (timing.seconds < CLEARLY * best.seconds and timing.high < best.seconds)
        ):
            best = timing
    return best
