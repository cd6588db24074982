from collections.abc import Sequence
from pathlib import Path

import pytest

from graphopt.cost.model import CostModel, MeasuredCosts, RecordedCosts
from graphopt.cost.roofline import Machine
from graphopt.cost.source import parse, record
from graphopt.cost.table import Context, CostTable
from graphopt.cost.workload import Operand, Timing, Workload
from graphopt.errors import ArtifactError, GraphoptError

FAST = Workload("Fast", (Operand((1, 8)),), (1, 8))
SLOW = Workload("Slow", (Operand((1, 8)),), (1, 8))
BROKEN = Workload("Broken", (Operand((1, 8)),), (1, 8))


class Stopwatch:
    """Pretends to measure; remembers what it was asked."""

    def __init__(self, seconds: dict[tuple[str, str], tuple[float, float, float]]) -> None:
        self.seconds = seconds
        self.asked: list[list[tuple[str, str]]] = []

    def __call__(self, groups: Sequence[Sequence[tuple[Workload, str]]]) -> list[list[Timing | None]]:
        self.asked += [[(workload.op_type, tile) for workload, tile in group] for group in groups]
        return [
            [
                Timing(*self.seconds[workload.op_type, tile], tile)
                if (workload.op_type, tile) in self.seconds
                else None
                for workload, tile in group
            ]
            for group in groups
        ]


SECONDS = {
    ("Fast", "a"): (5e-6, 4.9e-6, 5.1e-6),
    ("Fast", "b"): (3e-6, 2.9e-6, 3.1e-6),
    ("Slow", "a"): (9e-6, 8e-6, 9.5e-6),
    ("Slow", "b"): (8.9e-6, 8e-6, 9.9e-6),
}


def model(tmp_path: Path, stopwatch: Stopwatch) -> MeasuredCosts:
    table = CostTable(tmp_path / "costs.sqlite", Context.of({"processor": "P"}))
    return MeasuredCosts(Machine(), table, lambda workload: ("a", "b"), stopwatch)


def test_the_best_tile_wins_unless_the_difference_is_noise(tmp_path: Path) -> None:
    ((fast, broken), (slow,)) = model(tmp_path, Stopwatch(SECONDS)).timings([[FAST, BROKEN], [SLOW]])
    assert fast is not None
    assert slow is not None
    assert (fast.tile, slow.tile, broken) == ("b", "a", None)


def test_what_the_table_has_is_not_measured_again(tmp_path: Path) -> None:
    first, second = Stopwatch(SECONDS), Stopwatch(SECONDS)
    expected = model(tmp_path, first).timings([[FAST, SLOW], [SLOW, FAST]])
    # Slow is out of reach of Fast; what is already known of Fast is measured beside its other tile.
    assert first.asked == [[("Fast", "a"), ("Slow", "a")], [("Fast", "b"), ("Fast", "a")]]
    again = model(tmp_path, second)
    assert again.timings([[FAST, SLOW], [SLOW, FAST]]) == expected
    assert second.asked == []
    assert again.measured == 0


class Disturbed(Stopwatch):
    """The machine takes `factors` times as long at one call after the other."""

    def __init__(self, seconds: dict[tuple[str, str], tuple[float, float, float]], *factors: float) -> None:
        super().__init__(seconds)
        self.factors = list(factors)

    def __call__(self, groups: Sequence[Sequence[tuple[Workload, str]]]) -> list[list[Timing | None]]:
        factor = self.factors.pop(0)
        return [[each and each.scaled(factor) for each in group] for group in super().__call__(groups)]


@pytest.mark.parametrize("factors", [(1, 1), (1, 3), (3, 1), (2, 3)])
def test_tiles_measured_at_different_times_compare_as_if_measured_at_once(
    tmp_path: Path, factors: tuple[float, float]
) -> None:
    watch = Disturbed(SECONDS, *factors)
    ((fast, slow),) = model(tmp_path, watch).timings([[FAST, SLOW]])
    least = min(factors)
    assert fast is not None
    assert slow is not None
    assert fast.tile == "b"
    assert (fast.seconds, slow.seconds) == pytest.approx((3e-6 * least, 9e-6 * least))
    ((again, _),) = model(tmp_path, Stopwatch({})).timings([[FAST, SLOW]])
    assert again == fast


def test_a_record_gives_the_same_without_measuring(tmp_path: Path) -> None:
    measured = model(tmp_path, Stopwatch(SECONDS))
    expected = measured.timings([[FAST, BROKEN], [SLOW]])
    recorded = RecordedCosts(Machine(), parse(record(measured), "a.gopt"), "a.gopt")
    assert recorded.timings([[FAST, BROKEN], [SLOW]]) == expected
    assert record(recorded) == record(measured)


def test_a_record_of_something_else_is_refused() -> None:
    with pytest.raises(GraphoptError, match=r"a\.gopt holds no cost of a Fast on \[1, 8\]"):
        RecordedCosts(Machine(), {}, "a.gopt").timings([[FAST]])


@pytest.mark.parametrize("document", [None, [], {"k": 1}, {"k": [1, 2]}, {"k": [1, 2, 3, 4]}, {"k": ["x", 1, 1, ""]}])
def test_a_damaged_record(document: object) -> None:
    with pytest.raises(ArtifactError, match=r"the costs in the manifest of a\.gopt cannot be read"):
        parse(document, "a.gopt")


def test_the_roofline_knows_no_timings() -> None:
    assert CostModel().timings([[FAST, SLOW], []]) == [[None, None], []]
