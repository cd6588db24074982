"""Where the costs of a choice come from: a roofline, measurements on this machine, or an artifact's record of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graphopt.cost.roofline import Machine
from graphopt.cost.table import CostTable
from graphopt.cost.work import Timing, Work
from graphopt.errors import GraphoptError

Measure = Callable[[Sequence[Sequence[tuple[Work, str]]]], Sequence[Sequence[Timing | None]]]
"""Times groups of (work, tile) pairs, those of a group interleaved; None where no code can be generated."""

Tiles = Callable[[Work], Sequence[str]]
"""The tiles that a work may use, the best by estimate first; a single "" where there is nothing to choose."""


Estimate = Callable[[Work, str], float | None]
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

    def estimated(self, work: Work, roofline: float, units: str = "") -> float:
        """Seconds of `work` by the target's own estimate, or else by the `roofline`."""
        found = None if self._estimate is None else self._estimate(work, units)
        return roofline if found is None else found

    def timings(self, groups: Sequence[Sequence[Work]]) -> list[list[Timing | None]]:
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

    def timings(self, groups: Sequence[Sequence[Work]]) -> list[list[Timing | None]]:
        """Per work the tile that is faster than the default by more than the noise, or the default.

        First every work with its default tile; then the other tiles of those that are within reach of the best.
        """
        distinct = {work.key: work for group in groups for work in group}
        known = {key: self.table.get(key) for key in distinct}
        tiles = {key: tuple(dict.fromkeys((*self._tiles(work), *known[key]))) for key, work in distinct.items()}
        self._complete(groups, {key: each[:1] for key, each in tiles.items()}, known)
        near = {
            work.key
            for group in groups
            for seconds in [[_least(known[work.key]) for work in group]]
            for work, least in zip(group, seconds, strict=True)
            if least <= WITHIN_REACH * min(seconds)
        }
        self._complete(groups, {key: each if key in near else () for key, each in tiles.items()}, known)
        best = {key: _best([known[key][tile] for tile in tiles[key] if tile in known[key]]) for key in distinct}
        self.used.update(best)
        return [[best[work.key] for work in group] for group in groups]

    def _complete(
        self,
        groups: Sequence[Sequence[Work]],
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
            fresh = {work.key: work for work in group if work.key not in asked}
            asked |= set(fresh)
            wanted = [(work, tile) for key, work in fresh.items() for tile in tiles[key] if tile not in known[key]]
            if wanted:
                before = [(work, timing) for work in fresh.values() for timing in known[work.key].values()]
                reference = min(before, key=lambda pair: pair[1].seconds, default=None)
                missing.append(_Missing(wanted, reference, set(fresh)))
        found = self.measure([asking.pairs for asking in missing]) if missing else ()
        for asking, timings in zip(missing, found, strict=True):
            slower = asking.slower(timings)
            rows = [
                (work.key, timing.scaled(1 / max(slower, 1.0)))
                for (work, _), timing in zip(asking.wanted, timings, strict=False)
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

    wanted: list[tuple[Work, str]]
    reference: tuple[Work, Timing] | None
    keys: set[str]

    @property
    def pairs(self) -> list[tuple[Work, str]]:
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

    def timings(self, groups: Sequence[Sequence[Work]]) -> list[list[Timing | None]]:
        """As recorded.

        Raises:
            GraphoptError: a work is not in the record.
        """
        found: list[list[Timing | None]] = []
        for group in groups:
            for work in group:
                if work.key not in self._record:
                    raise GraphoptError(
                        f"{self._source} holds no cost of a {work.op_type} on {list(work.operands[0].shape)}: it was "
                        "built from another model or by another version; leave --costs out"
                    )
                self.used[work.key] = self._record[work.key]
            found.append([self._record[work.key] for work in group])
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
