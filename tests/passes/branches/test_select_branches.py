"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt.passes import SelectBranches
from tests.helpers.text_models import parse

HEAD = "m (float[2,3] x, bool c, bool[1,1] u) => (float[2,3] y, float z) <float one = {1}> {"


def choose(condition: str, then: str = "a = Identity(p) b = Identity(s)") -> str:
    return (
        f"p = Exp(x) s = ReduceSum<keepdims=0>(x) y, z = If({condition})"
        f" <then_branch = t () => (a, b) {{ {then} }},"
        " else_branch = e () => (d, e) { d = Identity(x) e = Identity(one) }>"
    )


@pytest.mark.parametrize("condition", ["c", "u"])
def test_every_output_is_selected(rewrite: Any, condition: str) -> None:
    after, _ = rewrite(SelectBranches(), f"{HEAD} {choose(condition)} }}")
    assert "If" not in after
    assert after.count("Where") == 2
    assert ("Reshape" in after) == (condition == "u")


def test_a_branch_that_computes_stays() -> None:
    model = parse(f"{HEAD} {choose('c', 'a = Neg(p) b = Identity(s)')} }}")
    assert not SelectBranches()(model).modified
    assert "If" in [node.op_type for node in model.graph]
