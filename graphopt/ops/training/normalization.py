"""Batch statistics, and the gradients of normalizations."""

from __future__ import annotations

# Two passes: the variance is the mean of squared distances from the mean. E[x^2] - E[x]^2 cancels in float32.
BATCH_STATISTICS = """
BatchStatistics (X) => (mean, var)
{
    infer = Constant <value_ints = [-1]>()
    others = Constant <value_ints = [0, 2]>()
    lead = Shape <start = 0, end = 2>(X)
    planes_shape = Concat <axis = 0>(lead, infer)
    planes = Reshape(X, planes_shape)
    center = ReduceMean <keepdims = 1>(planes, others)
    distances = Sub(planes, center)
    squares = Mul(distances, distances)
    var = ReduceMean <keepdims = 0>(squares, others)
    mean = Squeeze(center, others)
}
"""

# With xhat = (X - mean) * inv_std and m elements for each channel (Ioffe and Szegedy 2015):
# dX = scale * inv_std * (dY - sum(dY) / m - xhat * sum(dY * xhat) / m).
BATCH_NORMALIZATION_GRADIENT = """
BatchNormalizationGradient (dY, X, scale, mean, inv_std) => (dX, dScale, dB)
{
    infer = Constant <value_ints = [-1]>()
    others = Constant <value_ints = [0, 2]>()
    column_axis = Constant <value_ints = [1]>()
    lead = Shape <start = 0, end = 2>(X)
    planes_shape = Concat <axis = 0>(lead, infer)
    x = Reshape(X, planes_shape)
    dy = Reshape(dY, planes_shape)
    mean_column = Unsqueeze(mean, column_axis)
    inv_column = Unsqueeze(inv_std, column_axis)
    scale_column = Unsqueeze(scale, column_axis)
    distances = Sub(x, mean_column)
    xhat = Mul(distances, inv_column)
    projected = Mul(dy, xhat)
    dB = ReduceSum <keepdims = 0>(dy, others)
    dScale = ReduceSum <keepdims = 0>(projected, others)

    all_elements = Size(x)
    channels = Size(scale)
    elements = Div(all_elements, channels)
    m = CastLike(elements, X)
    dB_column = Unsqueeze(dB, column_axis)
    dScale_column = Unsqueeze(dScale, column_axis)
    mean_dy = Div(dB_column, m)
    mean_projected = Div(dScale_column, m)
    along = Mul(xhat, mean_projected)
    centered = Sub(dy, mean_dy)
    free = Sub(centered, along)
    factor = Mul(scale_column, inv_column)
    dx = Mul(factor, free)
    x_shape = Shape(X)
    dX = Reshape(dx, x_shape)
}
"""

# The same over the axes from `axis` on, each row by itself (Ba, Kiros and Hinton 2016); mean and inv_std are
# [.., 1, .., 1], as LayerNormalization gives them.
LAYER_NORMALIZATION_GRADIENT = """
LayerNormalizationGradient <axis>(dY, X, scale, mean, inv_std) => (dX, dScale, dB)
{
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    given = Constant <value_int: int = @axis>()
    x_shape = Shape(X)
    rank = Size(x_shape)
    from_end = Add(given, rank)
    is_negative = Less(given, zero)
    axis = Where(is_negative, from_end, given)
    row_axes = Range(axis, rank, one)
    batch_axes = Range(zero, axis, one)

    mean_x = CastLike(mean, X)
    inv_x = CastLike(inv_std, X)
    distances = Sub(X, mean_x)
    xhat = Mul(distances, inv_x)
    projected = Mul(dY, xhat)
    dScale = ReduceSum <keepdims = 0, noop_with_empty_axes = 1>(projected, batch_axes)
    dB = ReduceSum <keepdims = 0, noop_with_empty_axes = 1>(dY, batch_axes)

    scaled = Mul(dY, scale)
    mean_scaled = ReduceMean <keepdims = 1>(scaled, row_axes)
    scaled_projected = Mul(scaled, xhat)
    mean_projected = ReduceMean <keepdims = 1>(scaled_projected, row_axes)
    along = Mul(xhat, mean_projected)
    centered = Sub(scaled, mean_scaled)
    free = Sub(centered, along)
    dX = Mul(inv_x, free)
}
"""
