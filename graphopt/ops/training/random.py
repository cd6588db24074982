"""Text shared by function bodies that draw random numbers: a hash of seed, counter and element, the same anywhere."""

from __future__ import annotations

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

# In:  `counter` (int64 scalar), `size` (int64 scalar, elements); attribute seed.
# Out: `random` [size], int64 from 0 up to 2^32.
RANDOM = f"""
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

    elements = Range(zero, size, one)
    element_sum = Add(elements, key)
    element_low = BitwiseAnd(element_sum, low_bits)
    {_MIX.format(x="element_low", y="once")}
    keyed = BitwiseXor(once, second_key)
    {_MIX.format(x="keyed", y="random")}
"""
