"""Random weights in blocks, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BlockSparse:
    """The operands of `graphopt.BlockSparseMatMul`, and the dense matrix [K, N]."""

    constants: dict[str, NDArray[Any]]
    dense: NDArray[Any]

    @property
    def call(self) -> str:
        """The node y = x times the weights."""
        return f"graphopt.BlockSparseMatMul <outputs = [{self.dense.shape[1]}]>(x, blocks, rows, starts)"


def block_sparse(
    k: int, n: int, block: tuple[int, int], density: float, seed: int = 0, dtype: str = "float32"
) -> BlockSparse:
    """Each block of (inputs, outputs), at any offset of inputs that `block` divides, is there with that chance."""
    generator = np.random.default_rng(seed)
    depth, width = block
    groups = -(-n // width)
    rows, places = np.nonzero(generator.random((groups, k // depth)) < density)
    blocks = generator.standard_normal((len(rows), depth, width)).astype(dtype)
    dense = np.zeros((k, groups * width), dtype)
    for values, row, place in zip(blocks, rows, places, strict=True):
        dense[place * depth : (place + 1) * depth, row * width : (row + 1) * width] = values
    constants = {"blocks": blocks, "rows": rows.astype(np.int32), "starts": (places * depth).astype(np.int32)}
    return BlockSparse(constants, dense[:, :n])
