"""How a tensor is stored, as a file describes it."""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.storage.streams import Piece

DENSE, BITMAP, COLUMNS = "dense", "bitmap", "columns"
LAYOUTS = (DENSE, BITMAP, COLUMNS)
SIGNS = "signs"


@dataclass(frozen=True, slots=True)
class Form:
    """Words of `itemsize` bytes, floats or not, and where those are that are not zero: `layout`.

    `columns` x `length` is the matrix of compressed columns, made across the first axis of the tensor if `transposed`.
    `codebook` counts the values that words have; 0 where the words are stored themselves. A `SIGNS` stream in front
    says which zeros are negative, where any is.
    """

    layout: str
    itemsize: int
    floating: bool
    columns: int
    length: int
    transposed: bool
    codebook: int
    pieces: tuple[Piece, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all streams."""
        return sum(piece.nbytes for piece in self.pieces)

    @property
    def size(self) -> int:
        """Number of words."""
        return self.columns * self.length
