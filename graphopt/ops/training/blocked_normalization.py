"""Batch statistics, and the gradient of batch normalization, on blocked tensors; channels have vectors as before."""

from __future__ import annotations

BATCH_STATISTICS_BLOCKED = """
BatchStatisticsBlocked <channels>(x) => (mean, var)
{
    infer = Constant <value_ints = [-1]>()
    others = Constant <value_ints = [0, 2, 3]>()
    begin = Constant <value_ints = [0]>()
    channels_scalar = Constant <value_int: int = @channels>()
    channels = Reshape(channels_scalar, infer)
    center = ReduceMean <keepdims = 1>(x, others)
    distances = Sub(x, center)
    squares = Mul(distances, distances)
    variances = ReduceMean <keepdims = 0>(squares, others)
    all_means = Reshape(center, infer)
    all_variances = Reshape(variances, infer)
    mean = Slice(all_means, begin, channels)
    var = Slice(all_variances, begin, channels)
}
"""

_FILLED = """    {name}_filled = Pad({name}, pads)
    {name}_lanes = Reshape({name}_filled, lanes_shape)
"""

BATCH_NORMALIZATION_GRADIENT_BLOCKED = f"""
BatchNormalizationGradientBlocked (dy, x, scale, mean, inv_std) => (dx, dscale, dbias)
{{
    infer = Constant <value_ints = [-1]>()
    others = Constant <value_ints = [0, 2, 3]>()
    begin = Constant <value_ints = [0]>()
    one = Constant <value_ints = [1]>()
    channels = Shape(scale)
    images = Shape <start = 0, end = 1>(x)
    blocks = Shape <start = 1, end = 2>(x)
    plane = Shape <start = 2, end = 4>(x)
    lanes = Shape <start = 4, end = 5>(x)
    lanes_shape = Concat <axis = 0>(one, blocks, one, one, lanes)
    filled = Mul(blocks, lanes)
    missing = Sub(filled, channels)
    pads = Concat <axis = 0>(begin, missing)
{_FILLED.format(name="scale")}{_FILLED.format(name="mean")}{_FILLED.format(name="inv_std")}
    distances = Sub(x, mean_lanes)
    xhat = Mul(distances, inv_std_lanes)
    projected = Mul(dy, xhat)
    sums = ReduceSum <keepdims = 1>(dy, others)
    projections = ReduceSum <keepdims = 1>(projected, others)
    all_sums = Reshape(sums, infer)
    all_projections = Reshape(projections, infer)
    dbias = Slice(all_sums, begin, channels)
    dscale = Slice(all_projections, begin, channels)

    extents = Concat <axis = 0>(images, plane)
    elements = ReduceProd <keepdims = 0>(extents)
    m = CastLike(elements, x)
    mean_dy = Div(sums, m)
    mean_projected = Div(projections, m)
    along = Mul(xhat, mean_projected)
    centered = Sub(dy, mean_dy)
    free = Sub(centered, along)
    factor = Mul(scale_lanes, inv_std_lanes)
    dx = Mul(factor, free)
}}
"""

CHANNEL_SUMS_BLOCKED = """
ChannelSumsBlocked <channels>(x) => (sums)
{
    infer = Constant <value_ints = [-1]>()
    others = Constant <value_ints = [0, 2, 3]>()
    begin = Constant <value_ints = [0]>()
    channels_scalar = Constant <value_int: int = @channels>()
    channels = Reshape(channels_scalar, infer)
    by_lane = ReduceSum <keepdims = 0>(x, others)
    all_sums = Reshape(by_lane, infer)
    sums = Slice(all_sums, begin, channels)
}
"""
