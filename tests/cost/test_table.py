import contextlib
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from graphopt.cost.table import Context, CostTable
from graphopt.cost.workload import Operand, Timing, Workload
from graphopt.errors import GraphoptError

CONTEXT = Context.of({"processor": "P", "threads": "2"})
TIMING = Timing(2e-6, 1e-6, 3e-6, "14x2")


def test_rows_come_back_by_tile(tmp_path: Path) -> None:
    table = CostTable(tmp_path / "new" / "costs.sqlite", CONTEXT)
    table.put([("work", TIMING), ("work", Timing(1e-6, 1e-6, 1e-6, "7x4")), ("other", TIMING)])
    assert table.get("work") == {"14x2": TIMING, "7x4": Timing(1e-6, 1e-6, 1e-6, "7x4")}
    assert table.get("unknown") == {}
    assert len(table) == 3
    assert len(CostTable(tmp_path / "new" / "costs.sqlite", CONTEXT)) == 3


def test_a_new_measurement_replaces_the_old(tmp_path: Path) -> None:
    table = CostTable(tmp_path / "costs.sqlite", CONTEXT)
    table.put([("work", TIMING)])
    table.put([("work", Timing(5e-6, 4e-6, 6e-6, "14x2"))])
    assert table.get("work")["14x2"].seconds == 5e-6


def test_another_context_sees_nothing(tmp_path: Path) -> None:
    CostTable(tmp_path / "costs.sqlite", CONTEXT).put([("work", TIMING)])
    for facts in ({"processor": "P", "threads": "4"}, {"processor": "Q", "threads": "2"}):
        assert CostTable(tmp_path / "costs.sqlite", Context.of(facts)).get("work") == {}


def test_several_writers(tmp_path: Path) -> None:
    def write(number: int) -> None:
        CostTable(tmp_path / "costs.sqlite", CONTEXT).put([(f"work{number}", TIMING)])

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(24)))
    assert len(CostTable(tmp_path / "costs.sqlite", CONTEXT)) == 24


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 9, None])
def test_a_file_that_is_no_table(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "costs.sqlite"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    advice = "--costs roofline" if content is None else "delete"
    with pytest.raises(GraphoptError, match=rf"costs\.sqlite cannot be used .* {advice}"):
        CostTable(path, CONTEXT)


@pytest.mark.parametrize("row", ["'abc', 1e-6, 1e-6", "9e999, 1e-6, 1e-6", "1e-6, -1.0, 1e-6"])
def test_rows_that_somebody_else_wrote(tmp_path: Path, row: str) -> None:
    table = CostTable(tmp_path / "costs.sqlite", CONTEXT)
    with contextlib.closing(sqlite3.connect(tmp_path / "costs.sqlite")) as connection, connection:
        connection.execute(f"insert into costs values ('{CONTEXT.key}', 'work', '14x2', {row}, 0)")
    with pytest.raises(GraphoptError, match=r"costs\.sqlite holds no costs; delete"):
        table.get("work")


def test_no_half_written_rows(tmp_path: Path) -> None:
    table = CostTable(tmp_path / "costs.sqlite", CONTEXT)
    with pytest.raises((GraphoptError, sqlite3.Error)):
        table.put([("work", TIMING), ("bad", Timing(None, 0.0, 0.0, "x"))])  # type: ignore[arg-type]
    assert len(table) == 0


def test_equal_works_have_equal_keys() -> None:
    a = Workload("Conv", (Operand((1, 2)),), (1, 3), (("pads", (0, 1)), ("m", 2)))
    b = Workload("Conv", (Operand((1, 2)),), (1, 3), (("m", 2), ("pads", (0, 1))))
    c = Workload("Conv", (Operand((1, 2), constant=True),), (1, 3), (("m", 2), ("pads", (0, 1))))
    assert a.key == b.key != c.key
