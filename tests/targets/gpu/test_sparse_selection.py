"""What GPUs make of sparse weights: square blocks, chosen by estimates beside the dense kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.compiler import compile_model, rewrite
from graphopt.options import Options
from graphopt.runtime.devices.opencl import OpenClDevice
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal


def blocky(shape: tuple[int, ...], density: float, side: int = 32) -> np.ndarray:
    """Weights [inputs or outputs, others, ...] of which blocks of `side` x `side` hold something with that chance."""
    rng = np.random.default_rng(0)
    kept = rng.random((shape[0] // side, shape[1] // side, *shape[2:])) < density
    kept = np.repeat(np.repeat(kept, side, axis=0), side, axis=1)
    return np.asarray(rng.standard_normal(shape) * kept / np.sqrt(shape[1]), np.float32)


def model(text: str, weights: dict[str, np.ndarray]) -> ir.Model:
    found = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')
    for value in list(found.graph.inputs):
        if value.name in weights:
            value.const_value = ir.Tensor(weights[value.name], name=value.name)
            found.graph.inputs.remove(value)
            found.graph.register_initializer(value)
    for node in found.graph:
        node.name = f"node_{node.outputs[0].name}"
    return found


MLP = """g (float[64,256] x, float[256,512] w, float[512] b, float[512,256] v) => (float[64,256] y)
{ s = MatMul(x, w) t = Add(s, b) u = Relu(t) y = MatMul(u, v) }"""

CONVS = """g (float[1,64,14,14] x, float[128,64,3,3] w, float[128] b, float[64,128,1,1] v) => (float[1,64,14,14] y)
{ s = Conv<pads = [1,1,1,1]>(x, w, b) t = Relu(s) y = Conv(t, v) }"""


def weights(text: str, density: float) -> dict[str, np.ndarray]:
    if text == MLP:
        given = {"w": blocky((256, 512), density), "v": blocky((512, 256), density)}
        return {**given, "b": np.ones(512, np.float32)}
    given = {"w": blocky((128, 64, 3, 3), density), "v": blocky((64, 128, 1, 1), density)}
    return {**given, "b": np.ones(128, np.float32)}


@pytest.mark.parametrize("text", [MLP, CONVS], ids=["products", "convolutions"])
def test_blocks_are_multiplied(opencl: OpenClDevice, text: str) -> None:
    given = model(text, weights(text, 0.15))
    feeds = random_inputs(given, 0)
    expected = run_onnxruntime(given, feeds)
    compiled = compile_model(given, target="opencl", fallback=False)
    sparse = [node.op_type for node in compiled.pipeline.model.graph if node.op_type.startswith("BlockSparse")]
    assert len(sparse) == 2
    session = compiled.artifact.session()
    session.measure_arena(feeds)
    require_equal(expected, session.run(feeds), "on PoCL", {"float32": Tolerance(1e-4, 1e-4)})


@pytest.mark.parametrize("text", [MLP, CONVS], ids=["products", "convolutions"])
def test_dense_weights_stay_dense(text: str) -> None:
    """Half of the blocks: a GPU multiplies the others faster than it looks for those."""
    given = model(text, weights(text, 0.9))
    compiled = compile_model(given, target="opencl", fallback=False)
    assert not [node for node in compiled.pipeline.model.graph if node.op_type.startswith("BlockSparse")]


@pytest.mark.parametrize("text", [MLP, CONVS], ids=["products", "convolutions"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "tf32"])
def test_on_tensor_cores(precision: str, text: str) -> None:
    """The blocks become machine code for tensor cores, in the precision that was asked for."""
    options = Options(target="cuda", precision=precision, costs="roofline", fallback=False)
    made = rewrite(model(text, weights(text, 0.1)), options)
    graph = made.model.graph
    sparse = [node for node in graph if node.op_type.startswith("BlockSparse")]
    assert len(sparse) == 2
    backend: Any = made.target
    found = backend.lower(list(graph), list(graph.inputs), list(graph.outputs), made.model.opset_imports, "s_")
    assert not found.notes
    plans = [plan for plan in found.plans.values() if plan.algorithm == "product"]
    assert [plan.precision for plan in plans] == [f"{precision} mma"] * 2
