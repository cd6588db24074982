"""One layer each, as models: the convolutions of a residual network's four sizes, and a square matrix product.

A whole network hides which kernel is slow; these are timed and checked alone.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

CONVOLUTIONS = {
    "conv3x3-64x56": (64, 56),
    "conv3x3-128x28": (128, 28),
    "conv3x3-256x14": (256, 14),
    "conv3x3-512x7": (512, 7),
}
"""Name -> channels and width: the 3 x 3 convolutions of ResNet-18 and -34 (He et al. 2015, arXiv:1512.03385)."""
PRODUCTS = {"gemm-1024": 1024, "gemm-4096": 4096, "gemm-4096-fp16": 4096}
"""Name -> rows, columns and inner size; those called fp16 have float16 everywhere."""


def layer(name: str, seed: int) -> ir.Model:
    """The model of that name: input `x`, output `y`, the second operand constant and drawn from `seed`.

    conv3x3-CxW: x[1, C, W, W] -> y[1, C, W, W] = Conv(x, w[C, C, 3, 3]), stride 1, padding 1.
    gemm-N: x[N, N] -> y[N, N] = MatMul(x, w[N, N]); gemm-N-fp16 the same in float16. The others are float32.
    """
    generator = np.random.default_rng(seed)
    if name in PRODUCTS:
        size = PRODUCTS[name]
        half = name.endswith("-fp16")
        return _model(name, "MatMul", (size, size), (size, size), size, {}, generator, half)
    channels, width = CONVOLUTIONS[name]
    attributes = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "strides": [1, 1]}
    fan_in = channels * 9
    return _model(name, "Conv", (1, channels, width, width), (channels, channels, 3, 3), fan_in, attributes, generator)


def _model(
    name: str,
    op_type: str,
    shape: tuple[int, ...],
    weights: tuple[int, ...],
    fan_in: int,
    attributes: dict[str, list[int]],
    generator: np.random.Generator,
    half: bool = False,
) -> ir.Model:
    # Uniform, as in `weights`: exact on every machine; the variance 1 / fan-in keeps the scale of x.
    bound = np.float32(math.sqrt(3.0 / fan_in))
    drawn = generator.random(weights, dtype=np.float32)
    drawn *= 2 * bound
    drawn -= bound
    if half:
        drawn = drawn.astype(np.float16)
    kind = ir.TensorType(ir.DataType.FLOAT16 if half else ir.DataType.FLOAT)
    x, y = (ir.Value(name=label, shape=ir.Shape(shape), type=kind) for label in "xy")
    w = ir.Value(name="w", shape=ir.Shape(weights), type=kind, const_value=ir.Tensor(drawn, name="w"))
    node = ir.node(op_type, [x, w], attributes, outputs=[y], name=op_type.lower())
    graph = ir.Graph([x], [y], nodes=[node], initializers=[w], opset_imports={"": 20}, name=name)
    return ir.Model(graph, ir_version=11)
