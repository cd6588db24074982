"""Float64 results of a layer, and the error of a float32 result against them.

ONNX Runtime has no float64 convolution, so convolutions and matrix products are written with numpy. Summing in float64
has an error of about 1e-16 of each term, nine digits below that of float32: the measured error is the float32 one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def float64(file: Path, feeds: Mapping[str, Any]) -> dict[str, Doubles] | None:
    """The outputs of the model `file` in float64, by name; None where an operator is not implemented here."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    values = {tensor.name: numpy_helper.to_array(tensor).astype(np.float64) for tensor in graph.initializer}
    values |= {name: np.asarray(array, np.float64) for name, array in feeds.items()}
    for node in graph.node:
        operands = [values.get(name) for name in node.input]
        attributes = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        result = evaluate(node.op_type, attributes, operands)
        if result is None:
            return None
        values[node.output[0]] = result
    return {output.name: values[output.name] for output in graph.output}


def evaluate(op_type: str, attributes: Mapping[str, Any], operands: Sequence[Doubles | None]) -> Doubles | None:
    """The result of one ONNX operator in float64; None where it, or one of its attributes, is not implemented here.

    Args:
        operands: in the order of its inputs; an omitted input may be None, or missing at the end.
    """
    a, b, c = (*operands, None, None, None)[:3]
    if a is None or b is None:
        return None
    if op_type == "MatMul":
        return np.asarray(a @ b)
    if op_type == "Gemm":
        product = (a.T if attributes.get("transA", 0) else a) @ (b.T if attributes.get("transB", 0) else b)
        scaled = product * attributes.get("alpha", 1.0)
        return np.asarray(scaled if c is None else scaled + c * attributes.get("beta", 1.0))
    if op_type != "Conv" or attributes.get("auto_pad", "NOTSET") not in ("NOTSET", b"NOTSET"):
        return None
    rank = b.ndim - 2
    return conv(
        a,
        b,
        attributes.get("strides", (1,) * rank),
        attributes.get("pads", (0,) * (2 * rank)),
        attributes.get("dilations", (1,) * rank),
        attributes.get("group", 1),
        c,
    )


def conv(
    x: Doubles,
    w: Doubles,
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int] | None = None,
    group: int = 1,
    bias: Doubles | None = None,
) -> Doubles:
    """x[N, C, H, W] with w[O, C / group, kh, kw] -> [N, O, OH, OW]; also for other numbers of spatial axes.

    Args:
        pads: the pads before each axis, then those after: top, left, bottom, right.
        bias: [O], or None for zeros.
    """
    taps, rank = w.shape[2:], w.ndim - 2
    dilations = dilations or (1,) * rank
    padded = np.pad(x, ((0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)))
    extents = [
        (size - (tap - 1) * dilation - 1) // stride + 1
        for size, tap, dilation, stride in zip(padded.shape[2:], taps, dilations, strides, strict=True)
    ]
    matrices = w.reshape(group, w.shape[0] // group, w.shape[1], *taps)
    y = np.zeros((len(x), group, matrices.shape[1], math.prod(extents)))
    for tap in np.ndindex(*taps):  # the contribution of one weight of the window, all channels at once
        read: tuple[Any, ...] = tuple(
            slice(at * dilation, at * dilation + (extent - 1) * stride + 1, stride)
            for at, dilation, extent, stride in zip(tap, dilations, extents, strides, strict=True)
        )
        here: tuple[Any, ...] = (..., *tap)
        y += matrices[here] @ padded[(..., *read)].reshape(len(x), group, w.shape[1], -1)
    if bias is not None:
        y += bias.reshape(group, -1, 1)
    return y.reshape(len(x), w.shape[0], *extents)


def relative_error(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> float:
    """Mean absolute error over mean absolute value, over the elements of all outputs."""
    errors = sum(float(np.abs(np.asarray(actual[name], np.float64) - value).sum()) for name, value in expected.items())
    return errors / sum(float(np.abs(value).sum()) for value in expected.values())
