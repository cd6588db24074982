"""Interleaved timing of runtimes that share one process and its cores.

Both sides keep worker threads that spin for a while after a run, waiting for more work. A side that runs while the
other's threads still spin gets only a part of the cores: strictly alternating single runs (A B A B) would time the
spinning, not the models. One process per side would avoid that, but then frequency, page cache and neighbours differ.
So:

- the sides alternate in short blocks, A B, then B A, then A B, ...: slow drifts of the machine affect both equally;
- before a block, nothing runs until the CPU clock of the process stands still, that is, until all threads sleep
  (ONNX Runtime's go to sleep after some 50 ms, TVM's after 200 ms and more);
- the first run of a block wakes the side's own threads and fills the caches: it is not counted;
- inside a block a side runs back to back, as a server under load would.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ROUNDS = 12
BLOCK_SECONDS = 0.2
"""Approximate seconds of a block when no number of runs is given."""
_LEAST, _MOST = 3, 200
_LOOK_SECONDS = 0.01
_QUIET = 0.1
"""The process is quiet when its threads together use less than this share of one core."""
_LONGEST_WAIT = 3.0

Block = Callable[[int], Sequence[float]]
"""Number of runs -> the seconds of each, run back to back; warm-up before the first counted run is not included."""


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of every counted run: `rounds[round][side]`. `quiet` is False if a block began while threads spun."""

    rounds: tuple[tuple[tuple[float, ...], ...], ...]
    quiet: bool


def by_clock(side: Callable[[], object]) -> Block:
    """A block that calls a function of this process, timed by the host's clock."""

    def block(runs: int) -> tuple[float, ...]:
        side()
        seconds = []
        for _ in range(runs):
            start = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - start)
        return tuple(seconds)

    return block


def interleave(sides: Sequence[Block], runs: int | None = None, rounds: int = ROUNDS) -> Timings:
    """Time `sides` against each other.

    Args:
        sides: one block function per side.
        runs: counted runs per side over all rounds; default as many as fit blocks of 0.2 s, 3 to 200 runs each.
        rounds: blocks per side.
    """
    if runs is not None:
        rounds = min(rounds, runs)
    lengths = [_block_length(side, runs, rounds) for side in sides]
    measured: list[tuple[tuple[float, ...], ...]] = []
    quiet = True
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        blocks: list[tuple[float, ...]] = [()] * len(sides)
        for index in order:
            quiet &= wait_until_quiet()
            blocks[index] = tuple(sides[index](lengths[index]))
        measured.append(tuple(blocks))
    return Timings(tuple(measured), quiet)


def wait_until_quiet() -> bool:
    """Wait until the threads of this process sleep; False if they still run after some seconds."""
    deadline = time.perf_counter() + _LONGEST_WAIT
    while time.perf_counter() < deadline:
        wall, used = time.perf_counter(), time.process_time()
        time.sleep(_LOOK_SECONDS)
        if time.process_time() - used < _QUIET * (time.perf_counter() - wall):
            return True
    return False


def _block_length(side: Block, runs: int | None, rounds: int) -> int:
    """Runs per block, measured after a warm-up."""
    if runs is not None:
        side(1)
        return math.ceil(runs / rounds)
    fastest = min(side(_LEAST))
    return max(_LEAST, min(_MOST, round(BLOCK_SECONDS / max(fastest, 1e-9))))
