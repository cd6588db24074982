"""A stream: numbers below 2 ** width, either packed or as Huffman codes, whichever is smaller."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import ArtifactError
from graphopt.storage import bits, huffman

PACKED, HUFFMAN = CODINGS = ("packed", "huffman")


@dataclass(frozen=True, slots=True)
class Stream:
    """Numbers of `width` bits (at most 32). `counts` says how often each occurs, for widths up to 8."""

    name: str
    numbers: NDArray[Any]
    width: int
    counts: NDArray[np.int64] | None = field(default=None)

    @property
    def packed(self) -> int:
        """Bytes with `width` bits for each number."""
        return bits.packed_bytes(len(self.numbers), self.width)

    @property
    def coded(self) -> int:
        """Bytes as Huffman codes; more than packed for numbers of more than 8 bits, which have none."""
        if self.width > 8:
            return self.packed + 1
        return huffman.coded_bytes(huffman.histogram(self.numbers) if self.counts is None else self.counts)


@dataclass(frozen=True, slots=True)
class Piece:
    """What a file says of a stream: its name, `packed` or `huffman`, bits of a number, and bytes."""

    name: str
    coding: str
    width: int
    nbytes: int


def encode(stream: Stream) -> tuple[Piece, bytes]:
    """The smaller form of `stream`."""
    if stream.coded < stream.packed:
        data, coding = huffman.encode(stream.numbers), HUFFMAN
    else:
        data, coding = bits.pack(stream.numbers, stream.width), PACKED
    return Piece(stream.name, coding, stream.width, len(data)), data


def decode(piece: Piece, data: memoryview, count: int, what: str) -> NDArray[Any]:
    """The `count` numbers of a stream: uint8 from Huffman codes, else uint32.

    Raises:
        ArtifactError: the data does not fit; `what` names the stream.
    """
    if piece.coding == HUFFMAN:
        numbers: NDArray[Any] = huffman.decode(data, count, what)
        if piece.width < 8 and numbers.size and int(numbers.max()) >> piece.width:
            raise ArtifactError(f"{what} is damaged: it has numbers of more than {piece.width} bits; compress it again")
        return numbers
    if len(data) != bits.packed_bytes(count, piece.width):
        raise ArtifactError(
            f"{what} is damaged: {count} numbers of {piece.width} bits do not take {len(data)} bytes; compress it again"
        )
    return bits.unpack(data, count, piece.width)
