"""Decode a tensor. Whatever a file says is checked before it is used, and nothing larger than the tensor is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import ArtifactError
from graphopt.storage import columns, streams, words
from graphopt.storage.form import BITMAP, DENSE, SIGNS, Form
from graphopt.storage.words import Alphabet, Words


def decode(form: Form, data: memoryview, what: str) -> NDArray[np.uint8]:
    """The bytes of a tensor from those of its streams.

    Raises:
        ArtifactError: they do not fit `form`; `what` names the tensor.
    """
    pieces, start = {}, 0
    for piece in form.pieces:
        pieces[piece.name] = (piece, data[start : start + piece.nbytes])
        start += piece.nbytes
    if start != len(data) or len(pieces) != len(form.pieces):
        raise _damaged(what, f"its streams take {start} bytes, and it has {len(data)}")
    reader = _Reader(pieces, what)
    alphabet = _alphabet(form, reader)
    signs = reader.rest.pop(SIGNS, None)
    if form.layout == DENSE:
        every = reader.words(alphabet, form.size)
    elif form.layout == BITMAP:
        bitmap = reader.take("bitmap", (form.size + 7) // 8, 8)
        nonzero = np.unpackbits(bitmap, count=form.size, bitorder="little").view(np.bool_)
        every = np.zeros(form.size, f"<u{form.itemsize}")
        every[nonzero] = reader.words(alphabet, int(np.count_nonzero(nonzero)))
    else:
        every = _from_columns(form, reader, alphabet)
    if reader.rest:
        raise _damaged(what, f"it has a stream {sorted(reader.rest)[0][:40]!r} that its form has no use for")
    if signs is not None:
        _negate(every, form, streams.decode(*signs, (int((every == 0).sum()) + 7) // 8, f"{what} ({SIGNS})"), what)
    return every.view(np.uint8)


class _Reader:
    """The streams of a tensor that were not read yet."""

    def __init__(self, pieces: Mapping[str, tuple[streams.Piece, memoryview]], what: str) -> None:
        self.rest = dict(pieces)
        self.what = what

    def take(self, name: str, count: int, *widths: int) -> NDArray[Any]:
        """The `count` numbers of a stream, each of one of `widths` bits."""
        if name not in self.rest:
            raise _damaged(self.what, f"it has no stream {name!r}")
        piece, data = self.rest.pop(name)
        if piece.width not in widths:
            raise _damaged(self.what, f"its stream {name!r} has numbers of {piece.width} bits")
        return streams.decode(piece, data, count, f"{self.what} ({name})")

    def words(self, alphabet: Alphabet, count: int) -> Words:
        """`count` words, by their symbols."""
        symbols = [self.take(name, count, alphabet.width) for name in alphabet.names]
        if alphabet.codebook is not None and int(symbols[0].max(initial=0)) > len(alphabet.codebook):
            raise _damaged(self.what, f"it has a code above its {len(alphabet.codebook)} values")
        return alphabet.join(symbols)


def _alphabet(form: Form, reader: _Reader) -> Alphabet:
    if not form.codebook:
        return words.bytes_of(form.itemsize, form.floating)
    raw = reader.take("codebook", form.codebook * form.itemsize, 8)
    return words.codes_of(np.ascontiguousarray(raw).view(f"<u{form.itemsize}"))


def _from_columns(form: Form, reader: _Reader, alphabet: Alphabet) -> Words:
    counts = reader.take("counts", form.columns, *range(33))
    entries = int(counts.sum(dtype=np.uint64))
    if entries > form.size:
        raise _damaged(reader.what, f"its columns have {entries} entries, more than its {form.size} elements")
    zeros = reader.take("zeros", entries, 4, 8)
    values = reader.words(alphabet, entries)
    every = np.zeros(form.size, values.dtype)
    try:
        for part, places in columns.places(counts, zeros, form.length):
            if form.transposed:
                places = places % form.length * form.columns + places // form.length
            every[places] = values[part]
    except ValueError as error:
        raise _damaged(reader.what, str(error)) from None
    return every


def _negate(every: Words, form: Form, signs: NDArray[np.uint8], what: str) -> None:
    """Give zeros their signs, in place."""
    if not form.floating:
        raise _damaged(what, "it has signs of zeros that are no floats")
    zero = every == 0
    negative = np.unpackbits(signs, count=int(zero.sum()), bitorder="little")
    every[zero] = negative.astype(every.dtype) * words.sign_bit(every)


def _damaged(what: str, why: str) -> ArtifactError:
    return ArtifactError(f"{what} is damaged: {why}; compress the model again")
