"""The rule of each operator: what it keeps from the forward pass, and which forms it does not know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.passes.training.gradients import (
    activations,
    conv,
    dropout,
    elementwise,
    index,
    linear,
    moves,
    normalization,
    pool,
    recurrent,
    reductions,
    resize,
    softmax,
)
from graphopt.passes.training.gradients.context import Context, Rule


@dataclass(frozen=True)
class Entry:
    """How an operator is differentiated.

    `keeps` says which tensors of the forward pass the rule reads. `check` returns why a node has no gradient, and
    `prepare` changes the forward node so that it keeps more. `inputs` are those that have a gradient (None: all);
    `types` are inputs of which only the dtype matters.
    """

    rule: Rule
    keeps: str
    check: Callable[[ir.Node], str | None] | None = None
    limits: str = ""
    prepare: Callable[[Context, ir.Node], None] | None = None
    inputs: tuple[int, ...] | None = None
    types: tuple[int, ...] = ()


_X = "x"
_Y = "y"
_NOTHING = "nothing"
_BOTH = "the other operand"

_UNARY = {
    **dict.fromkeys(("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cos", "Cosh", "Erf", "Log"), _X),
    **dict.fromkeys(("Sin", "Sinh"), _X),
    **dict.fromkeys(("Exp", "Reciprocal", "Sqrt", "Tan"), _Y),
    **dict.fromkeys(("Identity", "Neg"), _NOTHING),
}

_REDUCTIONS = {
    **dict.fromkeys(("ReduceMean", "ReduceSum"), _NOTHING),
    **dict.fromkeys(("ReduceL1", "ReduceProd", "ReduceSumSquare"), _X),
    **dict.fromkeys(("ReduceL2", "ReduceLogSumExp", "ReduceMax", "ReduceMin"), "x and y"),
    "ReduceLogSum": _Y,
}

_GATES = "x, gates and states of all steps"

RULES: dict[str, Entry] = {
    **{name: Entry(elementwise.unary, keeps) for name, keeps in _UNARY.items()},
    "Add": Entry(elementwise.ADD, _NOTHING),
    "Sub": Entry(elementwise.SUB, _NOTHING),
    "Mul": Entry(elementwise.MUL, _BOTH),
    "Div": Entry(elementwise.DIV, "the divisor, and y for its gradient"),
    "Pow": Entry(elementwise.POW, "both operands"),
    "Sum": Entry(elementwise.total, _NOTHING),
    "Mean": Entry(elementwise.total, _NOTHING),
    "Max": Entry(elementwise.extreme, "x and y"),
    "Min": Entry(elementwise.extreme, "x and y"),
    "Clip": Entry(elementwise.clip, "y; x for its bounds"),
    "Where": Entry(elementwise.where, "the condition", inputs=(1, 2)),
    "Cast": Entry(elementwise.cast, _NOTHING),
    "CastLike": Entry(elementwise.cast, _NOTHING, types=(1,)),
    "Relu": Entry(activations.RELU, _Y),
    "LeakyRelu": Entry(activations.LEAKY_RELU, "y; x if alpha < 0"),
    "PRelu": Entry(activations.prelu, _X),
    "ThresholdedRelu": Entry(activations.THRESHOLDED_RELU, _X),
    "Elu": Entry(activations.ELU, "y; x if alpha < 0"),
    "Celu": Entry(activations.CELU, "y; x if alpha < 0"),
    "Selu": Entry(activations.SELU, "x and y"),
    "Gelu": Entry(activations.GELU, _X),
    "Mish": Entry(activations.MISH, _X),
    "Softplus": Entry(activations.SOFTPLUS, _X),
    "Softsign": Entry(activations.SOFTSIGN, _X),
    "Sigmoid": Entry(activations.SIGMOID, _Y),
    "Tanh": Entry(activations.TANH, _Y),
    "HardSigmoid": Entry(activations.HARD_SIGMOID, _Y),
    "HardSwish": Entry(activations.HARD_SWISH, _X),
    "MatMul": Entry(linear.matmul, _BOTH),
    "Gemm": Entry(linear.gemm, _BOTH),
    "Einsum": Entry(linear.einsum, _BOTH, linear.einsum_check, "no ellipsis, no diagonal"),
    "Conv": Entry(conv.conv, "x and the weight", conv.check, "padding is not negative"),
    "ConvTranspose": Entry(conv.conv_transpose, "x and the weight", conv.check, "padding is not negative"),
    "MaxPool": Entry(
        pool.max_pool,
        "a byte for each window; int64 above 256 taps",
        conv.check,
        "padding is not negative",
        pool.keep_argmax,
    ),
    "AveragePool": Entry(pool.average_pool, _NOTHING, conv.check, "padding is not negative"),
    "GlobalAveragePool": Entry(pool.global_average_pool, _NOTHING),
    "GlobalMaxPool": Entry(pool.global_max_pool, _X),
    "BatchNormalization": Entry(
        normalization.batch_normalization, "x, mean and deviation", limits="not by its statistics", inputs=(0, 1, 2)
    ),
    "LayerNormalization": Entry(
        normalization.layer_normalization, "x, mean and deviation of rows", prepare=normalization.keep_row_statistics
    ),
    "RMSNormalization": Entry(normalization.rms_normalization, _X),
    "InstanceNormalization": Entry(normalization.in_groups, _X),
    "GroupNormalization": Entry(normalization.in_groups, _X),
    "LpNormalization": Entry(normalization.lp_normalization, "x and y"),
    "LRN": Entry(normalization.lrn, "x and y"),
    "Dropout": Entry(
        dropout.dropout, "a mask", dropout.check, "ratio and mode are constants", inputs=(0,)
    ),
    "Softmax": Entry(softmax.softmax, _Y),
    "LogSoftmax": Entry(softmax.softmax, _Y),
    "SoftmaxCrossEntropyLoss": Entry(
        softmax.cross_entropy,
        "log_prob and labels",
        limits="not by the weights of classes",
        prepare=softmax.keep_log_probabilities,
        inputs=(0,),
    ),
    "NegativeLogLikelihoodLoss": Entry(
        softmax.likelihood, "labels", limits="not by the weights of classes", inputs=(0,)
    ),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), Entry(moves.reshape, _NOTHING)),
    "Transpose": Entry(moves.transpose, _NOTHING),
    "Expand": Entry(moves.expand, _NOTHING),
    "Tile": Entry(moves.tile, _NOTHING),
    "Concat": Entry(moves.concat, _NOTHING),
    "Split": Entry(moves.split, _NOTHING),
    "Slice": Entry(moves.slices, _NOTHING, moves.slice_check, "bounds are constants"),
    "Pad": Entry(moves.pad, _NOTHING, moves.pad_check, "pads are constants; negative ones as zeros", None, (0,)),
    "DepthToSpace": Entry(moves.space, _NOTHING),
    "SpaceToDepth": Entry(moves.space, _NOTHING),
    "Trilu": Entry(moves.trilu, _NOTHING),
    "Gather": Entry(index.gather, "indices"),
    "GatherElements": Entry(index.gather_elements, "indices"),
    "GatherND": Entry(index.gather_nd, "indices"),
    "ScatterElements": Entry(index.scatter_elements, "indices", index.scatter_check, "reduction none or add"),
    "ScatterND": Entry(index.scatter_nd, "indices", index.scatter_check, "reduction none or add"),
    "TopK": Entry(index.top_k, "indices"),
    **{
        name: Entry(reductions.reduce, keeps, reductions.check, "axes are constants")
        for name, keeps in _REDUCTIONS.items()
    },
    "CumSum": Entry(reductions.cumsum, _NOTHING),
    "Resize": Entry(resize.resize, _NOTHING, resize.check, "modes nearest and linear, without antialias", None, (0,)),
    "LSTM": Entry(
        recurrent.recurrent,
        _GATES,
        recurrent.check,
        "default activations; no sequence_lens, peepholes, clip",
        recurrent.keep_gates,
    ),
    "GRU": Entry(
        recurrent.recurrent,
        _GATES,
        recurrent.check,
        "as LSTM; written out by steps if linear_before_reset = 0",
        recurrent.keep_gates,
    ),
    "RNN": Entry(
        recurrent.recurrent,
        "all states, and x",
        recurrent.check,
        "Tanh or Relu, else as LSTM; written out by steps",
    ),
}  # fmt: skip

ZERO = (
    "And", "ArgMax", "ArgMin", "Bernoulli", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Constant",
    "ConstantOfShape", "Equal", "EyeLike", "Floor", "Greater", "GreaterOrEqual", "Hardmax", "IsInf", "IsNaN", "Less",
    "LessOrEqual", "Multinomial", "NonMaxSuppression", "NonZero", "Not", "Or", "RandomNormal",
    "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Round", "Shape", "Sign", "Size", "Xor",
)  # fmt: skip
"""Operators whose results do not change with small changes of their operands: nothing flows back."""
