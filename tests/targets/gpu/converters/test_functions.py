"""Functions of single elements on GPUs: Gelu joins the product before it, and calls what the hardware has."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest

from graphopt.compiler import compile_model
from graphopt.program.program import NativeSegment
from graphopt.targets.gpu import target


@pytest.mark.parametrize("mode", ["none", "tanh"])
def test_gelu_behind_a_product(opencl: Any, mode: str) -> None:
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 20]>
        g (float[9, 32] x) => (float[9, 48] y) {{ p = MatMul(x, w)  y = Gelu<approximate = "{mode}">(p) }}
        """
    )
    weight = np.random.default_rng(0).standard_normal((32, 48)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    compiled = compile_model(model, target="opencl", verify="ends")
    segments = [segment for stage in compiled.artifact.program.stages for segment in stage.segments]
    calls = [call.symbol for each in segments if isinstance(each, NativeSegment) for call in each.calls]
    assert [symbol.rsplit("_", 1)[0] for symbol in calls] == ["matmul_gelu"]
    assert compiled.artifact.manifest["kernels"][calls[0]]["algorithm"] == "product"


@pytest.mark.parametrize(("mode", "function"), [("none", "erff("), ("tanh", "tanhf(")])
def test_gelu_of_halves_in_single_precision(lab: Any, mode: str, function: str) -> None:
    feeds = {"x": np.linspace(-8, 8, 600, dtype=np.float16)}
    model = lab.model(f'y = Gelu<approximate = "{mode}">(x)', feeds)
    graph = model.graph
    found = target.CudaTarget("sm_90").lower(
        list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_"
    )
    (made,) = found.functions.values()
    assert function in made.source
