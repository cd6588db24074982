"""Stochastic rounding to 16 bits: up or down at random, so that the mean of many roundings is the number."""

from __future__ import annotations

from graphopt.ops.training.random import RANDOM

# The largest least * 2^k, k from 0 up, that is at most `a`: 2^(floor(log2 a)), by doublings that are exact.
_POWER = "\n".join(
    f"""
    doubling_{number} = Constant <value_float = {2.0**exponent!r}>()
    next_{number} = Mul(power_{number}, doubling_{number})
    reached_{number} = GreaterOrEqual(magnitude, next_{number})
    power_{number + 1} = Where(reached_{number}, next_{number}, power_{number})"""
    for number, exponent in enumerate((127, 64, 32, 16, 8, 4, 2, 1))
)

# X is float32. The neighbours are multiples of `unit`, the distance of 16-bit numbers of the magnitude of X; Y is
# floor(X / unit + u) * unit, with u from 0 up to 1 in steps of the bits that are lost, so that a number of the narrow
# type stays. bfloat16 is rounded in steps of 2^-107 at least, for units must not be denormal.
STOCHASTIC_CAST = f"""
StochasticCast <seed, to>(X, counter) => (Y)
{{
    size = Size(X)
    {RANDOM}
    given_to = Constant <value_int: int = @to>()
    float16 = Constant <value_int = 10>()
    is_float16 = Equal(given_to, float16)
    two_19 = Constant <value_int = 524288>()
    coarse = Where(is_float16, two_19, two_16)
    bits = Div(random, coarse)
    bits_float = Cast <to = 1>(bits)
    step_float16 = Constant <value_float = {2.0**-13!r}>()
    step_bfloat16 = Constant <value_float = {2.0**-16!r}>()
    step = Where(is_float16, step_float16, step_bfloat16)
    uniform_list = Mul(bits_float, step)
    shape = Shape(X)
    uniform = Reshape(uniform_list, shape)

    magnitude = Abs(X)
    least_float16 = Constant <value_float = {2.0**-14!r}>()
    least_bfloat16 = Constant <value_float = {2.0**-100!r}>()
    power_0 = Where(is_float16, least_float16, least_bfloat16)
    {_POWER}
    spacing_float16 = Constant <value_float = {2.0**-10!r}>()
    spacing_bfloat16 = Constant <value_float = {2.0**-7!r}>()
    spacing = Where(is_float16, spacing_float16, spacing_bfloat16)
    unit = Mul(power_8, spacing)
    units = Div(X, unit)
    moved = Add(units, uniform)
    whole = Floor(moved)
    rounded = Mul(whole, unit)
    largest = Constant <value_float = 3.4028234663852886e38>()
    is_finite = LessOrEqual(magnitude, largest)
    kept = Where(is_finite, rounded, X)
    Y = Cast <to: int = @to>(kept)
}}
"""
