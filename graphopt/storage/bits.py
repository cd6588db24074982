"""Vectors of small numbers, a fixed number of bits each, the lowest bit first."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_GROUP = 1 << 20  # numbers unpacked at once, so that the bits of a large vector never take a byte each


def packed_bytes(count: int, width: int) -> int:
    """Bytes of `count` numbers of `width` bits."""
    return (count * width + 7) // 8


def pack(numbers: NDArray[Any], width: int) -> bytes:
    """Pack unsigned `numbers`, each below 2 ** `width`, `width` at most 32."""
    if width in (8, 16, 32):
        return numbers.astype(f"<u{width // 8}").tobytes()
    return b"".join(
        np.packbits(_bits(numbers[start : start + _GROUP], width), bitorder="little").tobytes()
        for start in range(0, len(numbers), _GROUP)
    )


def unpack(data: memoryview, count: int, width: int) -> NDArray[Any]:
    """The `count` numbers of `data`, which has `packed_bytes(count, width)` bytes: uint8, or uint32 above 8 bits."""
    dtype: type[Any] = np.uint8 if width <= 8 else np.uint32
    if width in (8, 16, 32):
        return np.frombuffer(data, f"<u{width // 8}").astype(dtype)
    numbers: NDArray[Any] = np.zeros(count, dtype)
    raw = np.frombuffer(data, np.uint8)
    for start in range(0, count, _GROUP):
        part = numbers[start : start + _GROUP]
        first = start * width // 8  # whole, because a group is a multiple of 8
        chunk = raw[first : first + packed_bytes(len(part), width)]
        bits = np.unpackbits(chunk, count=len(part) * width, bitorder="little").reshape(len(part), width)
        for place in range(width):
            np.bitwise_or(part, bits[:, place].astype(dtype) << dtype(place), out=part)
    return numbers


def _bits(numbers: NDArray[Any], width: int) -> NDArray[np.uint8]:
    wide = numbers.astype(np.uint32)
    bits = np.empty((len(wide), width), np.uint8)
    for place in range(width):
        bits[:, place] = (wide >> np.uint32(place)) & np.uint32(1)
    return bits
