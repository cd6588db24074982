"""Masks in one bit for each element, and the random masks of Dropout."""

from __future__ import annotations

# Bit i of byte j is element 8 j + i.
POSITIVE_BITS = """
PositiveBits (X) => (bits)
{
    infer = Constant <value_ints = [-1]>()
    zero_list = Constant <value_ints = [0]>()
    eight = Constant <value_ints = [8]>()
    rows = Constant <value_ints = [-1, 8]>()
    places = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}>()
    nothing_float = Constant <value_float = 0.0>()
    nothing = CastLike(nothing_float, X)
    positive = Greater(X, nothing)
    number = Cast <to = 6>(positive)
    list = Reshape(number, infer)
    length = Shape(list)
    negative = Neg(length)
    missing = Mod(negative, eight)
    pads = Concat <axis = 0>(zero_list, missing)
    padded = Pad(list, pads)
    bytes_of_eight = Reshape(padded, rows)
    weighted = Mul(bytes_of_eight, places)
    last_axis = Constant <value_ints = [1]>()
    sums = ReduceSum <keepdims = 0>(weighted, last_axis)
    bits = Cast <to = 2>(sums)
}
"""

# 0 where the bit is 0, whatever dY is there.
MASK_BY_BITS = """
MaskByBits (dY, bits) => (dX)
{
    infer = Constant <value_ints = [-1]>()
    zero_list = Constant <value_ints = [0]>()
    last_axis = Constant <value_ints = [1]>()
    places = Constant <value = int32[8] {1, 2, 4, 8, 16, 32, 64, 128}>()
    two = Constant <value = int32 {2}>()
    one = Constant <value = int32 {1}>()
    number = Cast <to = 6>(bits)
    column = Unsqueeze(number, last_axis)
    shifted = Div(column, places)
    bit = Mod(shifted, two)
    is_set = Equal(bit, one)
    list = Reshape(is_set, infer)
    size = Size(dY)
    length = Reshape(size, infer)
    cut = Slice(list, zero_list, length)
    shape = Shape(dY)
    mask = Reshape(cut, shape)
    nothing_float = Constant <value_float = 0.0>()
    nothing = CastLike(nothing_float, dY)
    dX = Where(mask, dY, nothing)
}
"""

# A number of 32 bits for each element: the finalizer `lowbias32` (C. Wellons, "Prospecting for Hash Functions") of
# (element + key), then of (that xor key'), with keys from seed and counter. Products are of 64 bits with sign, so the
# second factor is written as 0x846ca68b - 2^32: the low 32 bits are the same, and nothing overflows.
_MIX = """
    {x}_half = Div({x}, two_16)
    {x}_1 = BitwiseXor({x}, {x}_half)
    {x}_2 = Mul({x}_1, factor_1)
    {x}_3 = BitwiseAnd({x}_2, low_bits)
    {x}_part = Div({x}_3, two_15)
    {x}_4 = BitwiseXor({x}_3, {x}_part)
    {x}_5 = Mul({x}_4, factor_2)
    {x}_6 = BitwiseAnd({x}_5, low_bits)
    {x}_end = Div({x}_6, two_16)
    {y} = BitwiseXor({x}_6, {x}_end)
"""

DROPOUT_MASK = f"""
DropoutMask <ratio, seed>(counter, S) => (mask)
{{
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    two_15 = Constant <value_int = 32768>()
    two_16 = Constant <value_int = 65536>()
    low_bits = Constant <value_int = 4294967295>()
    factor_1 = Constant <value_int = 2146121005>()
    factor_2 = Constant <value_int = -2073254261>()
    golden = Constant <value_int = 2654435769>()
    given_seed = Constant <value_int: int = @seed>()
    seed_low = BitwiseAnd(given_seed, low_bits)
    {_MIX.format(x="seed_low", y="seed_mixed")}
    counter_sum = Add(seed_mixed, counter)
    counter_low = BitwiseAnd(counter_sum, low_bits)
    {_MIX.format(x="counter_low", y="key")}
    second_sum = Add(key, golden)
    second_low = BitwiseAnd(second_sum, low_bits)
    {_MIX.format(x="second_low", y="second_key")}

    size = ReduceProd <keepdims = 0>(S)
    elements = Range(zero, size, one)
    element_sum = Add(elements, key)
    element_low = BitwiseAnd(element_sum, low_bits)
    {_MIX.format(x="element_low", y="once")}
    keyed = BitwiseXor(once, second_key)
    {_MIX.format(x="keyed", y="random")}

    given_ratio = Constant <value_float: float = @ratio>()
    ratio = Cast <to = 11>(given_ratio)
    two_32 = Constant <value = double {{4294967296.0}}>()
    exact_limit = Mul(ratio, two_32)
    limit = Cast <to = 7>(exact_limit)
    kept = GreaterOrEqual(random, limit)
    mask = Reshape(kept, S)
}}
"""
