"""The converters of GPUs, by operator."""

from __future__ import annotations

from graphopt.targets.common.converters import pooling
from graphopt.targets.common.converters.base import Converter
from graphopt.targets.common.converters.reductions import extreme
from graphopt.targets.common.converters.table import FURTHER, SHARED, Table, in_order
from graphopt.targets.common.converters.training import half
from graphopt.targets.common.converters.training.table import TRAINING
from graphopt.targets.gpu.converters import quantized
from graphopt.targets.gpu.converters.attention import attention
from graphopt.targets.gpu.converters.blocked import BLOCKED
from graphopt.targets.gpu.converters.convolution import conv, conv_im2col, conv_transpose
from graphopt.targets.gpu.converters.functions import gelu, left_to_tvm
from graphopt.targets.gpu.converters.products import fully_connected, matmul
from graphopt.targets.gpu.converters.recurrent import recurrent
from graphopt.targets.gpu.converters.reductions import mean
from graphopt.targets.gpu.converters.rows import channel_norm, layer_norm, rms_norm, softmax
from graphopt.targets.gpu.converters.sparse import block_sparse_conv, block_sparse_matmul
from graphopt.targets.gpu.converters.training import table as training
from graphopt.targets.gpu.converters.training.normalization import layer_norm_kept
from graphopt.targets.gpu.converters.views import transpose

OWN: dict[str, Converter] = {
    **BLOCKED,
    **quantized.OWN,
    **training.OWN,
    "Conv": conv,
    "graphopt.Conv2dIm2col": conv_im2col,
    "MatMul": matmul,
    "Gemm": fully_connected,
    "graphopt.BlockSparseConv": block_sparse_conv,
    "graphopt.BlockSparseMatMul": block_sparse_matmul,
    "graphopt.Attention": attention,
    "graphopt.AttentionMasked": attention,
    "Softmax": softmax(logarithm=False),
    "LogSoftmax": softmax(logarithm=True),
    "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm,
    "InstanceNormalization": channel_norm,
    "GroupNormalization": channel_norm,
    "ReduceMean": mean,
    "GlobalAveragePool": mean,
    "GlobalMaxPool": left_to_tvm,
    "AveragePool": pooling.pool,
    "MaxPool": pooling.pool,
    "ReduceMax": extreme(largest=True),
    "ReduceMin": extreme(largest=False),
    "Transpose": transpose,
    "Gelu": gelu,
    "Exp": left_to_tvm,
    "Sigmoid": left_to_tvm,
    "Tanh": left_to_tvm,
    "Erf": left_to_tvm,
    "LSTM": recurrent,
    "GRU": recurrent,
    "RNN": recurrent,
    "ConvTranspose": conv_transpose,
}
"""Converters of GPUs, which replace those that targets share."""

NEXT: dict[str, Converter] = {"LayerNormalization": layer_norm_kept}
"""Tried where `OWN` returns NotImplemented."""

HALVES: dict[str, Converter] = {
    name: half.in_single(each) for name, each in {**TRAINING, **training.OWN, **NEXT}.items()
}
"""Tried last, on fp16 and bf16."""

TABLE: Table = {**in_order(SHARED, TRAINING, FURTHER), **in_order({**TRAINING, **OWN}, NEXT, HALVES)}
