"""Attention as one kernel, against its body in ONNX Runtime and against sums in double precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.cpu.kernels import attention
from graphopt.targets.cpu.machine import LEVELS, CpuMachine

few = settings(deadline=None, max_examples=12, derandomize=True)


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng([5, *shape]).standard_normal(shape).astype(dtype)


def operands(q: Any, k: Any, width: int, dtype: str = "float32") -> dict[str, Any]:
    return {"q": numbers(*q, dtype=dtype), "k": numbers(*k, dtype=dtype) + 1, "v": numbers(*k[:3], width, dtype=dtype)}


PLAIN = "y = graphopt.Attention<scale=0.3>(q, k, v)"
MASKED = "y = graphopt.AttentionMasked<scale=0.25>(q, k, v, mask)"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("q", "k", "width"),
    [
        ((2, 3, 7, 16), (2, 3, 7, 16), 16),
        ((1, 1, 1, 5), (1, 1, 9, 5), 12),
        ((1, 2, 33, 64), (1, 2, 50, 64), 64),
        ((1, 2, 128, 64), (1, 2, 128, 64), 64),
        ((1, 1, 13, 1), (1, 1, 1, 1), 1),
        ((2, 2, 5, 24), (2, 2, 197, 24), 33),
    ],
)
def test_attention(any_lab: Any, q: Any, k: Any, width: int, dtype: str) -> None:
    body = PLAIN if dtype == "float32" else PLAIN.replace("scale=0.3", "scale=0.3, compute=11")
    any_lab.same(body, operands(q, k, width, dtype), rtol=4e-5)


def test_attention_of_halves(lab: Any) -> None:
    """Computed in single precision, rounded once."""
    feeds = operands((1, 2, 19, 16), (1, 2, 33, 16), 16, "float16")
    actual = lab.execute(lab.lower(lab.model(PLAIN, feeds)), feeds)["y"]
    q, k, v = (feeds[name].astype(np.float64) for name in "qkv")
    powers = np.exp(q @ k.swapaxes(2, 3) * 0.3)
    assert actual.dtype == np.float16
    np.testing.assert_allclose(actual, powers @ v / powers.sum(-1, keepdims=True), rtol=2e-3, atol=1e-3)


@given(
    heads=st.tuples(st.integers(1, 2), st.integers(1, 3)),
    queries=st.integers(1, 140),
    keys=st.integers(1, 90),
    depth=st.integers(1, 40),
    width=st.integers(1, 70),
)
@few
def test_attention_of_any_shape(lab: Any, heads: Any, queries: int, keys: int, depth: int, width: int) -> None:
    lab.same(PLAIN, operands((*heads, queries, depth), (*heads, keys, depth), width), rtol=1e-4)


def test_attention_over_many_keys(lab: Any) -> None:
    """Several tasks per head, several register tiles per task."""
    feeds = operands((1, 1, 300, 8), (1, 1, 2500, 8), 20)
    model = lab.model(PLAIN, feeds)
    actual = lab.execute(lab.lower(model), feeds)["y"]
    q, k, v = (feeds[name].astype(np.float64) for name in "qkv")
    powers = q @ k.swapaxes(2, 3) * 0.3
    powers = np.exp(powers - powers.max(-1, keepdims=True))
    np.testing.assert_allclose(actual, powers @ v / powers.sum(-1, keepdims=True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mask", [(2, 3, 7, 9), (7, 9), (2, 1, 1, 9), (1, 1, 7, 9), (1,), (9,), (3, 1, 9), (2, 1, 7, 1)]
)
@pytest.mark.parametrize("hidden", [-1e9, -np.inf])
def test_masked_attention(any_lab: Any, mask: tuple[int, ...], hidden: float) -> None:
    feeds = {"q": numbers(2, 3, 7, 16), "k": numbers(2, 3, 9, 16), "v": numbers(2, 3, 9, 16)}
    chosen = np.where(numbers(*mask) > 0.3, np.float32(hidden), np.float32(0))
    if mask[-1] > 1:
        chosen[..., 4] = 0
    elif hidden == -np.inf:
        chosen[...] = 1.5
    any_lab.same(MASKED, feeds | {"mask": chosen})


@pytest.mark.parametrize("keys", [37, 128])
def test_causal_attention(lab: Any, keys: int) -> None:
    feeds = operands((1, 2, keys, 16), (1, 2, keys, 16), 32)
    lab.same(MASKED, feeds | {"mask": np.triu(np.full((keys, keys), -np.inf, np.float32), 1)})


def test_masked_attention_where_a_row_sees_nothing(any_lab: Any) -> None:
    """A mask of the lowest finite number everywhere: the mean, and no NaN."""
    feeds = {name: numbers(1, 1, 4, 8) for name in "qkv"} | {"mask": np.full((4, 4), -3e38, np.float32)}
    any_lab.same(MASKED, feeds)


def test_a_row_that_is_masked_with_infinity_is_nan_as_in_the_body(lab: Any) -> None:
    mask = np.zeros((5, 6), np.float32)
    mask[2] = -np.inf
    feeds = operands((1, 1, 5, 8), (1, 1, 6, 8), 16) | {"mask": mask}
    actual = lab.execute(lab.lower(lab.model(MASKED, feeds)), feeds)["y"]
    assert np.isnan(actual[0, 0]).all(-1).tolist() == [False, False, True, False, False]
    assert not np.isnan(np.delete(actual[0, 0], 2, 0)).any()


@pytest.mark.parametrize("factor", [3e1, 1e3, 1e15])
def test_large_scores(any_lab: Any, factor: float) -> None:
    """All weight goes to one key; a score alone would overflow the exponential."""
    feeds = operands((1, 2, 9, 16), (1, 2, 21, 16), 16)
    feeds["q"] *= np.float32(factor)
    any_lab.same(PLAIN, feeds, rtol=1e-3)


@pytest.mark.parametrize("level", list(LEVELS))
@pytest.mark.parametrize("shape", [(12, 128, 128), (12, 197, 197), (1, 1, 4096), (1, 7, 9), (1, 4096, 100_000)])
def test_plan_fits(level: str, shape: tuple[int, int, int]) -> None:
    machine = CpuMachine(LEVELS[level], 2)
    made = attention.plan(*shape, machine, "float32")
    assert made.rows * made.vectors + made.vectors + 1 <= machine.level.registers
    assert 1 <= made.rows <= shape[1]
    assert made.tiles == 1 or made.tiles * made.rows * shape[2] * 4 <= machine.l2_bytes
