"""Normalizations whose statistics or scales had other shapes."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.frontend.opsets.site import NoRule, Site, rank


def batch_test(site: Site) -> None:
    """BatchNormalization 7 knows by its outputs alone whether it trains, and no longer by `is_test` too."""
    is_test = site.take("is_test")
    if is_test is not None and is_test.as_int():
        _only_y(site)


def batch_spatial(site: Site) -> None:
    """BatchNormalization 9: statistics are those of channels; before, `spatial=0` has them of every position.

    y = (x - mean) * (scale / sqrt(var + epsilon)) + b, x[N, C, D..], scale, b, mean, var[C, D..]
    """
    spatial = site.take("spatial")
    if spatial is None or spatial.as_int():
        return
    if len(site.node.outputs) > 1:
        raise NoRule("it trains statistics of every position")
    x, scale, b, mean, var = (value for value in site.node.inputs if value is not None)
    epsilon = site.scalar(site.node.attributes.get_float("epsilon", 1e-5), var)
    factor = site.op("Div", scale, site.op("Sqrt", site.op("Add", var, epsilon)))
    shift = site.op("Sub", b, site.op("Mul", mean, factor))
    site.replace(site.op("Add", site.op("Mul", x, factor), shift))


def batch_outputs(site: Site) -> None:
    """BatchNormalization 14 says by an attribute that it trains; before, more outputs than one say so.

    ONNX Runtime does train there: it normalizes with the statistics of the batch.
    """
    if len(site.node.outputs) > 1:
        site.node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
        _outputs(site, 3)


def _only_y(site: Site) -> None:
    _outputs(site, 1)


def _outputs(site: Site, count: int) -> None:
    if any(site.used(index) for index in range(count, len(site.node.outputs))):
        raise NoRule("statistics are used that it does not give any more")
    site.node.resize_outputs(count)


def group(site: Site) -> None:
    """GroupNormalization 21 scales every channel, before it scales every group.

    GroupNormalization<num_groups=G>(x[N, C, D..], scale[G], bias[G])
        ->  Reshape(InstanceNormalization(Reshape(x, [0, G, -1]), scale, bias), Shape(x))
    """
    x, scale, bias = site.node.inputs
    assert x is not None
    groups = site.node.attributes["num_groups"].as_int()
    epsilon = site.node.attributes.get_float("epsilon", 1e-5)
    rows = site.op("Reshape", x, site.constant([0, groups, -1]))
    y = site.op("InstanceNormalization", rows, scale, bias, epsilon=epsilon)
    site.replace(site.reshape_like(y, x))


def mean_variance(site: Site) -> None:
    """MeanVarianceNormalization 9: axes, where ONNX Runtime before takes x[N, C, H, W] across channels or not."""
    across = site.node.attributes.get_int("across_channels", 0)
    axes = [0, 1, 2, 3] if across else [0, 2, 3]
    x = site.x()
    if site.node.attributes.get_int("normalize_variance", 1):
        site.replace(site.op("MeanVarianceNormalization", x, axes=axes))
    else:
        site.replace(site.op("Sub", x, site.op("ReduceMean", x, site.constant(axes))))


def simplified(site: Site) -> None:
    """ONNX Runtime's SimplifiedLayerNormalization, which is in no opset: x / sqrt(mean(x^2) + epsilon) * scale.

    It computes in float32 where `stash_type` says so, which is the default, and has the dtype of the scale.
    """
    x, scale, dims = site.x(), site.input(1), rank(site.x())
    axis = site.node.attributes.get_int("axis", -1)
    if axis >= 0 and dims is None:
        raise NoRule("the rank of its operand is not known")
    axes = list(range(axis, 0)) if axis < 0 else list(range(axis, dims or 0))
    assert scale is not None
    wide, factor = x, scale
    if x.dtype != ir.DataType.DOUBLE:
        wide, factor = (_float(site, value) for value in (x, scale))
    mean = site.op("ReduceMean", site.op("Mul", wide, wide), site.constant(axes))
    root = site.op("Sqrt", site.op("Add", mean, site.scalar(site.node.attributes.get_float("epsilon", 1e-5), wide)))
    inverse = site.op("Reciprocal", root)
    y = site.op("Mul", site.op("Mul", wide, inverse), factor)
    site.replace(y if factor is scale else site.op("CastLike", y, scale), inverse if site.used(1) else None)


def _float(site: Site, value: ir.Value) -> ir.Value:
    if value.dtype == ir.DataType.FLOAT:
        return value
    wide = site.op("Cast", value, to=ir.DataType.FLOAT.value)
    wide.type, wide.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    return wide
