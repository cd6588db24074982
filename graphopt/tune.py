"""Wider search for the tiles of a model's hottest kernels; results go into the cost table, which compiling reads.

Compiling measures a few tiles per kernel. Tuning takes the kernels with the largest share of the model's time and
searches all their tiles (`graphopt.solve.evolve`), up to the given number of trials. Every measurement is kept, so that
an interrupted search continues where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from graphopt.compiler import rewrite
from graphopt.cost.model import MeasuredCosts
from graphopt.cost.node_workload import workload_of
from graphopt.cost.source import MEASURED
from graphopt.cost.workload import Timing, Workload
from graphopt.errors import GraphoptError
from graphopt.options import Options
from graphopt.solve.evolve import evolve


@dataclass(frozen=True, slots=True)
class Tuned:
    """One kernel: the number of nodes that use it, its timing before and after, tiles tried so far, and all tiles."""

    workload: Workload
    nodes: int
    before: Timing
    after: Timing
    tried: int
    space: int


def tune(
    source: Any,
    options: Options | None = None,
    *,
    trials: int = 64,
    top: int = 8,
    progress: Callable[[str], None] | None = None,
    **named: Any,
) -> Iterator[Tuned]:
    """Tune the `top` kernels that take most of the model's time; yields each when it is done.

    Args:
        source: as in `graphopt.compile`.
        options: options of the compilation; costs are always measured.
        trials: tiles to measure per kernel, besides those in the cost table.
        named: fields of `Options`, instead of those of `options`.

    Raises:
        GraphoptError: nothing can be measured on this machine, or an error of compiling.
    """
    say = progress or (lambda _: None)
    asked = dataclasses.replace(options or Options(), **{**named, "costs": MEASURED})
    say("compiling as it is")
    rewritten = rewrite(source, asked)
    costs, target = rewritten.costs, rewritten.target
    if not isinstance(costs, MeasuredCosts):
        raise GraphoptError(f"nothing can be tuned here: {target.cannot_measure()}")
    counts = Counter(workload for node in rewritten.model.graph if (workload := workload_of(node)) is not None)
    spaces = {workload: tuple(space) for workload in counts if len(space := target.wide_tiles(workload)) > 1}
    now = {workload: timing for workload in spaces if (timing := costs.timings([[workload]])[0][0]) is not None}
    hottest = sorted(now, key=lambda workload: -now[workload].seconds * counts[workload])[:top]
    for number, workload in enumerate(hottest, 1):
        say(f"kernel {number} of {len(hottest)}: {workload.op_type}")
        search = _Search(costs, workload, now[workload])
        evolve(spaces[workload], search.known(), search, trials, seed=asked.seed)
        measured = search.known()
        after = costs.timings([[workload]])[0][0]
        assert after is not None
        yield Tuned(workload, counts[workload], now[workload], after, len(measured), len(spaces[workload]))


class _Search:
    """Measures tiles of one workload, always beside the best known one, and writes the timings to the table."""

    def __init__(self, costs: MeasuredCosts, workload: Workload, best: Timing) -> None:
        """Args: best: timing that new measurements are scaled to."""
        self._costs, self._workload, self._best = costs, workload, best

    def known(self) -> dict[str, float]:
        """Seconds of all tiles in the table."""
        return {tile: timing.seconds for tile, timing in self._costs.table.get(self._workload.key).items()}

    def __call__(self, tiles: Sequence[str]) -> dict[str, float]:
        """Seconds of `tiles`, scaled to the time when the best tile was measured: machines drift."""
        pairs = [(self._workload, tile) for tile in (self._best.tile, *tiles)]
        ((now, *others),) = self._costs.measure([pairs])
        scale = self._best.seconds / now.seconds if now is not None else 1.0
        timings = [
            dataclasses.replace(t, seconds=t.seconds * scale, low=t.low * scale, high=t.high * scale)
            for t in others
            if t is not None
        ]
        self._costs.table.put((self._workload.key, timing) for timing in timings)
        fastest = min(timings, key=lambda t: t.seconds, default=self._best)
        if fastest.high < self._best.seconds:
            self._best = fastest
        return {timing.tile: timing.seconds for timing in timings}
