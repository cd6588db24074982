"""Products of one row behind a ReLU are marked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from graphopt.cost.workload import SKIP_ZEROS
from graphopt.passes import SkipZeros

Rewrite = Callable[..., Any]


def marked(rewrite: Rewrite, body: str, rows: int = 1, **options: Any) -> bool:
    text = f"g (float[{rows},64] x, float[64,32] w, float[32,64] v) => (float[{rows},32] y) {{ {body} }}"
    _, result = rewrite(SkipZeros(**{"min_weights": 100, **options}), text, {"w": (64, 32), "v": (32, 64)})
    flags = [SKIP_ZEROS in node.metadata_props for node in result.model.graph if node.op_type in ("MatMul", "Gemm")]
    assert bool(result.notes) == any(flags)
    return any(flags)


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(x) y = MatMul(r, w)",
        "r = Relu(x) y = Gemm(r, w)",
        "r = Relu(x) y = Gemm <transB = 1>(r, v)",
        "r = Relu(x) f = Flatten(r) y = MatMul(f, w)",
    ],
)
def test_behind_a_relu(rewrite: Rewrite, body: str) -> None:
    assert marked(rewrite, body)


@pytest.mark.parametrize(
    "body", ["y = MatMul(x, w)", "r = Sigmoid(x) y = MatMul(r, w)", "r = Relu(x) s = Exp(r) y = MatMul(s, w)"]
)
def test_what_is_seldom_zero_is_not(rewrite: Rewrite, body: str) -> None:
    assert not marked(rewrite, body)


def test_several_rows_are_not(rewrite: Rewrite) -> None:
    assert not marked(rewrite, "r = Relu(x) y = MatMul(r, w)", rows=2)


def test_short_products_are_not(rewrite: Rewrite) -> None:
    assert not marked(rewrite, "r = Relu(x) y = MatMul(r, w)", min_weights=1 << 16)
