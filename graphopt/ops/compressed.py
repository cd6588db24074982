"""Products with weights in compressed columns: shared values, and 4-bit counts of the zeros before each.

EIE's format (Han et al. 2016) of W [K, N]. A column belongs to an input k; its entries are the outputs with a weight
that is not zero. `codes` [E] uint8 are places in `codebook` [C], whose first value is zero. `zeros` [ceil(E / 2)] uint8
counts the outputs without a weight before each entry, entry 2 i in the low half of byte i, entry 2 i + 1 in the high
one. After 15 stands a padding entry of code 0, and counting begins again behind it; so all entries have places of
their own. `pointers` [K + 1] int32 name the first entry of each column, and the end. The body makes the matrix dense.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import ModelError
from graphopt.storage.bits import pack
from graphopt.storage.columns import compress

INDEX_BITS = 4
MAX_VALUES = 255
"""Values besides zero that a code tells apart."""

_SMALLEST_CODEBOOK = 16
"""Values of the smallest codebook: what one register holds in float32."""

COMPRESSED_COLUMNS_MATMUL = """
CompressedColumnsMatMul <outputs>(x, codes, zeros, pointers, codebook) => (y)
{
    one = Constant <value_int = 1>()
    four = Constant <value = uint8 {4}>()
    low_bits = Constant <value = uint8 {15}>()
    first = Constant <value_ints = [0]>()
    second = Constant <value_ints = [1]>()
    last = Constant <value_ints = [-1]>()
    infer = Constant <value_ints = [-1]>()
    axis = Constant <value_int = 0>()
    width = Constant <value_ints: ints = @outputs>()
    entries = Shape(codes)

    low = BitwiseAnd(zeros, low_bits)
    high = BitShift <direction = "RIGHT">(zeros, four)
    low_column = Unsqueeze(low, second)
    high_column = Unsqueeze(high, second)
    halves = Concat <axis = 1>(low_column, high_column)
    in_order = Reshape(halves, infer)
    counts_narrow = Slice(in_order, first, entries)
    counts = Cast <to = 7>(counts_narrow)

    steps = Add(counts, one)
    after = CumSum(steps, axis)
    before = Sub(after, steps)

    pointers_wide = Cast <to = 7>(pointers)
    begins = Slice(pointers_wide, first, last)
    columns = Shape(begins)
    beyond = Add(columns, second)
    ends = Slice(pointers_wide, second, beyond)
    filled = Less(begins, ends)
    columns_filled_row = NonZero(filled)
    columns_filled = Squeeze(columns_filled_row, first)
    starts = Gather(begins, columns_filled)
    starts_shape = Shape(starts)
    ones = Expand(one, starts_shape)
    nothing = Sub(counts, counts)
    marks = ScatterElements <axis = 0>(nothing, starts, ones)
    numbers = CumSum(marks, axis)
    number = Sub(numbers, one)

    origins = Gather(before, starts)
    origin = Gather(origins, number)
    step_of_column = Sub(after, origin)
    output = Sub(step_of_column, one)
    column = Gather(columns_filled, number)
    row_starts = Mul(column, width)
    places = Add(row_starts, output)

    codes_wide = Cast <to = 7>(codes)
    values = Gather(codebook, codes_wide)
    size = Mul(columns, width)
    zero = CastLike(axis, codebook)
    empty = Expand(zero, size)
    flat = ScatterElements <axis = 0>(empty, places, values)
    shape = Concat <axis = 0>(columns, width)
    matrix = Reshape(flat, shape)
    y = MatMul(x, matrix)
}
"""
"""`outputs` holds one number, N; y is [..., N]."""


def pack_columns(
    weight: NDArray[Any],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.int32], NDArray[Any]]:
    """The operands codes [E], zeros [ceil(E / 2)], pointers [K + 1] and codebook [C] of `weight` [K, N].

    C is a power of two; behind the values of `weight`, ascending, the codebook has zeros.

    Raises:
        ModelError: the weights have more than 255 values besides zero.
    """
    support = np.asarray(weight != 0)
    own = weight[support]
    values = distinct_values(own)
    if values is None:
        raise ModelError(
            f"the weights have more than {MAX_VALUES} values besides zero; share them first (graphopt compress --bits)"
        )
    columns = compress(support, INDEX_BITS)
    codes = columns.values(np.searchsorted(values, own).astype(np.uint8) + np.uint8(1))
    zeros = np.frombuffer(pack(columns.zeros, INDEX_BITS), np.uint8)
    pointers = np.concatenate([[0], np.cumsum(columns.counts, dtype=np.int64)]).astype(np.int32)
    codebook = np.zeros(max(_SMALLEST_CODEBOOK, 1 << len(values).bit_length()), weight.dtype)
    codebook[1 : len(values) + 1] = values
    return codes, zeros, pointers, codebook


def distinct_values(weights: NDArray[Any]) -> NDArray[Any] | None:
    """The values of weights that are not zero, ascending; None if they are more than codes tell apart."""
    if len(np.unique(weights[: 1 << 16])) > MAX_VALUES:
        return None
    values = np.unique(weights)
    return values if len(values) <= MAX_VALUES else None
