"""What a single layer computes in float64, and how far a float32 result is from it.

ONNX Runtime has no float64 convolution, so the few operators of the layer models are written out with numpy. Summing
in float64 has an error of about 1e-16 of each term, nine digits below that of float32: what is measured is the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]


def float64(file: Path, feeds: Mapping[str, Any]) -> dict[str, Doubles] | None:
    """The outputs of the model `file` in float64, by name; None where it has an operator that is not written here."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    if any(node.op_type not in ("Conv", "MatMul") for node in graph.node):
        return None
    values = {each.name: numpy_helper.to_array(each).astype(np.float64) for each in graph.initializer}
    values |= {name: np.asarray(array, np.float64) for name, array in feeds.items()}
    for node in graph.node:
        operands = [values[name] for name in node.input]
        if node.op_type == "MatMul":
            values[node.output[0]] = operands[0] @ operands[1]
            continue
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        plain = attributes.get("group", 1) == 1 and len(operands) == 2 and operands[1].ndim == 4
        if not plain or set(attributes.get("dilations", [1])) != {1} or "auto_pad" in attributes:
            return None
        values[node.output[0]] = conv(
            operands[0], operands[1], attributes.get("strides", (1, 1)), attributes.get("pads", (0, 0, 0, 0))
        )
    return {output.name: values[output.name] for output in graph.output}


def conv(x: Doubles, w: Doubles, strides: tuple[int, ...], pads: tuple[int, ...]) -> Doubles:
    """x[N, C, H, W] with w[O, C, kh, kw] -> [N, O, OH, OW]; pads are top, left, bottom, right."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, w.shape[2:], axis=(2, 3))
    return np.moveaxis(np.tensordot(windows[:, :, :: strides[0], :: strides[1]], w, ((1, 4, 5), (1, 2, 3))), -1, 1)


def relative_error(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> float:
    """Mean absolute error over mean absolute value, over the elements of all outputs."""
    errors = sum(float(np.abs(np.asarray(actual[name], np.float64) - value).sum()) for name, value in expected.items())
    return errors / sum(float(np.abs(value).sum()) for value in expected.values())
