"""The tiles that a GEMM on tensor cores (mma.sync) may be cut into."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tile:
    """A block computes m x n results in slices of k; a warp rows x columns of them. Written "128x128x32/64x64^4".

    `stages` slices are in shared memory. With `split` more than 1, that many blocks share the slices of one tile, and
    a second kernel adds up ("...*4"). `stream` is Stream-K: blocks that share the partial last wave ("...~132").
    """

    m: int
    n: int
    k: int
    rows: int
    columns: int
    stages: int
    split: int = 1
    stream: int = 0

    @property
    def warps(self) -> int:
        """Warps per block."""
        return self.m // self.rows * (self.n // self.columns)

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.warps * 32

    @property
    def registers(self) -> int:
        """Registers per thread: sums, operands of two steps, and some 56 for addresses."""
        return self.rows * self.columns // 32 + 2 * (self.rows // 4 + self.columns // 4) + 56

    def __str__(self) -> str:
        """The tile as it is written."""
        split = f"*{self.split}" if self.split > 1 else f"~{self.stream}" if self.stream else ""
        return f"{self.m}x{self.n}x{self.k}/{self.rows}x{self.columns}^{self.stages}{split}"


TILES = (
    Tile(128, 256, 32, 64, 64, 3),
    Tile(256, 128, 32, 64, 64, 3),
    Tile(128, 128, 32, 64, 64, 4),
    Tile(128, 128, 32, 64, 32, 4),
    Tile(128, 64, 32, 64, 32, 4),
    Tile(64, 128, 32, 32, 64, 4),
    Tile(64, 64, 32, 32, 32, 5),
    Tile(64, 64, 64, 32, 32, 3),
    Tile(32, 128, 32, 32, 32, 5),
    Tile(128, 32, 32, 32, 32, 5),
    Tile(32, 64, 64, 16, 32, 4),
    Tile(64, 32, 64, 32, 16, 4),
    Tile(32, 32, 64, 16, 16, 4),
    Tile(16, 128, 64, 16, 32, 4),
    Tile(128, 16, 64, 32, 16, 4),
    Tile(16, 64, 64, 16, 16, 5),
)
"""For fp16 and bf16; a slice of TF32 is half as deep."""
