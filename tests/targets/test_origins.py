"""A kernel call names every ONNX node it computes, also where TVM merged equal functions or grouped several nodes."""

from __future__ import annotations

import onnx.parser

import graphopt

MODEL = """
    <ir_version: 10, opset_import: ["": 20]>
    g (float[4, 64] x, float[4, 64] residual) => (float[4, 32] y, float[4, 64] z)
    <float[64, 64] first = {FIRST}, float[64, 64] second = {SECOND}, float[64, 32] third = {THIRD}>
    {
        [multiply_a] a = MatMul(x, first)
        [rectify_a] ra = Relu(a)
        [multiply_b] b = MatMul(ra, second)
        [add] s = Add(b, residual)
        [rectify_b] z = Relu(s)
        [multiply_c] y = MatMul(z, third)
    }
"""


def test_fused_calls_name_their_nodes() -> None:
    text = MODEL
    for name, count in (("FIRST", 64 * 64), ("SECOND", 64 * 64), ("THIRD", 64 * 32)):
        text = text.replace(name, ", ".join(f"{(i * 7 % 13) / 64:.4f}" for i in range(count)))
    program = graphopt.compile(onnx.parser.parse_model(text)).program
    origins = [call.origin for call in program.stages[0].segments[0].calls]
    assert origins == [("multiply_a", "rectify_a"), ("multiply_b", "add", "rectify_b"), ("multiply_c",)]


def test_equal_kernels_keep_their_own_nodes() -> None:
    text = """
        <ir_version: 10, opset_import: ["": 20]>
        g (float[3, 50] x) => (float[3, 50] y)
        {
            [softmax_a] a = Softmax(x)
            [softmax_b] b = Softmax(a)
            [softmax_c] y = Softmax(b)
        }
    """
    calls = graphopt.compile(onnx.parser.parse_model(text)).program.stages[0].segments[0].calls
    assert len({call.symbol for call in calls}) == 1
    assert [call.origin for call in calls] == [("softmax_a",), ("softmax_b",), ("softmax_c",)]
