"""Pools of the training step: the index of the maximum is kept instead of the input, and gradients go back by it."""

from __future__ import annotations

from graphopt.ops.training.windows import COUNTS, READERS, READS

_ATTRIBUTES = "kernel_shape, strides, dilations, pads, ceil_mode"
_POOL = (
    "kernel_shape: ints = @kernel_shape, strides: ints = @strides, dilations: ints = @dilations, pads: ints = @pads, "
    "ceil_mode: int = @ceil_mode"
)

# NaN is larger than all numbers, and of equal numbers the first one counts. A window of -inf alone still names an
# element of its own, none of the padding.
MAX_POOL_ARGMAX = f"""
MaxPoolArgmax <{_ATTRIBUTES}>(X) => (Y, A)
{{
    Y = MaxPool <{_POOL}>(X)
    in_plane = Shape <start = 2>(X)
    out_plane = Shape <start = 2>(Y)
    {READS}
    lead = Shape <start = 0, end = 2>(X)
    planes_shape = Concat <axis = 0>(lead, infer)
    planes = Reshape(X, planes_shape)
    windows = Gather <axis = 2>(planes, flat)

    unknown = IsNaN(windows)
    outside = Not(inside)
    no_number = Or(unknown, outside)
    infinity = Constant <value = float {{-inf}}>()
    lowest = CastLike(infinity, X)
    numbers = Where(no_number, lowest, windows)
    highest = ReduceMax <keepdims = 1>(numbers, infer)
    reached = Equal(numbers, highest)
    is_highest = And(reached, inside)
    is_nan = And(unknown, inside)
    of_highest = Cast <to = 6>(is_highest)
    of_nan = Cast <to = 6>(is_nan)
    preference = Add(of_highest, of_nan)
    more = Add(preference, of_nan)
    best = ArgMax <axis = -1, keepdims = 0>(more)
    best_byte = Cast <to = 2>(best)
    y_shape = Shape(Y)
    A = Reshape(best_byte, y_shape)
}}
"""

MAX_POOL_GRADIENT_STEPS = f"""
    two_list = Constant <value_ints = [2]>()
    zero_list = Constant <value_ints = [0]>()
    input_rank = Shape(S)
    in_plane = Slice(S, two_list, input_rank)
    lead = Slice(S, zero_list, two_list)
    out_plane = Shape <start = 2>(dY)
    {READS}
    planes_shape = Concat <axis = 0>(lead, infer)
    gradients = Reshape(dY, planes_shape)
    argmax = Reshape(A, planes_shape)
    taken = Cast <to = 7>(argmax)
    windows = Shape <start = 0, end = 1>(flat)
    window_count = Squeeze(windows)
    window_numbers = Range(zero, window_count, one)
    window_rows = Mul(window_numbers, taps)
    entries = Add(taken, window_rows)
    flat_list = Reshape(flat, infer)
    inside_list = Reshape(inside, infer)
    targets = Gather(flat_list, entries)
    has_target = Gather(inside_list, entries)
    nothing_float = Constant <value_float = 0.0>()
    nothing = CastLike(nothing_float, dY)
    parts = Where(has_target, gradients, nothing)
    elements = ReduceProd <keepdims = 1>(in_plane)
    empty_shape = Concat <axis = 0>(lead, elements)
    empty = Expand(nothing, empty_shape)
    sums = ScatterElements <axis = 2, reduction = "add">(empty, targets, parts)
    dX = Reshape <allowzero = 1>(sums, S)
"""
"""The nodes of MaxPoolGradient."""

# How many windows there are is known from dY, so that ceil_mode changes nothing.
MAX_POOL_GRADIENT = f"""
MaxPoolGradient <{_ATTRIBUTES}>(dY, A, S) => (dX)
{{
    ceil_mode = Constant <value_int: int = @ceil_mode>()
    {MAX_POOL_GRADIENT_STEPS}
}}
"""

# The pool itself says by how many elements it divides: the mean over a plane of ones is (elements read) / (divisor).
AVERAGE_POOL_GRADIENT = f"""
AveragePoolGradient <{_ATTRIBUTES}, count_include_pad>(dY, S) => (dX)
{{
    two_list = Constant <value_ints = [2]>()
    zero_list = Constant <value_ints = [0]>()
    input_rank = Shape(S)
    in_plane = Slice(S, two_list, input_rank)
    lead = Slice(S, zero_list, two_list)
    out_plane = Shape <start = 2>(dY)
    {READERS}
    unit = Constant <value_float = 1.0>()
    one_plane = Constant <value_ints = [1, 1]>()
    unit_shape = Concat <axis = 0>(one_plane, in_plane)
    units = Expand(unit, unit_shape)
    shares = AveragePool <{_POOL}, count_include_pad: int = @count_include_pad>(units)
    {COUNTS}
    counts_float = Cast <to = 1>(counts)
    divisors_rounded = Div(counts_float, shares)
    divisors_whole = Round(divisors_rounded)
    divisor = CastLike(divisors_whole, dY)
    planes_shape = Concat <axis = 0>(lead, infer)
    divided = Div(dY, divisor)
    gradients = Reshape(divided, planes_shape)
    reading = Gather <axis = 2>(gradients, flat)
    nothing_float = Constant <value_float = 0.0>()
    nothing = CastLike(nothing_float, dY)
    parts = Where(inside, reading, nothing)
    sums = ReduceSum <keepdims = 0>(parts, infer)
    dX = Reshape <allowzero = 1>(sums, S)
}}
"""
