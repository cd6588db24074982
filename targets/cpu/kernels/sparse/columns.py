"""Products with compressed columns: codes and 4-bit counts of zeros are decoded on the way, inputs of zero are skipped.

    for each input k that is not zero, for each entry e of column k:   n += 1 + zeros[e];  y[n] += x[k] * book[codes[e]]

A task takes a range of outputs, whose sums lie in the first-level cache, and the columns cut to that range, so that an
entry is read once. EIE does so with its processing elements (S. Han et al., 2016, arXiv:1602.01528); entries come in
pairs here, which share a byte of zeros. Long sums restart at zero, for the reason that `partials.py` gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.targets.common.kernels.blocks import SCHEDULED, const
from graphopt.targets.cpu.kernels.partials import STEPS

LARGEST_GAP = 15
OUTPUTS = 4096
"""Outputs of a task, at most: their sums take 16 KiB of each row."""

MOST_ROWS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Columns of W [K, N], cut to ranges of outputs.

    Range p holds the outputs from `firsts[p]` to `firsts[p + 1]`; its pairs of entries of column k are those from
    `pointers[p, k]` to `pointers[p, k + 1]`. `codes` [2 * pairs], `zeros` [pairs]: the first entry in the low half.
    """

    codes: NDArray[np.uint8]
    zeros: NDArray[np.uint8]
    pointers: NDArray[np.int32]
    firsts: NDArray[np.int32]

    @property
    def width(self) -> int:
        """Outputs of the widest range."""
        return int(np.diff(self.firsts).max())


def places(
    codes: NDArray[np.uint8], zeros: NDArray[np.uint8], pointers: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """(input, output, code) of every entry that is no padding, of the operands of `CompressedColumnsMatMul`."""
    counts = np.stack([zeros & 15, zeros >> 4], axis=1).ravel()[: len(codes)].astype(np.int64)
    column = np.repeat(np.arange(len(pointers) - 1), np.diff(pointers))
    after = np.cumsum(counts + 1)
    before = np.concatenate([[0], after])[pointers[:-1]]
    output = after - 1 - before[column]
    own = codes != 0
    return column[own], output[own], codes[own]


def cut(
    column: NDArray[np.int64], output: NDArray[np.int64], code: NDArray[np.uint8], k: int, n: int, cores: int
) -> Columns:
    """The columns of entries, in ranges with about as many entries each, a multiple of `cores` of them."""
    parts = min(n, math.ceil(n / OUTPUTS / cores) * cores)
    work = np.cumsum(np.bincount(output, minlength=n) + 1)
    firsts = np.searchsorted(work, np.arange(parts + 1) * (work[-1] / parts))
    firsts[0], firsts[-1] = 0, n
    part = np.searchsorted(firsts, output, side="right") - 1
    order = np.lexsort((output, column, part))
    column, output, code, part = column[order], output[order] - firsts[part[order]], code[order], part[order]
    line = part * k + column
    starts = np.concatenate([[True], line[1:] != line[:-1]]) if len(line) else np.zeros(0, np.bool_)
    previous = np.where(starts, -1, np.concatenate([[0], output[:-1]])) if len(line) else output
    gaps = output - previous - 1
    padding = gaps // (LARGEST_GAP + 1)
    sizes = np.bincount(line, weights=padding + 1, minlength=parts * k).astype(np.int64)
    pairs = -(-sizes // 2)
    bounds = np.concatenate([[0], np.cumsum(pairs)])
    at = np.cumsum(padding + 1) - 1  # of each entry, without the padding that makes pairs full
    at += (2 * bounds[:-1] - np.concatenate([[0], np.cumsum(sizes)[:-1]]))[line]
    codes = np.zeros(2 * bounds[-1], np.uint8)
    counts = np.full(2 * bounds[-1], LARGEST_GAP, np.uint8)
    counts[(2 * bounds[1:] - 1)[sizes % 2 == 1]] = 0
    codes[at], counts[at] = code, gaps % (LARGEST_GAP + 1)
    pointers = np.stack([bounds[p * k : (p + 1) * k + 1] for p in range(parts)])
    return Columns(codes, counts[::2] | counts[1::2] << 4, pointers.astype(np.int32), firsts.astype(np.int32))


def product(m: int, k: int, n: int, columns: Columns, book: int, dtype: str) -> tirx.PrimFunc:
    """The function of x [m, k], codes, zeros, pointers, firsts, a codebook of `book` values, and y [m, n]."""
    parts, width = len(columns.firsts) - 1, columns.width + 1  # the second of a pair may be padding behind the last
    step = _inputs_of_a_sum(columns, k, n)
    x = tirx.decl_buffer([m, k], dtype, "x")
    codes = tirx.decl_buffer([len(columns.codes)], "uint8", "codes")
    zeros = tirx.decl_buffer([len(columns.zeros)], "uint8", "zeros")
    pointers = tirx.decl_buffer([parts, k + 1], "int32", "pointers")
    firsts = tirx.decl_buffer([parts + 1], "int32", "firsts")
    values = tirx.decl_buffer([book], dtype, "values")
    y = tirx.decl_buffer([m, n], dtype, "y")

    def column(sums: tirx.Buffer, at: tirx.Buffer, part: Expr, input_: Expr) -> None:
        """Add what one input multiplies."""
        numbers = [T.bind(x[row, input_]) for row in range(m)]
        # not by `!=`, which is false for NaN
        some = [tirx.Select(number == const(0, dtype), const(0, "int32"), const(1, "int32")) for number in numbers]
        with T.If(T.bind(sum(some[1:], some[0])) > 0), T.Then():
            T.buffer_store(at, const(0, "int64"), [0])  # wide indices are not extended at every step
            start = T.bind(pointers[part, input_].astype("int64"))
            with T.serial(0, pointers[part, input_ + 1].astype("int64") - start) as turn:
                pair = T.bind(start + turn)
                both = T.bind(zeros[pair].astype("int64"))
                low, begin = T.bind(tirx.bitwise_and(both, 15)), T.bind(at[0])
                both_zeros = T.bind(low + tirx.shift_right(both, 4))  # one addition each is all that pairs wait for
                T.buffer_store(at, begin + (both_zeros + 2), [0])
                first, second = T.bind(begin + low), T.bind(begin + (both_zeros + 1))
                for place, entry in ((first, pair * 2), (second, pair * 2 + 1)):
                    value = T.bind(values[codes[entry].astype("int32")])
                    for row, number in enumerate(numbers):
                        T.buffer_store(sums, sums[row, place] + number * value, [row, place])

    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            with T.parallel(0, parts) as part:
                totals, sums = (T.alloc_buffer((m, width), dtype, scope="local") for _ in range(2))
                at = T.alloc_buffer((1,), "int64", scope="local")
                with T.serial(0, m) as row, T.serial(0, width) as lane:
                    T.buffer_store(totals, const(0, dtype), [row, lane])
                with T.serial(0, math.ceil(k / step)) as turn:
                    with T.serial(0, m) as row, T.serial(0, width) as lane:
                        T.buffer_store(sums, const(0, dtype), [row, lane])
                    with T.serial(0, tirx.min(step, k - turn * step)) as place:
                        column(sums, at, part, T.bind(turn * step + place))
                    with T.serial(0, m) as row, T.serial(0, width) as lane:
                        T.buffer_store(totals, totals[row, lane] + sums[row, lane], [row, lane])
                with T.serial(0, m) as row, T.serial(firsts[part], firsts[part + 1]) as output:
                    T.buffer_store(y, totals[row, output - firsts[part]], [row, output])
        body = builder.get().body
    parameters = [x, codes, zeros, pointers, firsts, values, y]
    return tirx.PrimFunc(parameters, body).with_attr({SCHEDULED: 1, "s_tir": True, "tirx.noalias": True})


def _inputs_of_a_sum(columns: Columns, k: int, n: int) -> int:
    """Inputs after which sums restart: an output has seen about `STEPS` weights by then."""
    return min(k, max(1, STEPS * k * n // max(1, len(columns.codes))))
