"""Huffman streams: the symbols come back, sizes are known beforehand, and what is damaged is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import ArtifactError
from graphopt.storage import bits, huffman

GROUP = huffman.GROUP


def _symbols(size: int, kind: str) -> np.ndarray:
    generator = np.random.default_rng(size)
    drawn = {
        "uniform": generator.integers(0, 256, size),
        "geometric": np.minimum(generator.geometric(0.3, size), 255),
        "one": np.full(size, 7),
        "rare": 200 * (generator.random(size) < 0.01),
    }[kind]
    return drawn.astype(np.uint8)


@pytest.mark.parametrize("kind", ["uniform", "geometric", "one", "rare"])
@pytest.mark.parametrize("size", [0, 1, 2, GROUP - 1, GROUP, GROUP + 1, 5000])
def test_symbols_come_back(size: int, kind: str) -> None:
    symbols = _symbols(size, kind)
    data = huffman.encode(symbols)
    assert len(data) == huffman.coded_bytes(huffman.histogram(symbols))
    np.testing.assert_array_equal(huffman.decode(memoryview(data), size, "x"), symbols)


def test_a_batch_of_groups_is_not_the_limit() -> None:
    symbols = _symbols(huffman._BATCH * GROUP + 3 * GROUP + 5, "geometric")
    np.testing.assert_array_equal(huffman.decode(memoryview(huffman.encode(symbols)), symbols.size, "x"), symbols)


def test_frequent_symbols_get_short_codes() -> None:
    lengths = huffman.code_lengths(np.array([1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 0]))
    assert lengths.tolist() == [9, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_codes_are_limited_and_complete() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 60:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    lengths = huffman.code_lengths(np.array(fibonacci))
    assert lengths.max() == huffman.LIMIT
    assert sum(2.0**-length for length in lengths.tolist()) == 1.0


@given(st.binary(min_size=1, max_size=3000))
@settings(max_examples=40, deadline=None)
def test_any_bytes(data: bytes) -> None:
    symbols = np.frombuffer(data, np.uint8)
    np.testing.assert_array_equal(huffman.decode(memoryview(huffman.encode(symbols)), len(symbols), "x"), symbols)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_gives_other_symbols_or_one_sentence(data: st.DataObject) -> None:
    stream = bytearray(huffman.encode(_symbols(2500, "geometric")))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(stream)), st.integers(0, len(stream))))
    try:
        found = len(huffman.decode(memoryview(bytes(stream[:cut])), 2500, "it"))
    except ArtifactError as error:
        found = str(error).startswith("it is damaged: ") * 2500
    assert found == 2500


@given(st.integers(1, 32), st.integers(0, 200), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_packed_numbers_come_back(width: int, count: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 1 << width, count, dtype=np.uint64).astype(np.uint32)
    data = bits.pack(numbers, width)
    assert len(data) == bits.packed_bytes(count, width)
    np.testing.assert_array_equal(bits.unpack(memoryview(data), count, width), numbers)


def test_many_packed_numbers_are_packed_in_groups() -> None:
    numbers = np.random.default_rng(0).integers(0, 8, bits._GROUP + 9)
    np.testing.assert_array_equal(bits.unpack(memoryview(bits.pack(numbers, 3)), len(numbers), 3), numbers)
