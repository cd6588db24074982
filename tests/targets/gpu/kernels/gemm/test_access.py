"""What one load may take together of an operand."""

from __future__ import annotations

from typing import Any

import pytest
from tvm import tirx

from graphopt.targets.gpu.kernels.gemm.access import AccessPattern


def access(element: Any, size: int = 64, depth: int = 64) -> AccessPattern:
    return AccessPattern(element, size, depth, "int32")


def test_rows_of_a_matrix() -> None:
    a = tirx.decl_buffer((64, 64), "float16", name="a")
    along = access(lambda b, i, r: a[i, r])
    assert along.contiguous(True, 8)
    assert not along.contiguous(False, 8)
    assert along.neighbours(True)
    assert not along.neighbours(False)


def test_a_length_or_a_start_that_is_no_multiple() -> None:
    a = tirx.decl_buffer((64, 68), "float16", name="a")
    assert not access(lambda b, i, r: a[i, r], depth=68).contiguous(True, 8)  # rows begin between chunks
    assert access(lambda b, i, r: a[i, r], depth=68).contiguous(True, 4)
    assert not access(lambda b, i, r: a[i, r + 2]).contiguous(True, 4)


@pytest.mark.parametrize(("width", "expected"), [(12, False), (6, False), (16, True), (10, False)])
def test_positions_of_an_image(width: int, expected: bool) -> None:
    """Chunks of positions that go on in the next row of the image are none, also where the first two are not."""
    x = tirx.decl_buffer((16, 20, width + 8), "float32", name="x")
    found = access(lambda b, p, r: x[r, tirx.floordiv(p, width), tirx.floormod(p, width)], size=16 * width, depth=16)
    assert found.contiguous(False, 8) == expected


def test_a_condition_holds_for_all_or_none() -> None:
    a = tirx.decl_buffer((64, 64), "float16", name="a")
    zero = tirx.const(0, "float16")

    def when(condition: Any) -> AccessPattern:
        return access(lambda b, i, r: tirx.if_then_else(condition(i, r), a[i, r], zero))

    assert when(lambda i, r: tirx.floordiv(r, 16) < 2).contiguous(True, 8)
    assert when(lambda i, r: i > 2).contiguous(True, 8)
    assert not when(lambda i, r: r > 2).contiguous(True, 8)
    one = tirx.const(1, "float16")
    assert not access(lambda b, i, r: tirx.if_then_else(i > 2, a[i, r], one)).plain("float16")


def test_plain_elements() -> None:
    a = tirx.decl_buffer((64, 64), "float16", name="a")
    assert access(lambda b, i, r: a[i, r].astype("float32")).plain("float16")
    assert not access(lambda b, i, r: a[i, r]).plain("float32")
    assert not access(lambda b, i, r: a[i, r] + a[r, i]).plain("float16")
    narrowed = access(lambda b, i, r: tirx.if_then_else(i > 2, a[i, r].astype("float32"), tirx.const(0, "float32")))
    assert not narrowed.plain("float32")
