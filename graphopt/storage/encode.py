"""Encode a tensor in whichever form is smallest.

    where the words are that are not zero    dense (each word is stored), a bitmap, or compressed columns
    what they are                            their bytes, or places in a codebook of at most 255 values
    each stream of symbols                   packed, or as Huffman codes

Sizes follow from histograms, so that only the smallest form is encoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from graphopt.storage import huffman, streams, words
from graphopt.storage.bits import packed_bytes
from graphopt.storage.columns import Columns, compress
from graphopt.storage.form import BITMAP, COLUMNS, DENSE, SIGNS, Form
from graphopt.storage.streams import Stream
from graphopt.storage.words import Alphabet, Words

INDEX_BITS = (4, 8)
"""Widths of the counts of zeros before an entry: Deep Compression takes 4 or 5 for products, 8 for convolutions."""

_MAX_COLUMN_DENSITY = 0.6
"""Above it, a bit for each word is less than an index for each one that is not zero."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Bytes of a tensor: as it is, without its zeros, also with a codebook if that is less, also with Huffman codes."""

    original: int
    pruned: int
    shared: int
    final: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A tensor's `form`, the bytes of its streams in order, what each stage leaves, and its words but the zeros."""

    form: Form
    data: tuple[bytes, ...]
    stages: Stages
    nonzero: int


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """One way to say where words are: its own streams, and how many zeros are stored beside the words."""

    name: str
    streams: tuple[Stream, ...]
    zeros: int
    columns: Columns | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Candidate:
    """A layout and an alphabet, and the bytes of both together without Huffman codes, and with them."""

    layout: _Layout
    alphabet: Alphabet
    packed: int
    final: int


def encode(
    payload: NDArray[np.uint8], itemsize: int, floating: bool, shape: Sequence[int], transposed: bool
) -> Encoded:
    """Encode the bytes of a tensor; `graphopt.storage.decode.decode` gives the same bytes.

    Args:
        payload: little-endian words of `itemsize` bytes, 1, 2, 4 or 8.
        shape: of the tensor; where it has another number of elements than there are words, it counts as a vector.
        transposed: the first axis holds outputs, so that columns, which belong to inputs, go across.
    """
    every = words.view(payload, itemsize)
    columns, length = _matrix(len(every), shape, transposed)
    transposed = transposed and columns > 1
    nonzero = words.support(every, floating)
    values = every[nonzero]
    known = words.distinct(values)
    alphabets = [words.bytes_of(itemsize, floating)] + ([] if known is None else [words.codes_of(known)])
    matrix = nonzero.reshape(length, columns).T if transposed else nonzero.reshape(columns, length)
    candidates = list(_candidates(list(_layouts(matrix, nonzero, len(values))), alphabets, values))
    best = min(candidates, key=lambda each: each.final)
    packed = min(each.packed for each in candidates)
    pruned = min(each.packed for each in candidates if each.alphabet is alphabets[0])
    del candidates

    stored = values
    if best.layout.name == DENSE:
        stored = np.where(nonzero, every, every.dtype.type(0))
    elif best.layout.columns is not None:
        stored = best.layout.columns.values(every.reshape(length, columns).T[matrix] if transposed else values)
    signs = np.packbits(every[~nonzero] != 0, bitorder="little") if floating else np.zeros(0, np.uint8)
    if not signs.any():
        signs = signs[:0]
    contents = zip(best.alphabet.names, best.alphabet.split(stored), strict=True)
    encoded = [
        streams.encode(stream)
        for stream in (
            *([Stream(SIGNS, signs, 8)] if len(signs) else []),
            *best.layout.streams,
            *_codebook(best.alphabet),
            *(Stream(name, symbols, best.alphabet.width) for name, symbols in contents),
        )
    ]
    entries = 0 if best.alphabet.codebook is None else len(best.alphabet.codebook)
    pieces = tuple(piece for piece, _ in encoded)
    form = Form(best.layout.name, itemsize, floating, columns, length, transposed, entries, pieces)
    stages = Stages(payload.nbytes, pruned + len(signs), packed + len(signs), form.nbytes)
    return Encoded(form, tuple(data for _, data in encoded), stages, len(values))


def _matrix(size: int, shape: Sequence[int], transposed: bool) -> tuple[int, int]:
    """The number of columns, and the entries of each."""
    if not size or not shape or math.prod(shape) != size:
        return 1, size
    length = shape[0] if transposed else shape[-1]
    return size // length, length


def _layouts(matrix: NDArray[np.bool_], nonzero: NDArray[np.bool_], count: int) -> Iterator[_Layout]:
    size = nonzero.size
    yield _Layout(DENSE, (), size - count)
    if count == size:
        return
    yield _Layout(BITMAP, (Stream("bitmap", np.packbits(nonzero, bitorder="little"), 8),), 0)
    if count > _MAX_COLUMN_DENSITY * size:
        return
    for width in INDEX_BITS:
        found = compress(matrix, width)
        counts = Stream("counts", found.counts, int(found.counts.max(initial=0)).bit_length())
        yield _Layout(COLUMNS, (counts, Stream("zeros", found.zeros, width)), int(found.padding.sum()), found)


def _candidates(layouts: Sequence[_Layout], alphabets: Sequence[Alphabet], values: Words) -> Iterator[_Candidate]:
    """Every layout with every alphabet; the words of all are `values` and some zeros."""
    for alphabet in alphabets:
        fixed = sum(stream.packed for stream in _codebook(alphabet))
        counted = [huffman.histogram(symbols) for symbols in alphabet.split(values)]
        for layout in layouts:
            total = len(values) + layout.zeros
            packed = final = fixed
            for stream in layout.streams:
                packed += stream.packed
                final += min(stream.packed, stream.coded)
            for counts in counted:
                with_zeros = counts.copy()
                with_zeros[0] += layout.zeros
                packed += packed_bytes(total, alphabet.width)
                final += min(packed_bytes(total, alphabet.width), huffman.coded_bytes(with_zeros))
            yield _Candidate(layout, alphabet, packed, final)


def _codebook(alphabet: Alphabet) -> list[Stream]:
    if alphabet.codebook is None:
        return []
    return [Stream("codebook", alphabet.codebook.view(np.uint8), 8)]
