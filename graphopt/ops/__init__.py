"""The custom operators: ONNX model-local functions of the domain `graphopt` whose bodies are the algorithms.

        fn = ops.function("Conv2dBlocked")       a fresh onnx_ir.Function
        ops.ensure(model, "Conv2dBlocked")       adds the function and the opset imports to the model, once

A body is text in ONNX's own syntax, generic in shape and dtype, with attributes taken by reference; a node must give
every attribute of its function. Next to each body are the numpy functions that pack its constant inputs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphopt.errors import ModelError
from graphopt.ops import (
    attention,
    compressed,
    conv,
    fft,
    im2col,
    layout,
    lrn,
    pool,
    sparse,
    winograd,
    winograd_axis,
)
from graphopt.ops.training import (
    blocked_gradients,
    blocked_normalization,
    blocked_pools,
    blocked_weights,
    gather,
    masks,
    normalization,
    phases,
    recurrent,
    rounding,
    softmax,
)
from graphopt.ops.training import conv as conv_gradient
from graphopt.ops.training import pool as pool_gradient

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["DOMAIN", "MINIMUM_OPSET", "VERSION", "attributes", "ensure", "function", "names"]

DOMAIN = "graphopt"
VERSION = 1
MINIMUM_OPSET = 18
"""The bodies use `Shape` with start and end (15), and reductions with axes as an input (18)."""

_BODIES = {
    "ToBlocked": layout.TO_BLOCKED,
    "FromBlocked": layout.FROM_BLOCKED,
    "Conv2dBlocked": conv.CONV2D_BLOCKED,
    "DepthwiseConv2dBlocked": conv.DEPTHWISE_CONV2D_BLOCKED,
    "Conv2dWinograd": winograd.CONV2D_WINOGRAD,
    "Conv2dWinogradAxis": winograd_axis.CONV2D_WINOGRAD_AXIS,
    "Conv2dFft": fft.CONV2D_FFT,
    "Conv2dIm2col": im2col.CONV2D_IM2COL,
    "MaxPoolBlocked": pool.MAX_POOL_BLOCKED,
    "AveragePoolBlocked": pool.AVERAGE_POOL_BLOCKED,
    "GlobalAveragePoolBlocked": pool.GLOBAL_AVERAGE_POOL_BLOCKED,
    "LRNBlocked": lrn.LRN_BLOCKED,
    "Attention": attention.ATTENTION,
    "AttentionMasked": attention.ATTENTION_MASKED,
    "BlockSparseConv": sparse.BLOCK_SPARSE_CONV,
    "BlockSparseMatMul": sparse.BLOCK_SPARSE_MATMUL,
    "CompressedColumnsMatMul": compressed.COMPRESSED_COLUMNS_MATMUL,
    "ToBlockedWeight": blocked_weights.TO_BLOCKED_WEIGHT,
    "ToDepthwiseWeight": blocked_weights.TO_DEPTHWISE_WEIGHT,
    "FlipBlockedWeight": blocked_weights.FLIP_BLOCKED_WEIGHT,
    "WinogradWeight": blocked_weights.WINOGRAD_WEIGHT,
    "FromBlockedWeight": blocked_weights.FROM_BLOCKED_WEIGHT,
    "FromDepthwiseWeight": blocked_weights.FROM_DEPTHWISE_WEIGHT,
    "Conv2dWeightGradientBlocked": blocked_gradients.CONV2D_WEIGHT_GRADIENT_BLOCKED,
    "DepthwiseWeightGradientBlocked": blocked_gradients.DEPTHWISE_WEIGHT_GRADIENT_BLOCKED,
    "InterleavePhases": phases.INTERLEAVE_PHASES,
    "InterleavePhasesBlocked": phases.INTERLEAVE_PHASES_BLOCKED,
    "BatchStatisticsBlocked": blocked_normalization.BATCH_STATISTICS_BLOCKED,
    "BatchNormalizationGradientBlocked": blocked_normalization.BATCH_NORMALIZATION_GRADIENT_BLOCKED,
    "MaxPoolArgmaxBlocked": blocked_pools.MAX_POOL_ARGMAX_BLOCKED,
    "MaxPoolGradientBlocked": blocked_pools.MAX_POOL_GRADIENT_BLOCKED,
    "AveragePoolGradientBlocked": blocked_pools.AVERAGE_POOL_GRADIENT_BLOCKED,
    "ChannelSumsBlocked": blocked_normalization.CHANNEL_SUMS_BLOCKED,
    "ConvWeightGradient": conv_gradient.CONV_WEIGHT_GRADIENT,
    "MaxPoolArgmax": pool_gradient.MAX_POOL_ARGMAX,
    "MaxPoolGradient": pool_gradient.MAX_POOL_GRADIENT,
    "AveragePoolGradient": pool_gradient.AVERAGE_POOL_GRADIENT,
    "BatchStatistics": normalization.BATCH_STATISTICS,
    "BatchNormalizationGradient": normalization.BATCH_NORMALIZATION_GRADIENT,
    "LayerNormalizationGradient": normalization.LAYER_NORMALIZATION_GRADIENT,
    "SoftmaxGradient": softmax.SOFTMAX_GRADIENT,
    "LogSoftmaxGradient": softmax.LOG_SOFTMAX_GRADIENT,
    "CrossEntropyGradient": softmax.CROSS_ENTROPY_GRADIENT,
    "CrossEntropyGradientWeighted": softmax.CROSS_ENTROPY_GRADIENT_WEIGHTED,
    "GatherGradient": gather.GATHER_GRADIENT,
    "LSTMTraining": recurrent.LSTM_TRAINING,
    "LSTMGradient": recurrent.LSTM_GRADIENT,
    "GRUTraining": recurrent.GRU_TRAINING,
    "GRUGradient": recurrent.GRU_GRADIENT,
    "DropoutMask": masks.DROPOUT_MASK,
    "StochasticCast": rounding.STOCHASTIC_CAST,
    "PositiveBits": masks.POSITIVE_BITS,
    "ReluGradient": masks.RELU_GRADIENT,
    "MaskByBits": masks.MASK_BY_BITS,
}


def names() -> tuple[str, ...]:
    """The names of all operators of the domain."""
    return tuple(_BODIES)


def function(op_type: str, opset: int = MINIMUM_OPSET) -> ir.Function:
    """A fresh function whose body uses ONNX opset `opset` (18 or later).

    Raises:
        ModelError: no such operator, or the opset is too old for the bodies.
    """
    import onnx.parser
    import onnx_ir as ir

    if op_type not in _BODIES:
        raise ModelError(f"the domain {DOMAIN} has no operator {op_type}; it has {', '.join(_BODIES)}")
    if opset < MINIMUM_OPSET:
        raise ModelError(
            f"graphopt.{op_type} needs ONNX opset {MINIMUM_OPSET} or later, the model has {opset}; convert the model"
        )
    text = f'<domain: "{DOMAIN}", opset_import: ["": {opset}]>\n{_BODIES[op_type]}'
    return ir.serde.deserialize_function(onnx.parser.parse_function(text))


def attributes(op_type: str) -> tuple[str, ...]:
    """Names of the attributes that a node of `op_type` must give."""
    return tuple(name for name, value in function(op_type).attributes.items() if value.value is None)


def ensure(model: ir.Model, op_type: str) -> bool:
    """Add the function `op_type` and its opset import to `model` unless it has them; returns whether it was added.

    The body is written for the opset of the model: ONNX Runtime inlines it, so the two must agree.

    Raises:
        ModelError: the model's opset is older than `MINIMUM_OPSET`.
    """
    model.opset_imports.setdefault(DOMAIN, VERSION)
    if (DOMAIN, op_type, "") in model.functions:
        return False
    added = function(op_type, model.opset_imports.get("", 1))
    model.functions[added.identifier()] = added
    return True
