"""Converters of the backward pass for GPUs."""

from __future__ import annotations

from graphopt.targets.common.converters.base import Converter
from graphopt.targets.common.converters.training.losses import cross_entropy
from graphopt.targets.gpu.converters.rows import log_softmax
from graphopt.targets.gpu.converters.training.conv_gradient import conv_weight_gradient
from graphopt.targets.gpu.converters.training.gather import gather_gradient
from graphopt.targets.gpu.converters.training.normalization import (
    batch_norm_gradient,
    batch_statistics,
    layer_norm_gradient,
)
from graphopt.targets.gpu.converters.training.rows import softmax_gradient

OWN: dict[str, Converter] = {
    "SoftmaxCrossEntropyLoss": cross_entropy(log_softmax),
    "graphopt.BatchNormalizationGradient": batch_norm_gradient,
    "graphopt.BatchStatistics": batch_statistics,
    "graphopt.ConvWeightGradient": conv_weight_gradient,
    "graphopt.GatherGradient": gather_gradient,
    "graphopt.LayerNormalizationGradient": layer_norm_gradient,
    "graphopt.LogSoftmaxGradient": softmax_gradient(logarithm=True),
    "graphopt.SoftmaxGradient": softmax_gradient(logarithm=False),
}
