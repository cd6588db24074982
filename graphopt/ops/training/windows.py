"""Text shared by the bodies for pools: which element each tap of each window reads, for one to three spatial axes."""

from __future__ import annotations

_HEAD = """
    infer = Constant <value_ints = [-1]>()
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    two = Constant <value_int = 2>()
    three = Constant <value_ints = [3]>()
    second_axis = Constant <value_ints = [1]>()
    kernel = Constant <value_ints: ints = @kernel_shape>()
    strides = Constant <value_ints: ints = @strides>()
    dilations = Constant <value_ints: ints = @dilations>()
    pads = Constant <value_ints: ints = @pads>()
    begins, ends = Split <num_outputs = 2>(pads)
    rank = Shape(kernel)
    missing = Sub(three, rank)
    ones = Expand(one, missing)
    zeros = Expand(zero, missing)
    kernel_3 = Concat <axis = 0>(ones, kernel)
    strides_3 = Concat <axis = 0>(ones, strides)
    dilations_3 = Concat <axis = 0>(ones, dilations)
    begins_3 = Concat <axis = 0>(zeros, begins)
    in_3 = Concat <axis = 0>(ones, in_plane)
    out_3 = Concat <axis = 0>(ones, out_plane)
    taps = ReduceProd <keepdims = 1>(kernel_3)
    table_shape = Concat <axis = 0>(infer, taps)
"""

_AXIS = """
    axis{a} = Constant <value_int = {a}>()
    taps{a} = Gather(kernel_3, axis{a})
    stride{a} = Gather(strides_3, axis{a})
    dilation{a} = Gather(dilations_3, axis{a})
    begin{a} = Gather(begins_3, axis{a})
    in{a} = Gather(in_3, axis{a})
    out{a} = Gather(out_3, axis{a})
    tap_numbers{a} = Range(zero, taps{a}, one)
    offsets{a} = Mul(tap_numbers{a}, dilation{a})
"""

# Element of the input that tap k of window o reads: o * stride + k * dilation - begin.
_READS = """
    numbers{a} = Range(zero, out{a}, one)
    firsts{a} = Mul(numbers{a}, stride{a})
    shifted{a} = Sub(firsts{a}, begin{a})
    column{a} = Unsqueeze(shifted{a}, second_axis)
    at{a} = Add(column{a}, offsets{a})
    after{a} = GreaterOrEqual(at{a}, zero)
    before{a} = Less(at{a}, in{a})
    inside{a} = And(after{a}, before{a})
    extent{a} = Identity(in{a})
"""

# Window whose tap k reads element i of the input: (i + begin - k * dilation) / stride, if that is whole.
_READERS = """
    numbers{a} = Range(zero, in{a}, one)
    shifted{a} = Add(numbers{a}, begin{a})
    column{a} = Unsqueeze(shifted{a}, second_axis)
    distance{a} = Sub(column{a}, offsets{a})
    at{a} = Div(distance{a}, stride{a})
    multiple{a} = Mul(at{a}, stride{a})
    whole{a} = Equal(multiple{a}, distance{a})
    after{a} = GreaterOrEqual(distance{a}, zero)
    before{a} = Less(at{a}, out{a})
    between{a} = And(after{a}, before{a})
    inside{a} = And(between{a}, whole{a})
    extent{a} = Identity(out{a})
"""

_CLIP = """
    top{a} = Sub(extent{a}, one)
    low{a} = Max(at{a}, zero)
    clipped{a} = Min(low{a}, top{a})
    spread{a} = Constant <value_ints = [{spread}]>()
    place{a} = Unsqueeze(clipped{a}, spread{a})
    valid{a} = Unsqueeze(inside{a}, spread{a})
"""

_JOIN = """
    rows = Mul(place0, extent1)
    rows_and_columns = Add(rows, place1)
    lines = Mul(rows_and_columns, extent2)
    flat_6 = Add(lines, place2)
    valid_01 = And(valid0, valid1)
    valid_6 = And(valid_01, valid2)
    flat = Reshape(flat_6, table_shape)
    inside = Reshape(valid_6, table_shape)
"""

# The table of axis a is [places, taps]; among the six axes (places 0..2, taps 0..2) it has number a and a + 3.
_SPREAD = ("1, 2, 4, 5", "0, 2, 3, 5", "0, 1, 3, 4")


def _text(step: str) -> str:
    axes = "".join((_AXIS + step + _CLIP).format(a=axis, spread=_SPREAD[axis]) for axis in range(3))
    return _HEAD + axes + _JOIN


_COUNT = """
    window_numbers{a} = Range(zero, out{a}, one)
    window_firsts{a} = Mul(window_numbers{a}, stride{a})
    window_begins{a} = Sub(window_firsts{a}, begin{a})
    window_column{a} = Unsqueeze(window_begins{a}, second_axis)
    reads{a} = Add(window_column{a}, offsets{a})
    reads_after{a} = GreaterOrEqual(reads{a}, zero)
    reads_before{a} = Less(reads{a}, in{a})
    reads_inside{a} = And(reads_after{a}, reads_before{a})
    reads_one{a} = Cast <to = 7>(reads_inside{a})
    count{a} = ReduceSum <keepdims = 0>(reads_one{a}, second_axis)
    count_axes{a} = Constant <value_ints = [{others}]>()
    counts{a} = Unsqueeze(count{a}, count_axes{a})
"""


# In:  `in_plane`, `out_plane`, the spatial extents of both sides; attributes kernel_shape, strides, dilations, pads.
# Out: `flat` int64 and `inside` bool, both [places, taps]: the element of the other side, and whether there is one.
READS = _text(_READS)
"""A place is a window, the other side is the input."""
READERS = _text(_READERS)
"""A place is an element of the input, the other side are the windows."""

# Out: `counts` int64 [out_plane]; follows one of the other two.
COUNTS = (
    "".join(_COUNT.format(a=axis, others=others) for axis, others in enumerate(("1, 2", "0, 2", "0, 1")))
    + """
    counts_01 = Mul(counts0, counts1)
    counts_3 = Mul(counts_01, counts2)
    counts = Reshape(counts_3, out_plane)
"""
)
"""How many elements of the input each window reads."""
