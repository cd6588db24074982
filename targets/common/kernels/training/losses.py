"""The cross entropy of logarithms of probabilities, and its gradient by the logits.

    loss[i] = -w[label] log_prob[i, label]        dlogits[i, c] = k[i] (exp(log_prob[i, c]) - [c = label])

for rows i = (image, place) of log_prob[N, C, P]; k = w[label] dL, divided by the sum of the weights if the loss is
their mean. A label that is ignored has the weight zero. A label out of range reads a class in range: what it means is
not defined, and memory stays that of the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import const, dims


def weights(labels: te.Tensor, given: te.Tensor | None, ignored: int, classes: int, dtype: str) -> te.Tensor:
    """[N, P]: the weight of each label[N, P], one unless `given`[C]."""

    def element(n: Expr, p: Expr) -> Expr:
        weight = const(1, dtype) if given is None else given[_in_range(labels[n, p], classes)]
        return tirx.Select(labels[n, p].astype("int64") == ignored, const(0, dtype), weight)

    return te.compute(labels.shape, element, name="weights")


def _in_range(label: Expr, classes: int) -> Expr:
    return tirx.max(tirx.min(label.astype("int64"), const(classes - 1, "int64")), const(0, "int64"))


def picked(log_prob: te.Tensor, labels: te.Tensor, weight: te.Tensor) -> te.Tensor:
    """[N, P]: the loss of each row; exactly zero where the weight is."""
    classes, zero = dims(log_prob)[1], const(0, weight.dtype)

    def element(n: Expr, p: Expr) -> Expr:
        value = log_prob[n, _in_range(labels[n, p], classes), p]
        return tirx.Select(weight[n, p] == zero, zero, zero - weight[n, p] * value)

    return te.compute(labels.shape, element, name="picked")


def total(values: te.Tensor, divisor: te.Tensor | None = None) -> te.Tensor:
    """The sum of values[N, P] as [1], in double precision; divided by the sum of `divisor`[N, P] if there is one."""
    n, p = dims(values)

    def summed(tensor: te.Tensor, name: str) -> te.Tensor:
        rn, rp = te.reduce_axis((0, n), "n"), te.reduce_axis((0, p), "p")
        return te.compute((1,), lambda _: te.sum(tensor[rn, rp].astype("float64"), axis=[rn, rp]), name=name)

    result = summed(values, "sum")
    if divisor is None:
        return te.compute((1,), lambda i: result[i].astype(values.dtype), name="total")
    count = summed(divisor, "count")
    return te.compute((1,), lambda i: (result[i] / count[i]).astype(values.dtype), name="total")


def coefficients(weight: te.Tensor, dl: te.Tensor, divisor: te.Tensor | None) -> te.Tensor:
    """[N, P]: k of each row, zero where the weight is; dl is [1] or [N, P], `divisor` [1]."""
    single = len(dl.shape) == 1

    def element(n: Expr, p: Expr) -> Expr:
        value = weight[n, p] * (dl[0] if single else dl[n, p])
        value = value if divisor is None else value / divisor[0]
        return tirx.Select(weight[n, p] == const(0, weight.dtype), const(0, weight.dtype), value)

    return te.compute(weight.shape, element, name="coefficients")


def gradient(log_prob: te.Tensor, labels: te.Tensor, factor: te.Tensor) -> te.Tensor:
    """dlogits[N, C, P]; zero where the factor is, whatever the probability."""
    zero, one = const(0, factor.dtype), const(1, factor.dtype)

    def element(*at: Expr) -> Expr:
        n, c, p = at
        hit = tirx.Select(labels[n, p].astype("int64") == c.astype("int64"), one, zero)
        value = factor[n, p] * (tirx.exp(log_prob[at]) - hit)
        return tirx.Select(factor[n, p] == zero, zero, value)

    return te.compute(log_prob.shape, element, name="dlogits")


def places(shape: Sequence[int]) -> tuple[int, int, int]:
    """(N, C, P) of a shape [N, C, d...]."""
    count = 1
    for extent in shape[2:]:
        count *= extent
    return shape[0], shape[1], count
