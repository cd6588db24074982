"""Gradients of normalizations, and what training BatchNormalization becomes in the forward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import array_of
from graphopt.passes.training.gradients.context import Context, Gradients, Kept, once, shape_of

_EPSILON = 1e-5


def _epsilon(node: ir.Node) -> float:
    return float(node.attributes.get_float("epsilon", _EPSILON) or 0.0)


def trains(node: ir.Node) -> bool:
    """Whether a BatchNormalization normalizes by its batch."""
    return bool(node.attributes.get_int("training_mode", 0))


def _inverse_deviation(ctx: Context, variance: ir.Value, epsilon: float) -> ir.Value:
    return ctx.op("Reciprocal", ctx.op("Sqrt", ctx.op("Add", variance, epsilon)))


def batch_statistics(unbiased: bool) -> Callable[[Context, ir.Node], None]:
    """What BatchNormalization in training becomes; the running variance is of the sample if `unbiased` (as PyTorch).

    Y, running_mean, running_var = BatchNormalization(X, scale, B, mean, var) {training_mode = 1}
      ->  m, v = BatchStatistics(X)    inv_std = 1 / Sqrt(v + epsilon)    Y = (X - m) * (scale * inv_std) + B
          running_mean = mean * momentum + m * (1 - momentum), running_var alike
    """

    def keep(ctx: Context, node: ir.Node) -> None:
        x, scale, bias, mean, variance = node.inputs
        for value in (x, scale, bias, mean, variance):
            assert value is not None
        assert x is not None
        shape = shape_of(x)
        channels, rank = [shape[1]], len(shape)
        batch_mean, batch_variance = ctx.results(
            "BatchStatistics", [x], outputs=[(channels, x.dtype), (channels, x.dtype)]
        )
        inverse = _inverse_deviation(ctx, batch_variance, _epsilon(node))
        assert scale is not None
        assert bias is not None
        factor = ctx.op("Mul", scale, inverse)
        centered = ctx.op("Sub", x, ctx.along(batch_mean, 1, rank))
        scaled = ctx.op("Mul", centered, ctx.along(factor, 1, rank))
        outputs = {0: ctx.op("Add", scaled, ctx.along(bias, 1, rank))}
        momentum = float(node.attributes.get_float("momentum", 0.9) or 0.0)
        count = math.prod(shape) // max(shape[1], 1)
        correction = count / (count - 1) if unbiased and count > 1 else 1.0
        for place, running, batch, factor_of_batch in (
            (1, mean, batch_mean, 1 - momentum),
            (2, variance, batch_variance, (1 - momentum) * correction),
        ):
            assert running is not None
            if place < len(node.outputs) and (node.outputs[place].uses() or node.outputs[place].is_graph_output()):
                old = ctx.op("Mul", running, momentum)
                new = ctx.op("Mul", ctx.cast(batch, running.dtype), factor_of_batch)
                outputs[place] = ctx.op("Add", old, new)
        ctx.kept[node] = Kept((batch_mean, inverse), outputs)

    return keep


def batch_normalization(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """By the batch: BatchNormalizationGradient. By fixed statistics Y is an affine function of X for each channel."""
    x, scale, _, mean, variance = node.inputs
    dy = dys[0]
    if dy is None:
        return {}
    assert x is not None
    assert scale is not None
    shape = shape_of(x)
    if trains(node):
        batch_mean, inverse = ctx.kept[node].values
        channels = [shape[1]]

        @cache
        def emit() -> tuple[ir.Value, ...]:
            return ctx.results(
                "BatchNormalizationGradient",
                [dy, x, scale, batch_mean, inverse],
                outputs=[(shape, x.dtype), (channels, x.dtype), (channels, x.dtype)],
            )

        return {place: once(emit, place) for place in range(3)}
    assert mean is not None
    assert variance is not None
    others = [axis for axis in range(len(shape)) if axis != 1]

    @cache
    def deviation() -> ir.Value:
        known = array_of(variance)
        if known is None:
            return _inverse_deviation(ctx, variance, _epsilon(node))
        return ctx.constant((1 / np.sqrt(known.astype(np.float64) + _epsilon(node))).astype(known.dtype))

    def of_scale() -> ir.Value:
        centered = ctx.op("Sub", x, ctx.along(mean, 1, len(shape)))
        return ctx.op("Mul", ctx.sum(ctx.op("Mul", dy, centered), others), deviation())

    return {
        0: lambda: ctx.op("Mul", dy, ctx.along(ctx.op("Mul", scale, deviation()), 1, len(shape))),
        1: of_scale,
        2: lambda: ctx.sum(dy, others),
    }


def keep_row_statistics(ctx: Context, node: ir.Node) -> None:
    """Y = LayerNormalization(X, ..)  ->  Y, Mean, InvStdDev = LayerNormalization(X, ..).

    The operator gives both in float32; those of float64 are computed beside it.
    """
    x, y = node.inputs[0], node.outputs[0]
    assert x is not None
    shape = shape_of(x)
    axis = (node.attributes.get_int("axis", -1) or 0) % len(shape)
    rows = [*shape[:axis], *[1] * (len(shape) - axis)]
    if x.dtype == ir.DataType.DOUBLE:
        ctx.kept[node] = Kept(row_statistics(ctx, x, list(range(axis, len(shape))), _epsilon(node)))
        return
    stash = ir.DataType(node.attributes.get_int("stash_type", 1) or 1)
    attributes = {"axis": axis, "epsilon": _epsilon(node), "stash_type": int(stash)}
    results = ctx.results(
        "LayerNormalization", node.inputs, attributes, outputs=[(shape, y.dtype), (rows, stash), (rows, stash)]
    )
    ctx.kept[node] = Kept(results[1:], {place: results[place] for place in range(len(node.outputs))})


def row_statistics(ctx: Context, x: ir.Value, axes: Sequence[int], epsilon: float) -> tuple[ir.Value, ir.Value]:
    """Mean and inverse deviation over `axes`, which stay with extent 1."""
    mean = ctx.reduce("ReduceMean", x, axes, keep=True)
    centered = ctx.op("Sub", x, mean)
    variance = ctx.reduce("ReduceMean", ctx.op("Mul", centered, centered), axes, keep=True)
    return mean, _inverse_deviation(ctx, variance, epsilon)


def layer_normalization(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """LayerNormalizationGradient, with what the forward pass knows of each row."""
    x, scale, bias = ([*node.inputs, None])[:3]
    mean, inverse = ctx.kept[node].values
    dy = dys[0]
    if dy is None:
        return {}
    assert x is not None
    assert scale is not None
    shape = shape_of(x)
    axis = (node.attributes.get_int("axis", -1) or 0) % len(shape)

    @cache
    def emit() -> tuple[ir.Value, ...]:
        inner = shape[axis:]
        return ctx.results(
            "LayerNormalizationGradient",
            [dy, x, scale, mean, inverse],
            {"axis": axis},
            outputs=[(shape, x.dtype), (inner, x.dtype), (inner, x.dtype)],
        )

    return {
        0: once(emit, 0),
        1: lambda: ctx.unbroadcast(emit()[1], scale),
        2: lambda: None if bias is None else ctx.unbroadcast(emit()[2], bias),
    }


def in_groups(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """InstanceNormalization and GroupNormalization: rows of X [N, G, rest], each normalized by itself.

    Scale and bias are for each channel, or for each group in GroupNormalization before opset 21.
    """
    x, scale, bias = node.inputs
    dy = dys[0]
    assert dy is not None
    assert x is not None
    assert scale is not None
    assert bias is not None
    shape = shape_of(x)
    groups = shape[1] if node.op_type == "InstanceNormalization" else node.attributes.get_int("num_groups", 1) or 1
    rows = (shape[0], groups, shape[1] // groups, math.prod(shape[2:]))
    affine = (1, groups, shape_of(scale)[0] // groups, 1)

    @cache
    def normalized() -> tuple[ir.Value, ir.Value, ir.Value]:
        """dY and X as rows, normalized X."""
        wide = ctx.reshape(x, rows)
        mean, inverse = row_statistics(ctx, wide, (2, 3), _epsilon(node))
        return ctx.reshape(dy, rows), ctx.op("Mul", ctx.op("Sub", wide, mean), inverse), inverse

    def of_x() -> ir.Value:
        wide_dy, xhat, inverse = normalized()
        scaled = ctx.op("Mul", wide_dy, ctx.reshape(scale, affine))
        mean = ctx.reduce("ReduceMean", scaled, (2, 3), keep=True)
        projected = ctx.reduce("ReduceMean", ctx.op("Mul", scaled, xhat), (2, 3), keep=True)
        free = ctx.op("Sub", ctx.op("Sub", scaled, mean), ctx.op("Mul", xhat, projected))
        return ctx.reshape(ctx.op("Mul", free, inverse), shape)

    def summed(value: ir.Value) -> ir.Value:
        axes = [axis for axis in (0, 2, 3) if affine[axis] == 1]
        return ctx.reshape(ctx.sum(value, axes), shape_of(scale))

    return {
        0: of_x,
        1: lambda: summed(ctx.op("Mul", normalized()[0], normalized()[1])),
        2: lambda: summed(ctx.reshape(dy, rows)),
    }


def rms_normalization(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """y = r scale with r = x / sqrt(mean(x^2) + epsilon) over the axes from `axis` on.

    dx = (dy scale - r mean(dy scale r)) / sqrt(mean(x^2) + epsilon).
    """
    x, scale, dy = node.inputs[0], node.inputs[1], dys[0]
    assert x is not None
    assert scale is not None
    assert dy is not None
    rank = len(shape_of(x))
    axes = range((node.attributes.get_int("axis", -1) or 0) % rank, rank)

    @cache
    def normalized() -> tuple[ir.Value, ir.Value]:
        square = ctx.reduce("ReduceMean", ctx.op("Mul", x, x), axes, keep=True)
        inverse = _inverse_deviation(ctx, square, _epsilon(node))
        return ctx.op("Mul", x, inverse), inverse

    def of_x() -> ir.Value:
        rows, inverse = normalized()
        scaled = ctx.op("Mul", dy, scale)
        along = ctx.reduce("ReduceMean", ctx.op("Mul", scaled, rows), axes, keep=True)
        return ctx.op("Mul", ctx.op("Sub", scaled, ctx.op("Mul", rows, along)), inverse)

    return {0: of_x, 1: lambda: ctx.unbroadcast(ctx.op("Mul", dy, normalized()[0]), scale)}


def lp_normalization(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """y = x / |x| along an axis: dx = (dy - s sum(dy y)) / |x|, s = y for the 2-norm and sign(x) for the 1-norm."""
    x, dy, y = node.inputs[0], dys[0], node.outputs[0]
    assert x is not None
    assert dy is not None
    axis = (node.attributes.get_int("axis", -1) or 0) % len(shape_of(x))
    first = (node.attributes.get_int("p", 2) or 2) == 1

    def emit() -> ir.Value:
        norm = ctx.reduce("ReduceL1" if first else "ReduceL2", x, [axis], keep=True)
        along = ctx.sum(ctx.op("Mul", dy, y), [axis], keep=True)
        direction = ctx.op("Sign", x) if first else y
        free = ctx.op("Sub", dy, ctx.op("Mul", direction, along))
        return ctx.where(ctx.op("Equal", norm, 0.0), 0.0, ctx.op("Div", free, norm))

    return {0: emit}


def lrn(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """y = x s^-beta, s = bias + alpha / size * (sum of x^2 over `size` channels around).

    dx = dy s^-beta - 2 alpha beta / size * x * (sum of dy y / s over the channels whose window holds this one).
    A sum over neighbouring channels is a product with a matrix of zeros and ones.
    """
    x, dy, y = node.inputs[0], dys[0], node.outputs[0]
    assert x is not None
    assert dy is not None
    shape = shape_of(x)
    size = node.attributes.get_int("size", 1) or 1
    alpha = float(node.attributes.get_float("alpha", 1e-4) or 0.0)
    beta = float(node.attributes.get_float("beta", 0.75) or 0.0)
    bias = float(node.attributes.get_float("bias", 1.0) or 0.0)
    planes = (shape[0], shape[1], math.prod(shape[2:]))

    def around(value: ir.Value, transposed: bool) -> ir.Value:
        number = np.arange(shape[1])
        offset = number[None, :] - number[:, None]
        band = (offset >= -((size - 1) // 2)) & (offset <= size // 2)
        assert value.dtype is not None
        matrix = ctx.constant((band.T if transposed else band).astype(value.dtype.numpy()))
        return ctx.reshape(ctx.result("MatMul", [matrix, ctx.reshape(value, planes)], shape=planes), shape)

    def emit() -> ir.Value:
        s = ctx.op("Add", ctx.op("Mul", around(ctx.op("Mul", x, x), False), alpha / size), bias)
        received = around(ctx.op("Div", ctx.op("Mul", dy, y), s), True)
        direct = ctx.op("Mul", dy, ctx.op("Pow", s, -beta))
        return ctx.op("Sub", direct, ctx.op("Mul", ctx.op("Mul", x, received), 2 * alpha * beta / size))

    return {0: emit}
