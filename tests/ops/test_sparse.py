"""The bodies of block-sparse products compute what the dense matrix does."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.ops.sparse import pack_blocks
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


@pytest.mark.parametrize("block", [(1, 16), (4, 8), (1, 1), (8, 32)])
@pytest.mark.parametrize("n", [48, 50])
def test_packing(n: int, block: tuple[int, int]) -> None:
    generator = np.random.default_rng(3)
    weight = generator.standard_normal((40, n)).astype(np.float32) * (generator.random((40, n)) < 0.05)
    weight[:, 32:40] = 0
    blocks, rows, starts = pack_blocks(weight, *block)
    constants = {"blocks": blocks, "rows": rows, "starts": starts}
    x = np.eye(40, dtype=np.float32)
    np.testing.assert_array_equal(_body(BlockSparse(constants, weight), x), weight)
    assert (np.diff(rows) >= 0).all()
    assert (blocks != 0).any(axis=(1, 2)).all()


def test_nothing_is_packed_of_zeros() -> None:
    blocks, rows, starts = pack_blocks(np.zeros((8, 20), np.float32), 4, 16)
    assert (blocks.shape, rows.shape, starts.shape) == ((0, 4, 16), (0,), (0,))


@pytest.mark.parametrize(("kept", "blocks"), [(1000, 1000), (1025, 1056), (3000, 3008), (4095, 4096), (4096, 4096)])
def test_many_blocks_are_rounded_up(kept: int, blocks: int) -> None:
    """Layers with nearly as many blocks share a kernel; what is added is zero, and spread over the groups."""
    weight = np.zeros((64, 64), np.float32)
    weight.flat[np.random.default_rng(0).permutation(4096)[:kept]] = 1
    packed, rows, starts = pack_blocks(weight, 1, 1)
    assert len(packed) == blocks
    assert packed.sum() == kept
    assert len(set(zip(rows.tolist(), starts.tolist(), strict=True))) == blocks
    assert np.ptp(np.bincount(rows, minlength=64) - (weight != 0).sum(axis=0)) <= 2
