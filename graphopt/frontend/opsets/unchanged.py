"""Changes of operators that leave the meaning of a node as it was: more types, more attributes, a clearer text."""

from __future__ import annotations

from collections.abc import Mapping

_TOGETHER: Mapping[str, tuple[int, ...]] = {
    (
        "Abs Ceil Clip Erf Exp Expand Floor GatherElements LRN Log MeanVarianceNormalization Neg NonZero Reciprocal "
        "Sigmoid Sign SoftmaxCrossEntropyLoss Sqrt Tanh Tile"
    ): (13,),
    (
        "Acos Acosh Asin Asinh Atan Atanh Bernoulli Cos Cosh DeformConv Det Elu EyeLike GlobalAveragePool "
        "GlobalLpPool GlobalMaxPool GridSample HardSigmoid HardSwish InstanceNormalization LpNormalization "
        "MaxRoiPool Mish Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike RoiAlign Round "
        "Selu Sin Sinh Softplus Softsign Tan"
    ): (22,),
    "Add Div Mul Relu Sub": (13, 14),
    "ArgMax ArgMin": (11, 12, 13),
    "Attention": (24, 25),
    "AveragePool": (7, 10, 11, 19, 22),
    "BatchNormalization": (15,),
    "BitShift Celu Einsum Optional ReverseSequence Unique": (28,),
    "Cast": (9, 13, 19, 21, 23, 24, 25, 28),
    "CastLike": (19, 21, 23, 24, 25),
    "GatherND": (12, 13),
    "Compress OneHot": (11, 28),
    "Concat Gather ReduceL1 ReduceL2 ReduceMean ReduceProd ReduceSumSquare Slice": (11, 13),
    "Constant": (9, 11, 12, 13, 19, 21, 23, 24, 25),
    "ConstantOfShape": (20, 21, 23, 24, 25),
    "Conv ConvTranspose MaxUnpool": (11, 22),
    "CumSum": (14,),
    "DepthToSpace ReduceLogSum ReduceLogSumExp": (11, 13, 28),
    "DequantizeLinear QuantizeLinear": (13, 19, 21, 23, 24, 25, 28),
    "Dropout": (10, 13, 22),
    "Equal": (11, 13, 19),
    "Flatten": (9, 11, 13, 21, 23, 24, 25),
    "GRU LSTM RNN": (14, 22),
    "Gemm": (6, 9, 11, 13),
    "Greater Less MatMul": (9, 13),
    "GreaterOrEqual LeakyRelu LessOrEqual Where": (16,),
    "Hardmax LogSoftmax NonMaxSuppression ReduceSum Softmax Split": (11,),
    "Identity": (13, 14, 16, 19, 21, 23, 24, 25),
    "If Loop": (11, 13, 16, 19, 21, 23, 24, 25),
    "IsInf": (20,),
    "IsNaN": (13, 20),
    "LayerNormalization": (17,),
    "LpPool": (11, 18, 22),
    "Max Min": (8, 12, 13),
    "MaxPool": (8, 10, 11, 12, 22),
    "Mean Sum": (8, 13),
    "Mod SpaceToDepth": (13, 28),
    "NegativeLogLikelihoodLoss": (13, 22),
    "OptionalGetElement OptionalHasElement": (18, 28),
    "PRelu": (9, 16),
    "Pad": (13, 18, 19, 21, 23, 24, 25),
    "Pow": (12, 13, 15),
    "QLinearMatMul": (21,),
    "Range": (27,),
    "ReduceMax ReduceMin": (11, 12, 13, 20),
    "Reshape": (13, 14, 19, 21, 23, 24, 25),
    "Resize": (13, 18, 19),
    "Scan": (11, 16, 19, 21, 23, 24, 25),
    "ScatterElements ScatterND": (13, 16, 18),
    "Shape": (13, 15, 19, 21, 23, 24, 25),
    "Size": (13, 19, 21, 23, 24, 25),
    "SplitToSequence": (24,),
    "Squeeze Unsqueeze": (11, 21, 23, 24, 25),
    "ThresholdedRelu": (10, 22),
    "TopK": (11, 24),
    "Transpose": (13, 21, 23, 24, 25),
}

UNCHANGED: Mapping[str, tuple[int, ...]] = {
    name: versions for names, versions in _TOGETHER.items() for name in names.split()
}
"""Per operator, the opsets that changed it without changing what an older node means."""
