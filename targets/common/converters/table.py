"""The converters that every target shares; targets put their own before them.

A converter takes a `Context` and the inputs as Relax expressions (None where an optional input is absent) and returns
one expression or a list, or NotImplemented to pass the node on to the next converter of its operator, then to TVM.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import onnx_ir as ir
from tvm import tirx

from graphopt.targets.common.converters import index, linear, pooling, regions, resize
from graphopt.targets.common.converters.activations import ACTIVATIONS
from graphopt.targets.common.converters.arithmetic import (
    bit_cast,
    bit_shift,
    cast,
    divide,
    hyperbolic,
    is_inf,
    lp_normalization,
    mish,
    modulo,
    power,
)
from graphopt.targets.common.converters.base import Converter
from graphopt.targets.common.converters.elementwise import clamp, elementwise, gelu, relu_gradient
from graphopt.targets.common.converters.places import arg_extreme, hardmax
from graphopt.targets.common.converters.random import RANDOM
from graphopt.targets.common.converters.reductions import extreme, mean, reduction
from graphopt.targets.common.converters.shapes import concat, dropout, eye_like, shape, size, space, split
from graphopt.targets.common.converters.statistics import batch_norm
from graphopt.targets.common.converters.sum_reductions import total
from graphopt.targets.common.kernels import math as fast

Table = Mapping[str, tuple[Converter, ...]]
"""By operator ("Conv", "graphopt.Attention"): the converters to try, in order."""

SHARED: dict[str, Converter] = {
    **ACTIVATIONS,
    **index.STANDARD,
    **linear.STANDARD,
    **pooling.STANDARD,
    **RANDOM,
    **regions.STANDARD,
    **resize.STANDARD,
    "Acos": elementwise(tirx.acos),
    "Acosh": elementwise(tirx.acosh),
    "ArgMax": arg_extreme(largest=True),
    "ArgMin": arg_extreme(largest=False),
    "Asin": elementwise(tirx.asin),
    "Asinh": elementwise(tirx.asinh),
    "Atan": elementwise(tirx.atan),
    "Atanh": elementwise(fast.atanh),
    "BatchNormalization": batch_norm,
    "BitCast": bit_cast,
    "BitShift": bit_shift,
    "Cast": cast,
    "Clip": clamp,
    "Concat": concat,
    "Cosh": hyperbolic(1),
    "DepthToSpace": space(to_depth=False),
    "Div": divide,
    "Dropout": dropout,
    "EyeLike": eye_like,
    "Gelu": gelu,
    "Hardmax": hardmax,
    "IsInf": is_inf,
    "LpNormalization": lp_normalization,
    "Mish": mish,
    "Mod": modulo,
    "Pow": power,
    "ReduceL1": total(),
    "ReduceL2": total(),
    "ReduceLogSum": total(),
    "ReduceLogSumExp": total(),
    "ReduceMax": extreme(largest=True),
    "ReduceMin": extreme(largest=False),
    "ReduceProd": reduction(1),
    "ReduceSum": total(),
    "ReduceSumSquare": total(),
    "Relu": clamp,
    "graphopt.ReluGradient": relu_gradient,
    "Shape": shape,
    "Sinh": hyperbolic(-1),
    "Size": size,
    "SpaceToDepth": space(to_depth=True),
    "Split": split,
}

FURTHER: dict[str, Converter] = {
    "ReduceL1": reduction(0),
    "ReduceL2": reduction(0),
    "ReduceLogSum": reduction(-math.inf),
    "ReduceLogSumExp": reduction(-math.inf),
    "ReduceMean": mean,
    "ReduceSum": reduction(0),
    "ReduceSumSquare": reduction(0),
}
"""Tried where the converter before returns NotImplemented: integers, and nothing to reduce."""


def in_order(*tables: Mapping[str, Converter]) -> dict[str, tuple[Converter, ...]]:
    """The converters of each operator from all tables, those of the first table first."""
    names = dict.fromkeys(name for table in tables for name in table)
    return {name: tuple(table[name] for table in tables if name in table) for name in names}


def of_node(table: Table, node: ir.Node) -> tuple[Converter, ...]:
    """The converters of `node`."""
    prefix = f"{node.domain}." if node.domain not in ("", "ai.onnx") else ""
    return table.get(prefix + node.op_type, ())
