"""Gradients of Softmax, LogSoftmax and the cross entropy, from their results."""

from __future__ import annotations

SOFTMAX_GRADIENT = """
SoftmaxGradient <axis>(dY, Y) => (dX)
{
    infer = Constant <value_ints = [-1]>()
    given = Constant <value_int: int = @axis>()
    axes = Reshape(given, infer)
    weighted = Mul(dY, Y)
    mean = ReduceSum <keepdims = 1>(weighted, axes)
    distances = Sub(dY, mean)
    dX = Mul(Y, distances)
}
"""

LOG_SOFTMAX_GRADIENT = """
LogSoftmaxGradient <axis>(dY, Y) => (dX)
{
    infer = Constant <value_ints = [-1]>()
    given = Constant <value_int: int = @axis>()
    axes = Reshape(given, infer)
    sum = ReduceSum <keepdims = 1>(dY, axes)
    probabilities = Exp(Y)
    shared = Mul(probabilities, sum)
    dX = Sub(dY, shared)
}
"""

# log_prob [N, C, d...], labels [N, d...], dL a scalar, or [N, d...] where reduction is "none". A label weighs w[label],
# or 0 if it is ignore_index; the mean divides by the sum of these weights.
# dlogits = weight * dL / (sum or 1) * (softmax - onehot). If every label is ignored, the gradient is 0.
_CROSS_ENTROPY = """
{name} <reduction, ignore_index>(dL, log_prob, labels{operand}) => (dlogits)
{{
    infer = Constant <value_ints = [-1]>()
    one_list = Constant <value_ints = [1]>()
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    ignored = Constant <value_int: int = @ignore_index>()
    reduction = Constant <value_string: string = @reduction>()
    mean_text = Constant <value_string = "mean">()
    is_mean = Equal(reduction, mean_text)

    labels_64 = Cast <to = 7>(labels)
    is_ignored = Equal(labels_64, ignored)
    counts = Not(is_ignored)
    nothing_float = Constant <value_float = 0.0>()
    nothing = CastLike(nothing_float, log_prob)
    unit_float = Constant <value_float = 1.0>()
    unit = CastLike(unit_float, log_prob)
    {weights}
    weight_of_label = Where(counts, given_weight, nothing)
    total = ReduceSum <keepdims = 0>(weight_of_label)
    divisor = Where(is_mean, total, unit)
    label_shape = Shape(labels)
    received = Expand(dL, label_shape)
    weighted = Mul(weight_of_label, received)
    quotient = Div(weighted, divisor)
    coefficient = Where(counts, quotient, nothing)

    batch = Shape <start = 0, end = 1>(log_prob)
    classes = Shape <start = 1, end = 2>(log_prob)
    rows_shape = Concat <axis = 0>(batch, classes, infer)
    log_rows = Reshape(log_prob, rows_shape)
    label_rows_shape = Concat <axis = 0>(batch, one_list, infer)
    label_rows = Reshape(labels_64, label_rows_shape)
    coefficient_rows = Reshape(coefficient, label_rows_shape)
    class_count = Squeeze(classes)
    class_numbers = Range(zero, class_count, one)
    class_column = Unsqueeze(class_numbers, one_list)
    is_label = Equal(label_rows, class_column)
    probabilities = Exp(log_rows)
    less_one = Sub(probabilities, unit)
    distances = Where(is_label, less_one, probabilities)
    product = Mul(coefficient_rows, distances)
    is_zero = Equal(coefficient_rows, nothing)
    rows = Where(is_zero, nothing, product)
    logits_shape = Shape(log_prob)
    dlogits = Reshape <allowzero = 1>(rows, logits_shape)
}}
"""

CROSS_ENTROPY_GRADIENT = _CROSS_ENTROPY.format(
    name="CrossEntropyGradient", operand="", weights="given_weight = Identity(unit)"
)
CROSS_ENTROPY_GRADIENT_WEIGHTED = _CROSS_ENTROPY.format(
    name="CrossEntropyGradientWeighted",
    operand=", weight",
    weights="known_label = Where(counts, labels_64, zero)\n    given_weight = Gather(weight, known_label)",
)
