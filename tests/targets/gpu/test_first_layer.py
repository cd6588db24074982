"""Few planes gathered into one block, and weights along k, as tensor cores want them; here for the ordinary units."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.compiler import compile_model
from graphopt.program.program import NativeSegment
from graphopt.targets.gpu.converters import blocked


def model(planes: int) -> onnx.ModelProto:
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    first (float[2, {planes}, 15, 17] x) => (float[2, 40, 8, 9] y) <float[40, {planes}, 7, 7] w, float[40] b> {{
        c = Conv<strides = [2, 2], pads = [3, 3, 3, 3]>(x, w, b)
        y = Relu(c)
    }}
    """
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name, shape in (("w", (40, planes, 7, 7)), ("b", (40,))):
        made.graph.initializer.append(onnx.numpy_helper.from_array(rng.standard_normal(shape).astype("float32"), name))
    return made


@pytest.mark.parametrize(("planes", "gathered"), [(1, True), (3, True), (4, True), (5, False)])
def test_planes(opencl: Any, monkeypatch: pytest.MonkeyPatch, planes: int, gathered: bool) -> None:
    """Up to 16 bytes of channels; the program computes what ONNX Runtime does."""
    monkeypatch.setattr(blocked, "on_cores", lambda c, dtype: True)
    passes = "normalize,fuse,select-conv{algorithms=blocked},layout"
    compiled = compile_model(model(planes), target="opencl", passes=passes, verify="ends", costs="roofline")
    segments = [segment for stage in compiled.artifact.program.stages for segment in stage.segments]
    calls = [call.symbol for each in segments if isinstance(each, NativeSegment) for call in each.calls]
    assert any("gather" in symbol for symbol in calls) == gathered
    assert any(symbol.startswith("conv") for symbol in calls)
