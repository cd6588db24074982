"""The gradient of Gather by its data: equal indices add up."""

from __future__ import annotations

# ScatterElements adds one after another; ScatterND of ONNX Runtime adds in parallel and loses additions to one place.
GATHER_GRADIENT = """
GatherGradient <axis>(dY, indices, S) => (dData)
{
    infer = Constant <value_ints = [-1]>()
    zero = Constant <value_int = 0>()
    zero_list = Constant <value_ints = [0]>()
    one_list = Constant <value_ints = [1]>()
    given = Constant <value_int: int = @axis>()
    rank_list = Shape(S)
    rank = Squeeze(rank_list)
    from_end = Add(given, rank)
    is_negative = Less(given, zero)
    axis = Where(is_negative, from_end, given)
    axis_list = Reshape(axis, infer)
    next_axis = Add(axis_list, one_list)
    before = Slice(S, zero_list, axis_list)
    extent = Slice(S, axis_list, next_axis)
    after = Slice(S, next_axis, rank_list)
    before_and_one = Concat <axis = 0>(one_list, before)
    outer = ReduceProd <keepdims = 1>(before_and_one)
    after_and_one = Concat <axis = 0>(one_list, after)
    inner = ReduceProd <keepdims = 1>(after_and_one)

    index_count = Size(indices)
    count = Reshape(index_count, infer)
    rows_shape = Concat <axis = 0>(outer, count, inner)
    rows = Reshape(dY, rows_shape)
    indices_64 = Cast <to = 7>(indices)
    column_shape = Concat <axis = 0>(count, one_list)
    column = Reshape(indices_64, column_shape)
    counted_back = Add(column, extent)
    from_back = Less(column, zero)
    places = Where(from_back, counted_back, column)
    targets = Expand(places, rows_shape)
    nothing_float = Constant <value_float = 0.0>()
    nothing = CastLike(nothing_float, dY)
    empty_shape = Concat <axis = 0>(outer, extent, inner)
    empty = Expand(nothing, empty_shape)
    sums = ScatterElements <axis = 1, reduction = "add">(empty, targets, rows)
    dData = Reshape <allowzero = 1>(sums, S)
}
"""
