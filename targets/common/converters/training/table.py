"""Converters of the backward pass that fit all targets."""

from __future__ import annotations

from graphopt.targets.common.converters.base import Converter
from graphopt.targets.common.converters.training.losses import cross_entropy_gradient, likelihood
from graphopt.targets.common.converters.training.masks import dropout_mask, mask_by_bits, positive_bits
from graphopt.targets.common.converters.training.phases import interleave_phases
from graphopt.targets.common.converters.training.pools import (
    average_pool_gradient,
    max_pool_argmax,
    max_pool_gradient,
)

TRAINING: dict[str, Converter] = {
    "NegativeLogLikelihoodLoss": likelihood,
    "graphopt.AveragePoolGradient": average_pool_gradient,
    "graphopt.CrossEntropyGradient": cross_entropy_gradient,
    "graphopt.CrossEntropyGradientWeighted": cross_entropy_gradient,
    "graphopt.DropoutMask": dropout_mask,
    "graphopt.InterleavePhases": interleave_phases,
    "graphopt.InterleavePhasesBlocked": interleave_phases,
    "graphopt.MaskByBits": mask_by_bits,
    "graphopt.MaxPoolArgmax": max_pool_argmax,
    "graphopt.MaxPoolGradient": max_pool_gradient,
    "graphopt.PositiveBits": positive_bits,
}
