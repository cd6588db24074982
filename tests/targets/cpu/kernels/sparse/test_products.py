"""Block-sparse products, by vectors of outputs and of rows, against the body of the operator."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.cpu.kernels.sparse import definition
from tests.helpers.block_sparse import block_sparse

few = settings(deadline=None, max_examples=20, derandomize=True)
BLOCKS = [(1, 16), (1, 8), (1, 4), (16, 16), (32, 32), (1, 1), (4, 2), (1, 48)]


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return np.random.default_rng([7, *shape]).standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("shape", [(1, 64), (3, 64), (16, 64), (40, 64), (2, 9, 64)], ids=str)
def test_product(lab: Any, block: tuple[int, int], shape: tuple[int, ...]) -> None:
    weights = block_sparse(64, 96, block, 0.3)
    lowered = lab.same(f"y = {weights.call}", {"x": numbers(*shape)}, weights.constants)
    panels = math.prod(shape[:-1]) > 1
    assert len(lowered.calls) == 1 + panels, "one row needs no panel"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("block", [(1, 16), (1, 4), (16, 16)], ids=str)
def test_on_every_level(any_lab: Any, block: tuple[int, int], dtype: str) -> None:
    weights = block_sparse(50, 50, block, 0.4, dtype=dtype)
    for rows in (1, 21):
        any_lab.same(f"y = {weights.call}", {"x": numbers(rows, 50, dtype=dtype)}, weights.constants)


@given(
    m=st.integers(1, 70),
    n=st.integers(1, 100),
    k=st.integers(1, 70),
    block=st.sampled_from(BLOCKS),
    density=st.sampled_from([0.02, 0.3, 1.0]),
)
@few
def test_any_shape(lab: Any, m: int, n: int, k: int, block: tuple[int, int], density: float) -> None:
    weights = block_sparse(max(k, block[0]), n, block, density, seed=m)
    lab.same(f"y = {weights.call}", {"x": numbers(m, max(k, block[0]))}, weights.constants)


def test_an_epilogue_is_fused(any_lab: Any) -> None:
    weights = block_sparse(40, 50, (1, 16), 0.3)
    body = f"t = {weights.call} u = Add(t, bias) v = Relu(u) y = Add(v, residual)"
    feeds = {"x": numbers(9, 40), "residual": numbers(9, 50)}
    lowered = any_lab.same(body, feeds, {**weights.constants, "bias": numbers(50)})
    assert len(lowered.calls) == 2


@pytest.mark.parametrize("block", [(1, 16), (1, 4)], ids=str)
@pytest.mark.parametrize("rows", [1, 20])
def test_special_numbers(lab: Any, block: tuple[int, int], rows: int) -> None:
    """NaN and infinities spread as far as blocks reach, and no further."""
    weights = block_sparse(40, 96, block, 0.15)
    x = numbers(rows, 40)
    x[0, ::3] = np.nan
    x[-1, 1::5] = np.inf
    x[0, 2] = 1e-41
    weights.constants["blocks"][0, 0, 0] = -np.inf
    lowered = lab.lower(lab.model(f"y = {weights.call}", {"x": x}, weights.constants))
    expected = np.zeros((rows, 96), np.float32)
    with np.errstate(all="ignore"):
        for values, group, start in zip(
            *(weights.constants[name] for name in ("blocks", "rows", "starts")), strict=True
        ):
            expected[:, group * block[1] :][:, : block[1]] += x[:, start : start + 1] * values
    np.testing.assert_allclose(lab.execute(lowered, {"x": x})["y"], expected, rtol=1e-5, atol=1e-5)


def test_groups_without_blocks_are_zero(lab: Any) -> None:
    weights = block_sparse(40, 96, (1, 16), 0.3)
    kept = weights.constants["rows"] == 2
    constants = {name: array[kept] for name, array in weights.constants.items()}
    lowered = lab.same(f"y = {weights.call}", {"x": numbers(5, 40)}, constants)
    assert lowered.calls


def test_without_blocks_all_is_zero(lab: Any) -> None:
    weights = block_sparse(40, 50, (1, 16), 0)
    lab.same(f"y = {weights.call}", {"x": numbers(5, 40)}, weights.constants)


def test_a_pattern_that_is_no_constant_is_refused(lab: Any) -> None:
    weights = block_sparse(40, 48, (1, 16), 0.3)
    feeds = {"x": numbers(5, 40), "rows": weights.constants["rows"]}
    constants = {name: weights.constants[name] for name in ("blocks", "starts")}
    model = lab.model(f"y = {weights.call}", feeds, constants)
    (node,) = model.graph
    assert "no native form" in str(lab.target.supports(node, model.opset_imports))


# ---------------------------------------------------------------- shares of the tasks


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=40),
    tiles=st.integers(1, 9),
    cores=st.integers(1, 16),
    line=st.sampled_from([1, 2, 4]),
)
@few
def test_ranges_of_groups(counts: list[int], tiles: int, cores: int, line: int) -> None:
    groups = -(-len(counts) // line) * line
    rows = np.repeat(np.arange(len(counts)), counts)
    order = definition.order(rows, groups, tiles, cores, line)
    pointers, bounds = order[: groups + 1], order[groups + 1 :]
    assert list(np.diff(pointers)) == counts + [0] * (groups - len(counts))
    assert (bounds[0], bounds[-1]) == (0, groups)
    assert (np.diff(bounds) >= 0).all()
    assert (bounds % line == 0).all()
    work = np.diff(pointers[bounds] + bounds)
    assert work.max() <= work.mean() + max(counts) * line + line


def test_skewed_groups_are_shared_by_their_blocks() -> None:
    rows = np.repeat(np.arange(20), [100] * 5 + [1] * 15)
    order = definition.order(rows, 20, 1, 2)
    first, middle, last = order[21:]
    shares = [order[middle] - order[first], order[last] - order[middle]]
    assert max(shares) <= 1.2 * min(shares) + 100


@pytest.mark.parametrize("block", [(1, 16), (1, 4), (16, 16)], ids=str)
@pytest.mark.parametrize("rows", [1, 20])
def test_long_sums_are_as_exact_as_dense_ones(lab: Any, block: tuple[int, int], rows: int) -> None:
    """Thousands of additions of one sign, in one sum, would lose four digits."""
    k = 8192
    weights = block_sparse(k, 32, block, 0.6)
    weights.constants["blocks"][:] = np.abs(weights.constants["blocks"])
    x = np.abs(numbers(rows, k)) + 0.3
    lowered = lab.lower(lab.model(f"y = {weights.call}", {"x": x}, weights.constants))
    exact = x.astype(np.float64) @ np.abs(weights.dense).astype(np.float64)
    np.testing.assert_allclose(lab.execute(lowered, {"x": x})["y"], exact, rtol=2e-6)
