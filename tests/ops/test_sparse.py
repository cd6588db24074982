"""The bodies of block-sparse products compute what the dense matrix does."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.block_sparse import BlockSparse, block_sparse
from tests.helpers.lab import make_model


def _body(weights: BlockSparse, x: np.ndarray) -> np.ndarray:
    model = make_model(f"y = {weights.call}", {"x": x}, weights.constants, ["y"], 21)
    result: np.ndarray = run_onnxruntime(model, {"x": x})["y"]
    return result


@pytest.mark.parametrize("shape", [(5, 40), (1, 40), (2, 3, 40)])
@pytest.mark.parametrize(("n", "block"), [(48, (1, 16)), (50, (1, 16)), (50, (4, 8)), (33, (1, 1)), (7, (8, 32))])
def test_body(shape: tuple[int, ...], n: int, block: tuple[int, int]) -> None:
    weights = block_sparse(40, n, block, 0.4)
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    np.testing.assert_allclose(_body(weights, x), x @ weights.dense, rtol=1e-5, atol=1e-5)


def test_without_blocks_all_is_zero() -> None:
    weights = block_sparse(40, 50, (1, 16), 0)
    np.testing.assert_array_equal(_body(weights, np.ones((3, 40), np.float32)), np.zeros((3, 50)))


def test_blocks_that_overlap_add_up() -> None:
    """A block begins at any input; two blocks of a group may hold the same one."""
    constants = {
        "blocks": np.ones((2, 4, 8), np.float32),
        "rows": np.array([0, 0], np.int64),
        "starts": np.array([1, 3], np.int64),
    }
    weights = BlockSparse(constants, np.zeros((8, 8)))
    x = np.arange(8, dtype=np.float32)[None]
    np.testing.assert_array_equal(_body(weights, x), np.full((1, 8), x[0, 1:5].sum() + x[0, 3:7].sum()))


def test_numbers_that_no_block_reads_do_not_matter() -> None:
    weights = block_sparse(40, 48, (1, 16), 0.3)
    x = np.ones((3, 40), np.float32)
    x[:, [i for i in range(40) if i not in weights.constants["starts"]]] = np.nan
    assert np.isfinite(_body(weights, x)).all()
