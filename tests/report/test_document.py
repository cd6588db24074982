"""Aligned text, and numbers as people read them."""

from __future__ import annotations

import pytest

from graphopt.report import units
from graphopt.report.document import Facts, Table, plain


def test_plain_aligns_columns() -> None:
    table = Table(("name", "ms"), (("a", "1.5"), ("longer", "10.25")), "Times", ("ms",))
    assert plain([table, Facts((("x", "1"), ("yy", "2"))), "end"]) == (
        "Times\nname       ms\na         1.5\nlonger  10.25\n\nx   1\nyy  2\n\nend"
    )


def test_empty_blocks_leave_no_gap() -> None:
    assert plain(["", "a", Facts(())]) == "a"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (5 << 20, "5.00 MiB"), (150 << 30, "150 GiB")],
)
def test_bytes(value: int, text: str) -> None:
    assert units.nbytes(value) == text


@pytest.mark.parametrize(("value", "text"), [(12, "12"), (61_706, "61.7 k"), (25_557_032, "25.6 M"), (3.6e9, "3.60 G")])
def test_counts(value: int, text: str) -> None:
    assert units.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.00 us"), (2.5e-7, "0.25 us"), (0.0123, "12.3 ms"), (3.0, "3.00 s")]
)
def test_seconds(value: float, text: str) -> None:
    assert units.seconds(value) == text
