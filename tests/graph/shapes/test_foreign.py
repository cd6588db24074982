"""Shapes behind operators that onnx does not know, and of those that ONNX Runtime computes otherwise than onnx."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.frontend import load as frontend
from graphopt.verify.oracle import run_onnxruntime

TYPES = {"float32": "float", "int32": "int32", "int64": "int64", "uint8": "uint8", "int8": "int8"}


def numbers(*shape: int, dtype: str = "float32") -> Any:
    return (np.random.default_rng([7, *shape]).uniform(0, 9, shape)).astype(dtype)


def load(body: str, feeds: dict[str, Any], constants: dict[str, Any], opset: int = 20) -> ir.Model:
    """A loaded model whose outputs are the values whose names begin with y, of which nothing is declared."""
    inputs = ", ".join(
        f"{TYPES[str(array.dtype)]}[{','.join(map(str, array.shape))}] {name}" for name, array in feeds.items()
    )
    graph = onnx.parser.parse_graph(f"g ({inputs}) => () {{ {body} }}")
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
    graph.output.extend(onnx.ValueInfoProto(name=o) for node in graph.node for o in node.output if o.startswith("y"))
    opsets = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
    return frontend.load(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)).model


def check(body: str, feeds: dict[str, Any], constants: dict[str, Any], opset: int = 20) -> None:
    """Every output has the type that it has in ONNX Runtime."""
    model = load(body, feeds, constants, opset)
    results = run_onnxruntime(model, feeds)
    assert results
    for name, array in results.items():
        value = next(value for value in model.graph.outputs if value.name == name)
        assert value.shape is not None, name
        assert (value.dtype, tuple(value.shape)) == (ir.DataType.from_numpy(array.dtype), array.shape), name


def test_quantized_operators() -> None:
    feeds = {"a": numbers(2, 3, 4), "u": numbers(2, 3, 4, dtype="uint8"), "v": numbers(1, 3, 1, dtype="uint8"),
             "i": numbers(1, 3, 6, 6, dtype="uint8"), "m": numbers(3, 4, dtype="uint8")}  # fmt: skip
    constants = {"s": np.float32(0.1), "z": np.uint8(3), "w": numbers(4, 5, dtype="int8"), "k": np.int8(0),
                 "g": numbers(4, 12, dtype="int8"), "b": numbers(12), "x": numbers(2, 2, 5)}  # fmt: skip
    check(
        """
        y0 = com.microsoft.QLinearAdd(u, s, z, v, s, z, s, z)
        y1 = com.microsoft.QLinearMul(u, s, z, v, s, z, s, z)
        y2 = com.microsoft.QLinearSigmoid(u, s, z, s, z)
        y3 = com.microsoft.QLinearLeakyRelu(u, s, z, s, z)
        y4 = com.microsoft.QLinearConcat<axis = 1>(s, z, u, s, z, u, s, z)
        y5 = com.microsoft.QLinearGlobalAveragePool<channels_last = 0>(i, s, z, s, z)
        y6 = com.microsoft.QLinearAveragePool<kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1>(i, s, z, s, z)
        y7 = com.microsoft.DynamicQuantizeMatMul(a, w, s, k)
        y8 = com.microsoft.MatMulIntegerToFloat(u, w, s, s, z, k)
        y9 = com.microsoft.QGemm(m, s, z, w, s, k, "", s, z)
        ya = com.microsoft.QAttention<num_heads = 2>(u, g, b, s, s, "", z, k)
        yb = com.microsoft.QLinearSoftmax<axis = -1, opset = 13>(u, s, z, s, z)
        """, feeds, constants,
    )  # fmt: skip


def test_recurrent_layers_and_packed_weights() -> None:
    feeds = {"x": numbers(4, 2, 3), "a": numbers(2, 3, 32)}
    constants = {
        "w": numbers(1, 3, 20, dtype="int8"), "r": numbers(1, 5, 20, dtype="int8"), "s": np.full(1, 0.1, np.float32),
        "z": np.zeros(1, np.int8), "p": numbers(6, 1, 16, dtype="uint8"), "q": numbers(6),
    }  # fmt: skip
    check(
        """
        y0, y1, y2 = com.microsoft.DynamicQuantizeLSTM<hidden_size = 5>(x, w, r, "", "", "", "", "", s, z, s, z)
        y3 = com.microsoft.MatMulNBits<K = 32, N = 6, bits = 4, block_size = 32>(a, p, q)
        """, feeds, constants,
    )  # fmt: skip


def test_inference_goes_on_behind_them() -> None:
    """Through extents that are computed from the shape, ten times in a row."""
    step = """
        f{0} = com.microsoft.FastGelu(x{0})  s{0} = Shape(f{0})  h{0} = Gather(s{0}, zero)
        c{0} = Concat<axis = 0>(h{0}, rest)  x{1} = Reshape(f{0}, c{0})
    """
    body = "\n".join(step.format(i, i + 1) for i in range(10)) + "\ny = Relu(x10)"
    model = load(body, {"x0": numbers(2, 3, 4)}, {"zero": np.array([0]), "rest": np.array([-1])})
    assert tuple(model.graph.outputs[0].shape or ()) == (2, 12)
    assert sorted({node.op_type for node in model.graph}) == ["FastGelu", "Relu", "Reshape"]


@pytest.mark.parametrize("opset", [12, 19, 22])
def test_extents_of_windows_are_those_of_onnx_runtime(opset: int) -> None:
    """And what follows them is inferred from those."""
    feeds = {"x": numbers(1, 2, 10, 13)}
    nodes = [
        f"{name} = {kind} <kernel_shape = [3, 3], strides = [{stride}, {stride}], {pads}, ceil_mode = 1> (x)"
        f" y{name} = Concat<axis = 2>({name}, {name})"
        for kind in ("MaxPool", "AveragePool")
        for stride in (2, 3)
        for pads, name in (("pads = [1, 1, 1, 1]", f"a{kind}{stride}"), ("pads = [0, 0, 1, 2]", f"b{kind}{stride}"))
    ]
    nodes.append('m = MaxPool <kernel_shape = [3, 3], dilations = [2, 2], auto_pad = "SAME_UPPER"> (x) ym = Relu(m)')
    check("\n".join(nodes), feeds, {}, opset)


def test_other_extents_than_onnx_has() -> None:
    feeds = {"x": numbers(1, 2, 10, 7)}
    constants = {"s": np.array([1, 1, 1.3, 0.9], np.float32), "w": numbers(2, 3, 3, 3)}
    check(
        """
        r = Resize <mode = "nearest"> (x, "", s)                                                        y0 = Relu(r)
        c = ConvTranspose <auto_pad = "SAME_LOWER", strides = [2, 2], output_padding = [1, 1]> (x, w)   y1 = Relu(c)
        """, feeds, constants, 18,
    )  # fmt: skip
