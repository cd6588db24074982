"""Operations and parameters, against counts made by hand."""

import onnx
import onnx_ir as ir
import pytest

from graphopt.frontend.load import load
from graphopt.graph import analysis


def model(graph: str, opset: int = 20) -> ir.Model:
    return load(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]> {graph}')).model


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        # 2 * (inputs per result) * results, one more per result for a bias
        (
            "g (float[1,3,8,8] x, float[4,3,3,3] w, float[4] b) => (float[1,4,6,6] y) { y = Conv(x, w, b) }",
            144 * (2 * 27 + 1),
        ),
        ("g (float[1,4,8,8] x, float[4,1,3,3] w) => (float[1,4,6,6] y) { y = Conv<group = 4>(x, w) }", 144 * 18),
        ("g (float[1,3,4,4] x, float[3,5,2,2] w) => (float[1,5,5,5] y) { y = ConvTranspose(x, w) }", 48 * 2 * 20),
        ("g (float[2,3] x, float[5,3] w, float[5] b) => (float[2,5] y) { y = Gemm<transB = 1>(x, w, b) }", 10 * 7),
        ("g (float[3,2] x, float[3,5] w) => (float[2,5] y) { y = Gemm<transA = 1>(x, w) }", 60),
        ("g (float[7,2,3] x, float[3,5] w) => (float[7,2,5] y) { y = MatMul(x, w) }", 7 * 2 * 5 * 3 * 2),
        ('g (float[2,3] x, float[3,5] w) => (float[2,5] y) { y = Einsum<equation = "ij,jk->ik">(x, w) }', 60),
        ("g (float[1,3,8,8] x) => (float[1,3,4,4] y) { y = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x) }", 192),
        ("g (float[1,3,8,8] x) => (float[1,3,1,1] y) { y = GlobalAveragePool(x) }", 192),
        ("g (float[1,6,2,2] x) => (float[1,6,2,2] y) { y = LRN<size = 5>(x) }", 24 * 13),
        ("g (float[4,5] x) => (float[4,1] y) { y = ReduceSum(x) }", 20),
        ("g (float[4,5] x) => (float[4,5] y) { y = Relu(x) }", 20),
        ("g (float[4,5] x, float[5] z) => (float[4,5] y) { y = Add(x, z) }", 20),
        ("g (float[4,5] x) => (float[4,5] y) { y = Sum(x, x, x) }", 40),
        ("g (float[4,5] x) => (float[5,4] y) { y = Transpose(x) }", 0),
        ("g (float[4,5] x) => (int64[2,N] y) { y = NonZero(x) }", 0),
        (
            """g (float[6,2,3] x, float[1,16,3] w, float[1,16,4] r) => (float[6,1,2,4] y) {
                y = LSTM<hidden_size = 4>(x, w, r) }""",
            12 * (2 * (48 + 64) + 4 * 16),
        ),
    ],
)
def test_operations(graph: str, expected: int) -> None:
    loaded = model(graph)
    assert analysis.flops(loaded) == expected
    assert sum(analysis.node_flops(node) for node in loaded.graph) == expected


def test_attention_counts_two_products_and_a_softmax() -> None:
    q = ir.Value(name="q", shape=ir.Shape([2, 4, 6, 8]))
    k = ir.Value(name="k", shape=ir.Shape([2, 4, 10, 8]))
    node = ir.Node("graphopt", "Attention", [q, k, k], outputs=[ir.Value(name="y", shape=ir.Shape([2, 4, 6, 8]))])
    assert analysis.node_flops(node) == 2 * 4 * 6 * 10 * (4 * 8 + 6)


@pytest.mark.parametrize(
    ("kind", "weight", "result", "expected"),
    [
        ("Conv2dBlocked", [2, 1, 3, 3, 16, 16], [1, 2, 8, 8, 16], 2048 * (2 * 9 * 16 + 1)),
        ("DepthwiseConv2dBlocked", [2, 3, 3, 16], [1, 2, 8, 8, 16], 2048 * 19),
        ("Conv2dWinograd", [36, 2, 1, 16, 16], [1, 2, 8, 8, 16], 2048 * (2 * 9 * 16 + 1)),
        ("Conv2dWinogradAxis", [8, 2, 1, 16, 16], [1, 2, 1, 64, 16], 2048 * (2 * 5 * 16 + 1)),
        ("Conv2dIm2col", [32, 144], [1, 32, 8, 8], 2048 * (2 * 144 + 1)),
    ],
)
def test_our_convolutions_cost_what_they_replace(
    kind: str, weight: list[int], result: list[int], expected: int
) -> None:
    inputs = [ir.Value(name="x"), ir.Value(name="w", shape=ir.Shape(weight)), ir.Value(name="b")]
    attributes = [ir.AttrInt64("m", 4)] if kind == "Conv2dWinogradAxis" else []
    node = ir.Node("graphopt", kind, inputs, attributes, outputs=[ir.Value(name="y", shape=ir.Shape(result))])
    assert analysis.node_flops(node) == expected


def test_parameters_and_bytes_leave_out_shapes() -> None:
    loaded = model(
        """g (float[1,4] x) => (float[2,2] y) <float[4] w = {1, 2, 3, 4}, int64[2] s = {2, 2}> {
            a = Add(x, w) y = Reshape(a, s) }"""
    )
    assert analysis.parameters(loaded) == 4
    assert analysis.weight_bytes(loaded) == 32
    add, reshape = loaded.graph
    assert analysis.elements(add.outputs[0]) == 4
    assert analysis.nbytes(add.outputs[0]) == 16
    assert analysis.nbytes(None) == 0
    assert list(analysis.consumers(add)) == [reshape]
    assert list(analysis.producers(reshape)) == [add]
