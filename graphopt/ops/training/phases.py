"""Output phases of a transposed convolution put side by side.

Output y = s t + r of a convolution with stride s sees the taps of phase r alone, so each phase is a convolution of
stride 1 (a sub-pixel convolution: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient
Sub-Pixel Convolutional Neural Network", 2016).

    y[n, c, s t + r, s' u + q] = x[n, slot C + c, t, u],  slot = phases[r s' + q];  0 where it is -1
"""

from __future__ import annotations

_HEAD = """
    infer = Constant <value_ints = [-1]>()
    one = Constant <value_ints = [1]>()
    phases = Constant <value_ints: ints = @phases>()
    strides = Constant <value_ints: ints = @strides>()
    shape = Constant <value_ints: ints = @shape>()
    first = Constant <value_ints = [0, 0]>()
    batch = Shape <start = 0, end = 1>(x)
    plane = Shape <start = 2, end = 4>(x)
    covered = Mul(plane, strides)
    highest = ReduceMax(phases)
    slots = Add(highest, one)
    zero_float = Constant <value_float = 0.0>()
    zero = CastLike(zero_float, x)
    plane_axes = Constant <value_ints = [2, 3]>()
    channels = Shape <start = 1, end = 2>(x)
    each = Div(channels, slots)
"""

INTERLEAVE_PHASES = f"""
InterleavePhases <strides, phases, shape>(x) => (y)
{{
    {_HEAD}
    split_shape = Concat <axis = 0>(batch, slots, each, plane)
    split = Reshape(x, split_shape)
    empty_shape = Concat <axis = 0>(batch, one, each, plane)
    empty = Expand(zero, empty_shape)
    with_empty = Concat <axis = 1>(split, empty)
    every = Gather <axis = 1>(with_empty, phases)
    by_stride_shape = Concat <axis = 0>(batch, strides, each, plane)
    by_stride = Reshape(every, by_stride_shape)
    placed = Transpose <perm = [0, 3, 4, 1, 5, 2]>(by_stride)
    covered_shape = Concat <axis = 0>(batch, each, covered)
    whole = Reshape(placed, covered_shape)
    y = Slice(whole, first, shape, plane_axes)
}}
"""

INTERLEAVE_PHASES_BLOCKED = f"""
InterleavePhasesBlocked <strides, phases, shape>(x) => (y)
{{
    {_HEAD}
    lanes = Shape <start = 4, end = 5>(x)
    split_shape = Concat <axis = 0>(batch, slots, each, plane, lanes)
    split = Reshape(x, split_shape)
    empty_shape = Concat <axis = 0>(batch, one, each, plane, lanes)
    empty = Expand(zero, empty_shape)
    with_empty = Concat <axis = 1>(split, empty)
    every = Gather <axis = 1>(with_empty, phases)
    by_stride_shape = Concat <axis = 0>(batch, strides, each, plane, lanes)
    by_stride = Reshape(every, by_stride_shape)
    placed = Transpose <perm = [0, 3, 4, 1, 5, 2, 6]>(by_stride)
    covered_shape = Concat <axis = 0>(batch, each, covered, lanes)
    whole = Reshape(placed, covered_shape)
    y = Slice(whole, first, shape, plane_axes)
}}
"""
