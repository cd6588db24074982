"""Masks in one bit for each element, and the random masks of Dropout."""

from __future__ import annotations

from graphopt.ops.training.random import RANDOM

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
    mask = Reshape <allowzero = 1>(cut, shape)
    nothing_float = Constant <value_float = 0.0>()
    nothing = CastLike(nothing_float, dY)
    dX = Where(mask, dY, nothing)
}
"""

DROPOUT_MASK = f"""
DropoutMask <ratio, seed>(counter, S) => (mask)
{{
    size = ReduceProd <keepdims = 0>(S)
    {RANDOM}
    given_ratio = Constant <value_float: float = @ratio>()
    ratio = Cast <to = 11>(given_ratio)
    two_32 = Constant <value = double {{4294967296.0}}>()
    exact_limit = Mul(ratio, two_32)
    limit = Cast <to = 7>(exact_limit)
    kept = GreaterOrEqual(random, limit)
    mask = Reshape <allowzero = 1>(kept, S)
}}
"""

# The derivative of Relu at 0 is 0; NaN is not positive.
RELU_GRADIENT = """
ReluGradient (dY, Y) => (dX)
{
    zero = Constant <value_float = 0.0>()
    zero_of_y = CastLike(zero, Y)
    zero_of_dy = CastLike(zero, dY)
    positive = Greater(Y, zero_of_y)
    dX = Where(positive, dY, zero_of_dy)
}
"""
