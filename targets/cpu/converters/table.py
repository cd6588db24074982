"""The converters of CPUs, by operator."""

from __future__ import annotations

from graphopt.targets.common.converters.base import Converter
from graphopt.targets.common.converters.elementwise import elementwise
from graphopt.targets.common.converters.half_precision import in_single
from graphopt.targets.common.converters.linear import dynamic_quantize
from graphopt.targets.common.converters.quantized import converters as quantized
from graphopt.targets.common.converters.sum_reductions import total
from graphopt.targets.common.converters.table import FURTHER, SHARED, Table, in_order
from graphopt.targets.common.converters.training.losses import cross_entropy
from graphopt.targets.common.converters.training.table import TRAINING
from graphopt.targets.common.kernels import math as fast
from graphopt.targets.cpu.converters import integers
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
from graphopt.targets.cpu.converters.extremes import along_rows, ends, global_max_pool
from graphopt.targets.cpu.converters.fft import conv2d_fft
from graphopt.targets.cpu.converters.pool_rows import pool_of_rows
from graphopt.targets.cpu.converters.products import fully_connected, matmul
from graphopt.targets.cpu.converters.recurrent import recurrent
from graphopt.targets.cpu.converters.rows import channel_norm, layer_norm, log_softmax, softmax
from graphopt.targets.cpu.converters.sparse import block_sparse_conv, block_sparse_matmul, compressed_columns_matmul
from graphopt.targets.cpu.converters.training.conv_gradient import (
    conv2d_weight_gradient_blocked,
    conv_weight_gradient,
    depthwise_weight_gradient_blocked,
)
from graphopt.targets.cpu.converters.training.conv_weights import (
    flip_blocked_weight,
    from_blocked_weight,
    from_depthwise_weight,
    to_blocked_weight,
    to_depthwise_weight,
    winograd_weight,
)
from graphopt.targets.cpu.converters.training.gather import gather_gradient
from graphopt.targets.cpu.converters.training.normalization import (
    batch_norm_gradient,
    batch_norm_gradient_blocked,
    batch_statistics,
    batch_statistics_blocked,
    channel_sums_blocked,
)
from graphopt.targets.cpu.converters.training.pools import (
    average_pool_gradient_blocked,
    max_pool_argmax_blocked,
    max_pool_gradient_blocked,
)
from graphopt.targets.cpu.converters.training.recurrent import (
    gru_gradient,
    gru_training,
    lstm_gradient,
    lstm_training,
)
from graphopt.targets.cpu.converters.training.rows import layer_norm_gradient, layer_norm_kept, softmax_gradient
from graphopt.targets.cpu.converters.transposed import conv_transpose
from graphopt.targets.cpu.converters.winograd import conv2d_winograd
from graphopt.targets.cpu.kernels.tiling import summed_in

CUSTOM: dict[str, Converter] = {
    "graphopt.Attention": attention,
    "graphopt.AttentionMasked": attention,
    "graphopt.AveragePoolBlocked": pool_blocked("average"),
    "graphopt.AveragePoolGradientBlocked": average_pool_gradient_blocked,
    "graphopt.BatchNormalizationGradient": batch_norm_gradient,
    "graphopt.BatchNormalizationGradientBlocked": batch_norm_gradient_blocked,
    "graphopt.BatchStatistics": batch_statistics,
    "graphopt.BatchStatisticsBlocked": batch_statistics_blocked,
    "graphopt.BlockSparseConv": block_sparse_conv,
    "graphopt.CompressedColumnsMatMul": compressed_columns_matmul,
    "graphopt.BlockSparseMatMul": block_sparse_matmul,
    "graphopt.ChannelSumsBlocked": channel_sums_blocked,
    "graphopt.Conv2dBlocked": conv2d_blocked,
    "graphopt.Conv2dFft": conv2d_fft,
    "graphopt.Conv2dIm2col": conv,
    "graphopt.Conv2dWeightGradientBlocked": conv2d_weight_gradient_blocked,
    "graphopt.Conv2dWinograd": conv2d_winograd,
    "graphopt.Conv2dWinogradAxis": conv2d_winograd,
    "graphopt.ConvWeightGradient": conv_weight_gradient,
    "graphopt.DepthwiseConv2dBlocked": depthwise_blocked,
    "graphopt.DepthwiseWeightGradientBlocked": depthwise_weight_gradient_blocked,
    "graphopt.FlipBlockedWeight": flip_blocked_weight,
    "graphopt.FromBlocked": from_blocked,
    "graphopt.FromBlockedWeight": from_blocked_weight,
    "graphopt.FromDepthwiseWeight": from_depthwise_weight,
    "graphopt.GatherGradient": gather_gradient,
    "graphopt.GRUGradient": gru_gradient,
    "graphopt.GRUTraining": gru_training,
    "graphopt.GlobalAveragePoolBlocked": global_average_pool_blocked,
    "graphopt.LRNBlocked": lrn_blocked,
    "graphopt.LayerNormalizationGradient": layer_norm_gradient,
    "graphopt.LogSoftmaxGradient": softmax_gradient(logarithm=True),
    "graphopt.MaxPoolArgmaxBlocked": max_pool_argmax_blocked,
    "graphopt.MaxPoolGradientBlocked": max_pool_gradient_blocked,
    "graphopt.LSTMGradient": lstm_gradient,
    "graphopt.LSTMTraining": lstm_training,
    "graphopt.MaxPoolBlocked": pool_blocked("max"),
    "graphopt.SoftmaxGradient": softmax_gradient(logarithm=False),
    "graphopt.ToBlocked": to_blocked,
    "graphopt.ToBlockedWeight": to_blocked_weight,
    "graphopt.ToDepthwiseWeight": to_depthwise_weight,
    "graphopt.WinogradWeight": winograd_weight,
}

FIRST: dict[str, Converter] = {
    **quantized(integers.product, integers.convolution),
    "AveragePool": pool_of_rows,
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "DynamicQuantizeLinear": dynamic_quantize(ends),
    "Erf": elementwise(fast.erf),
    "Exp": elementwise(fast.exp),
    "GRU": recurrent,
    "Gemm": fully_connected,
    "GlobalAveragePool": total(summed_in),
    "GlobalMaxPool": global_max_pool,
    "GroupNormalization": channel_norm,
    "InstanceNormalization": channel_norm,
    "LSTM": recurrent,
    "LayerNormalization": layer_norm_kept,
    "LogSoftmax": softmax(logarithm=True),
    "MatMul": matmul,
    "MaxPool": pool_of_rows,
    "RNN": recurrent,
    "ReduceL1": total(summed_in),
    "ReduceL2": total(summed_in),
    "ReduceLogSum": total(summed_in),
    "ReduceLogSumExp": total(summed_in),
    "ReduceMax": along_rows(largest=True),
    "ReduceMean": total(summed_in),
    "ReduceMin": along_rows(largest=False),
    "ReduceSum": total(summed_in),
    "ReduceSumSquare": total(summed_in),
    "Sigmoid": elementwise(fast.sigmoid),
    "Softmax": softmax(logarithm=False),
    "SoftmaxCrossEntropyLoss": cross_entropy(log_softmax),
    "Tanh": elementwise(fast.tanh),
}

IN_SINGLE: dict[str, Converter] = {
    "Conv": in_single(conv),
    "ConvTranspose": in_single(conv_transpose),
    "Gemm": in_single(fully_connected),
    "GroupNormalization": in_single(channel_norm),
    "InstanceNormalization": in_single(channel_norm),
    "LayerNormalization": in_single(layer_norm),
    "LogSoftmax": in_single(softmax(logarithm=True)),
    "MatMul": in_single(matmul),
    "Softmax": in_single(softmax(logarithm=False)),
}
"""Tried where FIRST returns NotImplemented."""

_REPLACED = {"DynamicQuantizeLinear", *(name for name in FIRST if name.startswith("Reduce"))}
"""Shared converters that those of FIRST replace entirely."""

TABLE: Table = {
    **in_order(CUSTOM, TRAINING),
    **in_order(FIRST, IN_SINGLE, {name: each for name, each in SHARED.items() if name not in _REPLACED}, FURTHER),
}
