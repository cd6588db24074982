"""ONNX node -> Relax: our own converters, for the custom operators and for what TVM gets slow or wrong.

A converter takes a `Context` and the inputs as Relax expressions (None where an optional input is absent) and returns
one expression or a list, or NotImplemented where it hands the node on: to the next table, then to TVM. What a kernel
computes is a TE definition from `kernels/`; the files here only read attributes and shapes.
"""

from __future__ import annotations

import math

import onnx_ir as ir
from tvm import tirx

from graphopt.targets.common.converters import index, linear, pooling, quantized, regions, resize
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
from graphopt.targets.common.converters.base import Context, Converter
from graphopt.targets.common.converters.halves import in_single
from graphopt.targets.common.converters.places import arg_extreme, hardmax
from graphopt.targets.common.converters.reductions import mean, reduction
from graphopt.targets.common.converters.shapes import concat, dropout, eye_like, nothing, shape, size, space, split
from graphopt.targets.common.converters.statistics import batch_norm
from graphopt.targets.common.converters.sum_reductions import total
from graphopt.targets.common.kernels import math as fast
from graphopt.targets.cpu.converters.attention import attention
from graphopt.targets.cpu.converters.blocked import (
    conv2d_blocked,
    depthwise_blocked,
    from_blocked,
    global_average_pool_blocked,
    lrn_blocked,
    pool_blocked,
    to_blocked,
)
from graphopt.targets.cpu.converters.convolution import conv
from graphopt.targets.cpu.converters.extremes import along_rows, global_max_pool
from graphopt.targets.cpu.converters.fft import conv2d_fft
from graphopt.targets.cpu.converters.products import fully_connected, matmul
from graphopt.targets.cpu.converters.recurrent import recurrent
from graphopt.targets.cpu.converters.rows import channel_norm, clamp, elementwise, gelu, layer_norm, softmax
from graphopt.targets.cpu.converters.transposed import conv_transpose
from graphopt.targets.cpu.converters.winograd import conv2d_winograd

__all__ = ["CUSTOM", "FURTHER", "STANDARD", "Context", "Converter", "candidates", "nothing"]

CUSTOM: dict[str, Converter] = {
    "ToBlocked": to_blocked,
    "FromBlocked": from_blocked,
    "Conv2dBlocked": conv2d_blocked,
    "DepthwiseConv2dBlocked": depthwise_blocked,
    "Conv2dWinograd": conv2d_winograd,
    "Conv2dWinogradAxis": conv2d_winograd,
    "Conv2dFft": conv2d_fft,
    "Conv2dIm2col": conv,
    "MaxPoolBlocked": pool_blocked("max"),
    "AveragePoolBlocked": pool_blocked("average"),
    "GlobalAveragePoolBlocked": global_average_pool_blocked,
    "LRNBlocked": lrn_blocked,
    "Attention": attention,
    "AttentionMasked": attention,
}

STANDARD: dict[str, Converter] = {
    "AveragePool": pooling.pool_of_rows,
    "Atanh": elementwise(fast.atanh),
    "Clip": clamp,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "MatMul": matmul,
    "Gemm": fully_connected,
    "Softmax": softmax(logarithm=False),
    "LogSoftmax": softmax(logarithm=True),
    "LayerNormalization": layer_norm,
    "Relu": clamp,
    "Exp": elementwise(fast.exp),
    "Sigmoid": elementwise(fast.sigmoid),
    "Tanh": elementwise(fast.tanh),
    "Erf": elementwise(fast.erf),
    "Gelu": gelu,
    "GlobalAveragePool": total,
    "GRU": recurrent,
    "GroupNormalization": channel_norm,
    "InstanceNormalization": channel_norm,
    "LSTM": recurrent,
    "MaxPool": pooling.pool_of_rows,
    "ReduceL1": total,
    "ReduceL2": total,
    "ReduceLogSum": total,
    "ReduceLogSumExp": total,
    "ReduceMean": total,
    "ReduceSum": total,
    "ReduceSumSquare": total,
    "RNN": recurrent,
}

"""Tried first."""

FURTHER: dict[str, Converter] = {
    **ACTIVATIONS,
    **index.STANDARD,
    **linear.STANDARD,
    **pooling.STANDARD,
    **quantized.STANDARD,
    **regions.STANDARD,
    **resize.STANDARD,
    "Acos": elementwise(tirx.acos),
    "Acosh": elementwise(tirx.acosh),
    "ArgMax": arg_extreme(largest=True),
    "ArgMin": arg_extreme(largest=False),
    "Asin": elementwise(tirx.asin),
    "Asinh": elementwise(tirx.asinh),
    "Atan": elementwise(tirx.atan),
    "BatchNormalization": batch_norm,
    "BitCast": bit_cast,
    "BitShift": bit_shift,
    "Cast": cast,
    "Concat": concat,
    "Conv": in_single(conv),
    "ConvTranspose": in_single(conv_transpose),
    "Cosh": hyperbolic(1),
    "Div": divide,
    "DepthToSpace": space(to_depth=False),
    "Dropout": dropout,
    "EyeLike": eye_like,
    "Gemm": in_single(fully_connected),
    "Hardmax": hardmax,
    "GroupNormalization": in_single(channel_norm),
    "InstanceNormalization": in_single(channel_norm),
    "IsInf": is_inf,
    "LayerNormalization": in_single(layer_norm),
    "LogSoftmax": in_single(STANDARD["LogSoftmax"]),
    "LpNormalization": lp_normalization,
    "MatMul": in_single(matmul),
    "Mish": mish,
    "Mod": modulo,
    "Pow": power,
    "ReduceL1": reduction(0),
    "ReduceL2": reduction(0),
    "ReduceLogSum": reduction(-math.inf),
    "ReduceLogSumExp": reduction(-math.inf),
    "GlobalMaxPool": global_max_pool,
    "ReduceMax": along_rows(largest=True),
    "ReduceMean": mean,
    "ReduceMin": along_rows(largest=False),
    "ReduceProd": reduction(1),
    "ReduceSum": reduction(0),
    "ReduceSumSquare": reduction(0),
    "Shape": shape,
    "Sinh": hyperbolic(-1),
    "Size": size,
    "Softmax": in_single(STANDARD["Softmax"]),
    "SpaceToDepth": space(to_depth=True),
    "Split": split,
}
"""Tried where STANDARD has nothing, or hands on: types and attributes that TVM lacks, refuses or gets wrong."""


def candidates(node: ir.Node) -> list[Converter]:
    """Our converters of `node`, in the order in which to try them."""
    if node.domain == "graphopt":
        tables = [CUSTOM]
    elif node.domain in ("", "ai.onnx"):
        tables = [STANDARD, FURTHER]
    else:
        tables = []
    return [table[node.op_type] for table in tables if node.op_type in table]
