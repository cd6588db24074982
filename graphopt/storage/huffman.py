"""Canonical Huffman codes of bytes: only the lengths of codes are stored, and groups of symbols decode side by side.

    alphabet - 1 (1 byte) | length of each symbol's code (1 byte each) | bits of each group (2 bytes each) | codes

A group is `GROUP` symbols. All groups are decoded at once, one symbol of each in a step, so that a step is a few numpy
operations on vectors. Codes have at most `LIMIT` bits; the lengths are the best ones under that limit (package-merge:
Larmore and Hirschberg, A fast algorithm for optimal length-limited Huffman codes, 1990). A single distinct symbol
takes no bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import ArtifactError

LIMIT = 16
GROUP = 1024
_BATCH = 1 << 13  # groups coded at once: 8 Mi symbols


def histogram(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each of the 256 bytes occurs."""
    counts = np.zeros(256, np.int64)
    flat = symbols.reshape(-1)
    for start in range(0, flat.size, 1 << 24):  # bincount casts what it counts
        counts += np.bincount(flat[start : start + (1 << 24)], minlength=256)
    return counts


def code_lengths(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of the code of each symbol, 0 for one that does not occur, or is the only one."""
    used = np.flatnonzero(counts)
    lengths = np.zeros(len(counts), np.int64)
    if len(used) < 2:
        return lengths
    order = used[np.argsort(counts[used], kind="stable")]
    weights, members = counts[order], np.eye(len(order), dtype=np.int64)
    level_weights, level_members = weights, members
    for _ in range(LIMIT - 1):
        pairs = len(level_weights) // 2 * 2
        packages = level_weights[0:pairs:2] + level_weights[1:pairs:2]
        contents = level_members[0:pairs:2] + level_members[1:pairs:2]
        both, all_members = np.concatenate([weights, packages]), np.concatenate([members, contents])
        sorting = np.argsort(both, kind="stable")
        level_weights, level_members = both[sorting], all_members[sorting]
    lengths[order] = level_members[: 2 * len(order) - 2].sum(axis=0)
    return lengths


def coded_bytes(counts: NDArray[np.int64], lengths: NDArray[np.int64] | None = None) -> int:
    """Bytes that `encode` takes for symbols that occur `counts` times."""
    lengths = code_lengths(counts) if lengths is None else lengths
    total = int(counts.sum())
    if not total:
        return 0
    alphabet = int(np.flatnonzero(counts)[-1]) + 1
    return 1 + alphabet + 2 * -(-total // GROUP) + (int((counts * lengths).sum()) + 7) // 8


def encode(symbols: NDArray[np.uint8]) -> bytes:
    """The stream of `symbols`; b"" for none."""
    flat = symbols.reshape(-1)
    if not flat.size:
        return b""
    counts = histogram(flat)
    lengths, alphabet = code_lengths(counts), int(np.flatnonzero(counts)[-1]) + 1
    codes = _codes(lengths)
    groups, words, position = [], np.zeros(int((counts * lengths).sum()) // 32 + 3, np.uint32), 0
    for start in range(0, flat.size, _BATCH * GROUP):
        part = flat[start : start + _BATCH * GROUP]
        sizes = lengths[part]
        groups.append(np.add.reduceat(sizes, np.arange(0, part.size, GROUP)))
        ends = np.cumsum(sizes)
        _put(words, codes[part], sizes, position + ends - sizes)
        position += int(ends[-1])
    stream = words.astype(">u4").tobytes()[: (position + 7) // 8]
    header = bytes([alphabet - 1]) + lengths[:alphabet].astype(np.uint8).tobytes()
    return header + np.concatenate(groups).astype("<u2").tobytes() + stream


def _put(
    words: NDArray[np.uint32], codes: NDArray[np.uint64], sizes: NDArray[np.int64], starts: NDArray[np.int64]
) -> None:
    """Write codes, which follow each other, to their bits in `words`, the highest bit of a word first."""
    if not sizes.any():
        return
    place = starts >> 5
    shifted = codes << (64 - sizes - (starts & 31)).astype(np.uint64)
    first = np.flatnonzero(np.diff(place, prepend=-1))  # of the codes that start in a word
    target = place[first]
    # The bits of different codes are apart, so that sums are unions; a code reaches at most into the next word.
    words[target] |= np.bitwise_or.reduceat(shifted >> np.uint64(32), first).astype(np.uint32)
    words[target + 1] |= np.bitwise_or.reduceat(shifted & np.uint64(0xFFFFFFFF), first).astype(np.uint32)


def _codes(lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The canonical codes: shorter ones first, equal lengths by symbol."""
    codes = np.zeros(len(lengths), np.uint64)
    order = np.lexsort((np.arange(len(lengths)), lengths))
    order = order[lengths[order] > 0]
    code, previous = 0, 0
    for symbol in order.tolist():
        length = int(lengths[symbol])
        code <<= length - previous
        codes[symbol] = code
        code, previous = code + 1, length
    return codes


def decode(data: memoryview, count: int, what: str) -> NDArray[np.uint8]:
    """The `count` symbols of a stream.

    Raises:
        ArtifactError: the stream, which `what` names, is no such code or has another length.
    """
    if not count:
        _require(len(data) == 0, what)
        return np.zeros(0, np.uint8)
    groups = -(-count // GROUP)
    _require(len(data) >= 1, what)
    start = 2 + data[0]
    _require(len(data) >= start + 2 * groups, what)
    lengths = np.frombuffer(data[1:start], np.uint8).astype(np.int64)
    sizes = np.frombuffer(data[start : start + 2 * groups], "<u2").astype(np.int64)
    stream = np.frombuffer(data[start + 2 * groups :], np.uint8)
    _require(len(stream) == (int(sizes.sum()) + 7) // 8, what)
    if not lengths.any():
        _require(not sizes.any(), what)
        return np.full(count, len(lengths) - 1, np.uint8)
    longest = int(lengths.max())
    complete = int((1 << (LIMIT - lengths[lengths > 0])).sum()) == 1 << LIMIT if longest <= LIMIT else False
    _require(complete and int(sizes.max()) <= LIMIT * GROUP, what)
    table = _table(lengths, longest)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    symbols = np.empty(groups * GROUP, np.uint8)
    for first in range(0, groups, _BATCH):
        last = min(first + _BATCH, groups)
        steps = np.full(last - first, GROUP)
        if last == groups:
            steps[-1] = count - (groups - 1) * GROUP
        part = _decode_groups(stream, starts[first : last + 1], steps, table, longest)
        if part is None:
            raise _damaged(what)
        symbols[first * GROUP : last * GROUP] = part
    return symbols[:count]


def _table(lengths: NDArray[np.int64], longest: int) -> NDArray[np.uint16]:
    """For the next `longest` bits, the symbol times 32 plus the length of its code: a complete code fills the table."""
    order = np.lexsort((np.arange(len(lengths)), lengths))
    order = order[lengths[order] > 0]
    return np.repeat((order * 32 + lengths[order]).astype(np.uint16), 1 << (longest - lengths[order]))


def _decode_groups(
    stream: NDArray[np.uint8],
    starts: NDArray[np.int64],
    steps: NDArray[np.int64],
    table: NDArray[np.uint16],
    longest: int,
) -> NDArray[Any] | None:
    """The symbols of groups between these bits, the end of the last one included; None if a group does not fit."""
    base = int(starts[0]) // 32
    chunk = stream[4 * base : (int(starts[-1]) + 7) // 8]
    # A damaged group reads on, at most through the bits of one more group.
    padded = np.zeros(-(-(len(chunk) + GROUP * LIMIT // 8 + 16) // 4) * 4, np.uint8)
    padded[: len(chunk)] = chunk
    halves = padded.view(">u4").astype(np.uint64)
    windows = (halves[:-1] << np.uint64(32)) | halves[1:]
    position = starts[:-1] - 32 * base
    out = np.empty((GROUP, len(position)), np.uint16)
    valid = 33 // longest  # codes in the bits that a window always has left
    shift = np.uint64(64 - longest)
    short = steps < GROUP
    ends = position.copy()
    for step in range(0, GROUP, valid):
        window = windows[position >> 5] << (position & 31).astype(np.uint64)
        for each in range(step, min(step + valid, GROUP)):
            found = table[(window >> shift).astype(np.int64)]
            out[each] = found
            length = found & np.uint16(31)
            window <<= length.astype(np.uint64)
            position = position + length
            if short.any() and each + 1 == steps[-1]:
                ends[-1] = position[-1]
    ends[~short] = position[~short]
    if (ends != starts[1:] - 32 * base).any():
        return None
    return (out >> np.uint16(5)).astype(np.uint8).T.reshape(-1)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _damaged(what)


def _damaged(what: str) -> ArtifactError:
    return ArtifactError(f"{what} is damaged: its Huffman codes do not fit; compress the model again")
