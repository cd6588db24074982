"""A tensor as unsigned words: its bit patterns, which of them are zero, and the symbols that stand for the others.

A float is zero in two ways. Both count as zero where weights are looked for, and which zeros are negative is kept
apart, because masks make many of them (-0.5 times 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.storage.sharing import CHUNK

Words = NDArray[Any]
MAX_VALUES = 255
"""Entries of a codebook: with the zero, what a byte tells apart."""


@dataclass(frozen=True, slots=True)
class Alphabet:
    """What words are written as: one symbol of `width` bits in each stream of `names`; zero is symbol 0 in all."""

    names: tuple[str, ...]
    width: int
    split: Callable[[Words], list[NDArray[np.uint8]]]
    join: Callable[[Sequence[NDArray[np.uint8]]], Words]
    codebook: Words | None = None


def view(payload: NDArray[np.uint8], itemsize: int) -> Words:
    """The bytes of a tensor as little-endian words of 1, 2, 4 or 8 bytes."""
    return payload.view(f"<u{itemsize}")


def sign_bit(words: Words) -> Any:
    """The word of a negative zero."""
    return words.dtype.type(1 << (8 * words.dtype.itemsize - 1))


def support(words: Words, floating: bool) -> NDArray[np.bool_]:
    """Where a word is no zero."""
    return np.asarray((words & ~sign_bit(words)) != 0 if floating else words != 0)


def bytes_of(itemsize: int, floating: bool) -> Alphabet:
    """The bytes of a word, the lowest first; of a float with the sign lowest, so that one byte is an exponent."""

    def split(words: Words) -> list[NDArray[np.uint8]]:
        turned = np.ascontiguousarray(_rotated(words, 1) if floating else words)
        pieces = turned.view(np.uint8).reshape(len(words), itemsize)
        return [np.ascontiguousarray(pieces[:, place]) for place in range(itemsize)]

    def join(symbols: Sequence[NDArray[np.uint8]]) -> Words:
        pieces = np.empty((len(symbols[0]), itemsize), np.uint8)
        for place, each in enumerate(symbols):
            pieces[:, place] = each
        words = pieces.reshape(-1).view(f"<u{itemsize}")
        return _rotated(words, -1) if floating else words

    return Alphabet(tuple(f"bytes{place}" for place in range(itemsize)), 8, split, join)


def codes_of(codebook: Words) -> Alphabet:
    """Places in `codebook`, ascending and without zero, counted from 1."""
    table = np.concatenate([np.zeros(1, codebook.dtype), codebook])

    def split(words: Words) -> list[NDArray[np.uint8]]:
        place = _Places(table)  # not for decoding: a damaged table may have a word twice
        places = np.empty(len(words), np.uint8)
        for start in range(0, len(words), CHUNK):
            places[start : start + CHUNK] = place(words[start : start + CHUNK])
        return [places]

    return Alphabet(("codes",), max(1, len(codebook).bit_length()), split, lambda symbols: table[symbols[0]], codebook)


def distinct(words: Words) -> Words | None:
    """The distinct words, ascending; None if they are more than a codebook holds."""
    found = np.unique(words[: 16 * CHUNK : 64])
    for start in range(0, len(words), CHUNK):
        if len(found) > MAX_VALUES:
            return None
        part = words[start : start + CHUNK]
        if len(found):
            part = part[found[_Places(found)(part)] != part]
        found = np.union1d(found, part)
    return found if len(found) <= MAX_VALUES else None


class _Places:
    """The place of each word in a table of at most 256 different ones; any place for words that it lacks.

    A multiplication that gives the words of the table different highest bits is searched for, and is then all it takes.
    """

    _BITS = 16

    def __init__(self, table: Words) -> None:
        kind, bits = table.dtype.type, 8 * table.dtype.itemsize
        self._shift = kind(max(bits - self._BITS, 0))
        factors = np.random.default_rng(0)
        self._factor = kind(1)
        while len(np.unique(self._hash(table))) < len(table):
            self._factor = kind(int.from_bytes(factors.bytes(bits // 8), "little") | 1)
        self._places = np.zeros(1 << min(bits, self._BITS), np.uint8)
        self._places[self._hash(table)] = np.arange(len(table))

    def _hash(self, words: Words) -> Words:
        return np.asarray((words * self._factor) >> self._shift)

    def __call__(self, words: Words) -> NDArray[np.uint8]:
        return self._places[self._hash(words)]


def _rotated(words: Words, places: int) -> Words:
    """The bits of each word, cyclically shifted to the left."""
    bits, kind = 8 * words.dtype.itemsize, words.dtype.type
    return np.asarray((words << kind(places % bits)) | (words >> kind(-places % bits)))
