"""Where the costs of a choice come from: a roofline, measurements on this machine, or an artifact's record of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graphopt.cost.roofline import Machine
from graphopt.cost.table import CostTable
from graphopt.cost.workload import Timing, Workload
from graphopt.errors import GraphoptError

Measure = Callable[[Sequence[Sequence[tuple[Workload, str]]]], Sequence[Sequence[Timing | None]]]
"""Times groups of (work, tile) pairs, those of a group interleaved; None where no code can be generated."""

Tiles = Callable[[Workload], Sequence[str]]
"""The tiles that a work may use, the best by estimate first; a single "" where there is nothing to choose."""


Estimate = Callable[[Workload, str], float | None]
"""A target's estimate of the seconds of a work whose products may use those units ("tf32"; "" for the ordinary ones).

Infinity where it has no kernel for the work; None where the roofline of `graphopt.cost.roofline` is to be asked."""


CLEARLY = 0.97
"""A tile that takes less than this share of the default's seconds, in most rounds, is taken instead of it."""


WITHIN_REACH = 1.4
"""Another tile rarely gains more: a work whose default tile is so many times slower than the best is not followed."""


class CostModel:
    """Estimates alone: it has no timings, and whoever asks falls back to `estimated`."""

    def __init__(self, machine: Machine | None = None, estimate: Estimate | None = None) -> None:
        """Args: estimate: the target's own, which replaces the roofline."""
        self.machine = machine or Machine()
        self.used: dict[str, Timing | None] = {}
        self._estimate = estimate

    def estimated(self, workload: Workload, roofline: float, units: str = "") -> float:
        """Seconds of `workload` by the target's own estimate, or else by the `roofline`."""
        found = None if self._estimate is None else self._estimate(workload, units)
        return roofline if found is None else found

    def timings(self, groups: Sequence[Sequence[Workload]]) -> list[list[Timing | None]]:
        """Seconds and best tile of every work; the works of one group compete and are measured interleaved."""
        return [[None] * len(group) for group in groups]


class MeasuredCosts(CostModel):
    """Timings from the cost table; what it lacks is measured now and added to it.

    Tiles that the table has beyond those that `tiles` offers, which tuning put there, are as good as those.
    """

    def __init__(
        self, machine: Machine, table: CostTable, tiles: Tiles, measure: Measure, estimate: Estimate | None = None
    ) -> None:
        """Args: estimate: tells what is not worth measuring, as that of `CostModel`."""
        super().__init__(machine, estimate)
        self.table, self.measure, self._tiles = table, measure, tiles
        self.measured = 0

    def timings(self, groups: Sequence[Sequence[Workload]]) -> list[list[Timing | None]]:
        """Per work the tile that is faster than the default by more than the noise, or the default.

        First every work with its default tile; then the other tiles of those that are within reach of the best.
        """
        distinct = {workload.key: workload for group in groups for workload in group}
        known = {key: self.table.get(key) for key in distinct}
        tiles = {key: tuple(dict.fromkeys((*self._tiles(workload), *known[key]))) for key, workload in distinct.items()}
        self._complete(groups, {key: each[:1] for key, each in tiles.items()}, known)
        near = {
            workload.key
            for group in groups
            for seconds in [[_least(known[workload.key]) for workload in group]]
            for workload, least in zip(group, seconds, strict=True)
            if least <= WITHIN_REACH * min(seconds)
        }
        self._complete(groups, {key: each if key in near else () for key, each in tiles.items()}, known)
        best = {key: _best([known[key][tile] for tile in tiles[key] if tile in known[key]]) for key in distinct}
        self.used.update(best)
        return [[best[workload.key] for workload in group] for group in groups]

    def _complete(
        self,
        groups: Sequence[Sequence[Workload]],
        tiles: Mapping[str, Sequence[str]],
        known: Mapping[str, dict[str, Timing]],
    ) -> None:
        """Measure the wanted tiles that are not `known`, and add them there and to the table.

        What is known of a group was measured at another time, when the machine may have been slower or faster. So the
        fastest of that is measured again, between the new ones, and tells how the two times compare.
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
        found = self.measure([asking.pairs for asking in missing]) if missing else ()
        for asking, timings in zip(missing, found, strict=True):
            slower = asking.slower(timings)
            rows = [
                (workload.key, timing.scaled(1 / max(slower, 1.0)))
                for (workload, _), timing in zip(asking.wanted, timings, strict=False)
                if timing is not None
            ]
            self.measured += len(rows)
            if slower < 1.0:  # the first time was the disturbed one
                rows += [(key, timing.scaled(slower)) for key in sorted(asking.keys) for timing in known[key].values()]
            self.table.put(rows)
            for key, timing in rows:
                known[key][timing.tile] = timing


@dataclass(frozen=True)
class _Missing:
    """What is to be measured of a group, beside the fastest of what is known of it."""

    wanted: list[tuple[Workload, str]]
    reference: tuple[Workload, Timing] | None
    keys: set[str]

    @property
    def pairs(self) -> list[tuple[Workload, str]]:
        """Works and tiles, the reference last."""
        return self.wanted if self.reference is None else [*self.wanted, (self.reference[0], self.reference[1].tile)]

    def slower(self, timings: Sequence[Timing | None]) -> float:
        """How many times the reference's seconds of before the machine takes now."""
        again = timings[-1] if self.reference is not None else None
        return 1.0 if again is None or self.reference is None else again.seconds / self.reference[1].seconds


class RecordedCosts(CostModel):
    """The timings that an artifact was built with, so that building it again measures nothing and chooses the same."""

    def __init__(
        self, machine: Machine, record: Mapping[str, Timing | None], source: str, estimate: Estimate | None = None
    ) -> None:
        super().__init__(machine, estimate)
        self._record, self._source = record, source

    def timings(self, groups: Sequence[Sequence[Workload]]) -> list[list[Timing | None]]:
        """As recorded.

        Raises:
            GraphoptError: a work is not in the record.
        """
        found: list[list[Timing | None]] = []
        for group in groups:
            for workload in group:
                if workload.key not in self._record:
                    raise GraphoptError(
                        f"{self._source} holds no cost of a {workload.op_type} on {list(workload.operands[0].shape)}: "
                        "it was built from another model or by another version; leave --costs out"
                    )
                self.used[workload.key] = self._record[workload.key]
            found.append([self._record[workload.key] for workload in group])
        return found


def _least(timings: Mapping[str, Timing]) -> float:
    """Seconds of the fastest one; infinity without any."""
    return min((timing.seconds for timing in timings.values()), default=math.inf)


def _best(timings: Sequence[Timing]) -> Timing | None:
    """The first one, unless another is faster beyond doubt: choices should not follow noise."""
    best: Timing | None = None
    for timing in timings:
        if (
            best is None
            or timing.high < best.low
            or (timing.seconds < CLEARLY * best.seconds and timing.high < best.seconds)
        ):
            best = timing
    return best
