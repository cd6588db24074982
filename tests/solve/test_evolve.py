import itertools
import math
from collections.abc import Mapping, Sequence

from graphopt.solve.evolve import evolve

SPACE = [
    f"{rows}x{vectors}u{unroll}" for rows, vectors, unroll in itertools.product(range(1, 25), range(1, 5), (1, 2, 4))
]


def seconds(tile: str) -> float:
    """A valley around 14x2u4, with spilling beyond 28 accumulators."""
    rows, _, rest = tile.partition("x")
    vectors, _, unroll = rest.partition("u")
    accumulators = int(rows) * int(vectors)
    cost = abs(math.log2(int(rows) / 14)) + 2 * abs(math.log2(int(vectors) / 2)) + 0.3 * (2 - math.log2(int(unroll)))
    return 1e-6 * (1 + cost + (3 if accumulators > 28 else 0))


class Machine:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, tiles: Sequence[str]) -> Mapping[str, float]:
        self.asked += tiles
        return {tile: seconds(tile) for tile in tiles if tile != "1x1u1"}


def test_it_finds_the_valley_with_a_fraction_of_the_space() -> None:
    machine = Machine()
    found = evolve(SPACE, {}, machine, trials=72)
    assert len(machine.asked) == len(set(machine.asked)) == 72
    assert min(found.values()) <= 1.15 * seconds("14x2u4")


def test_it_beats_the_same_number_of_tiles_by_turns() -> None:
    searched = min(evolve(SPACE, {}, Machine(), trials=48).values())
    assert searched < min(seconds(tile) for tile in SPACE[:: len(SPACE) // 48])


def test_what_is_known_is_not_measured_again() -> None:
    first = Machine()
    known = evolve(SPACE, {}, first, trials=24)
    second = Machine()
    found = evolve(SPACE, known, second, trials=24)
    assert not set(first.asked) & set(second.asked)
    assert min(found.values()) <= min(known.values())


def test_it_ends_when_the_space_does() -> None:
    machine = Machine()
    found = evolve(["1x1u1", "2x1u1", "3x1u1"], {"2x1u1": 1.0, "elsewhere": 0.1}, machine, trials=50)
    assert sorted(machine.asked) == ["1x1u1", "3x1u1"]  # the first cannot be built, and is not asked for again
    assert set(found) == {"2x1u1", "3x1u1"}


def test_words_are_told_apart() -> None:
    machine = Machine.__new__(Machine)
    machine.asked = []
    space = [f"{word}:{n}x2" for word in ("fused", "separate") for n in range(1, 30)]

    def measure(tiles: Sequence[str]) -> Mapping[str, float]:
        return {t: 1e-6 * (1 if t.startswith("fused") else 5) * (1 + abs(int(t.split(":")[1][:-2]) - 7)) for t in tiles}

    assert min(evolve(space, {}, measure, trials=28), key=lambda t: measure([t])[t]).startswith("fused")
