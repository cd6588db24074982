"""The changes of operators of the domain ai.onnx that need a conversion rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from graphopt.frontend.opsets import attributes, broadcasts, flatten, normalization, resize, runtime, scan
from graphopt.frontend.opsets.site import Site

Rule = Callable[[Site], None]

_IN_PLACE = attributes.removed("consumed_inputs")
_SEQUENCE = attributes.removed("output_sequence")
_BROADCAST: Mapping[int, Rule] = {6: _IN_PLACE, 7: broadcasts.binary}
_AXES_13: Mapping[int, Rule] = {13: attributes.integers("axes", 1)}
_REDUCE_13: Mapping[int, Rule] = {13: attributes.integers("axes", 1, empty_is_all=True)}
_REDUCE_18: Mapping[int, Rule] = {18: attributes.integers("axes", 1, empty_is_all=True)}
_FLATTENED: Mapping[int, Rule] = {13: flatten.flattened}

RULES: Mapping[str, Mapping[int, Rule]] = {
    "Abs": {6: _IN_PLACE},
    "Add": _BROADCAST,
    "Affine": {10: runtime.affine},
    "And": {7: broadcasts.binary},
    "BatchNormalization": {
        6: _IN_PLACE, 7: normalization.batch_test, 9: normalization.batch_spatial, 14: normalization.batch_outputs
    },
    "Cast": {6: attributes.cast},
    "Ceil": {6: _IN_PLACE},
    "Clip": {6: attributes.clip_bounds, 11: attributes.clip, 12: attributes.clip_halves},
    "Concat": {4: attributes.default("axis", 1)},
    "Crop": {10: runtime.crop},
    "DFT": {20: attributes.dft},
    "Div": _BROADCAST,
    "Dropout": {6: _IN_PLACE, 7: attributes.removed("is_test"), 12: attributes.dropout},
    "DynamicSlice": {10: runtime.dynamic_slice},
    "Elu": {6: _IN_PLACE},
    "Equal": {7: broadcasts.binary},
    "Exp": {6: _IN_PLACE},
    "Floor": {6: _IN_PLACE},
    "GRU": {3: attributes.direction, 7: _SEQUENCE},
    "Gemm": {7: attributes.removed("broadcast")},
    "GlobalLpPool": {2: attributes.whole_p},
    "Greater": {7: broadcasts.binary},
    "GridSample": {20: attributes.grid_sample},
    "GroupNormalization": {21: normalization.group},
    "HardSigmoid": {6: _IN_PLACE},
    "Hardmax": _FLATTENED,
    "ImageScaler": {10: runtime.image_scaler},
    "InstanceNormalization": {6: _IN_PLACE},
    "LSTM": {7: _SEQUENCE},
    "LeakyRelu": {6: _IN_PLACE},
    "Less": {7: broadcasts.binary},
    "Log": {6: _IN_PLACE},
    "LogSoftmax": _FLATTENED,
    "LpPool": {2: attributes.whole_p},
    "Max": {6: _IN_PLACE},
    "Mean": {6: _IN_PLACE},
    "MeanVarianceNormalization": {9: normalization.mean_variance},
    "Min": {6: _IN_PLACE},
    "Mul": _BROADCAST,
    "Neg": {6: _IN_PLACE},
    "Or": {7: broadcasts.binary},
    "PRelu": {6: _IN_PLACE, 7: broadcasts.prelu},
    "Pad": {2: attributes.pad_1, 11: attributes.pad},
    "ParametricSoftplus": {10: runtime.parametric_softplus},
    "Pow": {7: broadcasts.binary},
    "RNN": {7: _SEQUENCE},
    "Reciprocal": {6: _IN_PLACE},
    "ReduceL1": _REDUCE_18,
    "ReduceL2": _REDUCE_18,
    "ReduceLogSum": _REDUCE_18,
    "ReduceLogSumExp": _REDUCE_18,
    "ReduceMax": _REDUCE_18,
    "ReduceMean": _REDUCE_18,
    "ReduceMin": _REDUCE_18,
    "ReduceProd": _REDUCE_18,
    "ReduceSum": _REDUCE_13,
    "ReduceSumSquare": _REDUCE_18,
    "Relu": {6: _IN_PLACE},
    "Reshape": {5: attributes.reshape},
    "Resize": {11: resize.asymmetric},
    "RoiAlign": {16: attributes.default("coordinate_transformation_mode", "output_half_pixel")},
    "Scale": {10: runtime.scale},
    "ScaledTanh": {10: runtime.scaled_tanh},
    "Scan": {9: scan.batched},
    "Scatter": {11: attributes.scatter},
    "Selu": {6: attributes.selu},
    "Sigmoid": {6: _IN_PLACE},
    "SimplifiedLayerNormalization": {2**31 - 1: normalization.simplified},
    "Slice": {10: attributes.slice_},
    "Softmax": _FLATTENED,
    "Split": {2: attributes.default("axis", 0), 13: attributes.integers("split", 1), 18: attributes.split},
    "Sqrt": {6: _IN_PLACE},
    "Squeeze": _AXES_13,
    "Sub": _BROADCAST,
    "Sum": {6: _IN_PLACE},
    "Tanh": {6: _IN_PLACE},
    "Tile": {6: attributes.tile},
    "TopK": {10: attributes.top_k},
    "Unsqueeze": _AXES_13,
    "Upsample": {7: resize.upsample_1, 9: resize.upsample_7, 10: resize.asymmetric},
    "Xor": {7: broadcasts.binary},
}  # fmt: skip
"""Per operator: the opset that changed it, and the rule. A rule that replaces the node ends its conversion."""

ALWAYS = frozenset({"GroupNormalization", "SimplifiedLayerNormalization"})
"""Operators whose rule is for a later opset than the model's, or for none, and is needed now."""
