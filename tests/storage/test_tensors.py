"""Every tensor comes back bit by bit, from the smallest of the forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from graphopt.errors import ArtifactError
from graphopt.storage import columns
from graphopt.storage.decode import decode
from graphopt.storage.encode import Encoded, encode
from graphopt.storage.form import BITMAP, COLUMNS, DENSE

FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


def _payload(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.frombuffer(array.tobytes(), np.uint8)


def stored(array: NDArray[Any], transposed: bool = False) -> Encoded:
    """The tensor in its smallest form, which holds all of it."""
    floating = array.dtype in FLOATS
    encoded = encode(_payload(array), array.dtype.itemsize, floating, array.shape, transposed)
    data = b"".join(encoded.data)
    assert len(data) == encoded.form.nbytes == encoded.stages.final
    assert encoded.stages.final <= encoded.stages.shared <= encoded.stages.pruned <= encoded.stages.original + 1
    assert decode(encoded.form, memoryview(data), "it").tobytes() == array.tobytes()
    return encoded


def pruned(shape: tuple[int, ...], density: float, dtype: Any = np.float32) -> NDArray[Any]:
    generator = np.random.default_rng(0)
    weights = generator.standard_normal(shape).astype(dtype)
    weights[generator.random(shape) >= density] = 0
    return weights


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("density", "layout"), [(1.0, DENSE), (0.4, BITMAP), (0.03, COLUMNS), (0.0, COLUMNS)])
def test_the_layout_follows_the_density(density: float, layout: str, transposed: bool) -> None:
    assert stored(pruned((200, 300), density), transposed).form.layout == layout


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 700), (700, 3), (16, 8, 3, 3), (1, 500), (500, 1), (2000,)])
def test_shapes_and_floats(shape: tuple[int, ...], dtype: Any) -> None:
    for transposed in (False, True):
        stored(pruned(shape, 0.1, dtype), transposed)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 3), np.float32), np.array(3.5, np.float32), np.array(0.0), np.zeros((4, 4)), np.full((3, 3), -0.0),
        np.array([np.nan, -np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-45], np.float32), np.ones((5, 0, 2), np.int64),
        np.array([0x7F800001, 0xFFC12345, 0x80000000], np.uint32).view(np.float32), np.arange(3000), np.arange(-3, 3),
        np.tril(np.ones((64, 64), np.bool_)), np.full(5000, 9, np.int32), np.array([1, 0, 255], np.uint8),
        np.full(100, np.iinfo(np.int64).min),
    ],
    ids=str,
)  # fmt: skip
def test_special_values(array: NDArray[Any]) -> None:
    stored(array)


def test_few_values_make_a_codebook() -> None:
    weights = np.round(pruned((300, 400), 0.1) * 4) / 4
    encoded = stored(weights.astype(np.float32))
    assert encoded.form.codebook == len(np.unique(weights[weights != 0]))
    assert encoded.stages.final < encoded.stages.shared < encoded.stages.pruned / 2
    assert stored(np.arange(1, 256, dtype=np.float32).repeat(40)).form.codebook == 255
    assert stored(np.arange(1, 257, dtype=np.float32).repeat(40)).form.codebook == 0


def test_zeros_keep_their_signs() -> None:
    weights = pruned((50, 60), 0.1)
    masked = np.random.default_rng(1).standard_normal((50, 60)).astype(np.float32) * (weights != 0)
    assert (np.signbit(masked) & (masked == 0)).any()
    assert stored(masked).form.pieces[0].name == "signs"
    assert stored(weights).form.pieces[0].name != "signs"


@pytest.mark.parametrize("index_bits", [4, 8])
@pytest.mark.parametrize("gap", [14, 15, 16, 17, 31, 32, 255, 256, 257, 600])
def test_padding_stands_behind_the_largest_count(index_bits: int, gap: int) -> None:
    support = np.zeros((2, 700), np.bool_)
    support[0, [3, 4 + gap]] = True
    found = columns.compress(support, index_bits)
    reach = 1 << index_bits
    assert found.counts.tolist() == [2 + gap // reach, 0]
    assert found.zeros.tolist() == [3, *[reach - 1] * (gap // reach), gap % reach]
    ((_, places),) = columns.places(found.counts, found.zeros, 700)
    assert places[~found.padding].tolist() == [3, 4 + gap]
    assert len(set(places.tolist())) == len(places), "padding has places of its own"


def test_columns_are_read_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_BLOCK", 64)
    weights = pruned((90, 40), 0.05)
    weights[10:50] = 0
    stored(weights)
    stored(weights, transposed=True)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_words(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.uint8, np.int16, np.float16, np.float32, np.int64]))
    shape = tuple(data.draw(st.lists(st.integers(0, 9), max_size=3)))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    words = np.frombuffer(generator.bytes(size), dtype).reshape(shape).copy()
    words[generator.random(shape) < data.draw(st.sampled_from([0.0, 0.5, 0.95]))] = 0
    stored(words, data.draw(st.booleans()))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_damage_gives_other_words_or_one_sentence(data: st.DataObject) -> None:
    """Also in the form, as a file may say anything: whatever is given back has the size that it says."""
    density = data.draw(st.sampled_from([1.0, 0.4, 0.05]))
    weights = pruned((40, 60), density)
    if data.draw(st.booleans()):
        weights = np.round(weights * 2).astype(np.float32)
    encoded = encode(_payload(weights), 4, True, weights.shape, data.draw(st.booleans()))
    stream, form = bytearray(b"".join(encoded.data)), encoded.form
    for _ in range(data.draw(st.integers(0, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    field = data.draw(st.sampled_from(["layout", "columns", "length", "codebook", "transposed", "pieces", "none"]))
    number = data.draw(st.integers(0, 100))
    if field == "pieces":
        pieces = list(form.pieces)
        at = data.draw(st.integers(0, len(pieces) - 1))
        change: dict[str, Any] = data.draw(
            st.sampled_from([{"width": number % 33}, {"coding": "packed"}, {"coding": "huffman"}, {"name": "signs"}])
        )
        pieces[at] = replace(pieces[at], **change)
        form = replace(form, pieces=tuple(pieces))
    elif field != "none":
        value = {"layout": data.draw(st.sampled_from([DENSE, BITMAP, COLUMNS])), "transposed": bool(number % 2)}
        form = replace(form, **{field: value.get(field, number)})
    said = None
    try:
        found = decode(form, memoryview(bytes(stream)), "it")
    except ArtifactError as error:
        said = str(error)
    if said is None:
        assert found.nbytes == form.size * 4
    else:
        assert said.startswith("it ")
        assert " is damaged: " in said
        assert "\n" not in said
