"""Sparse layers: supports by output, and estimates that depend on the pattern."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.cost.roofline import Machine
from graphopt.passes.sparse.layers import grouped, read_layer
from tests.helpers.text_models import parse

SHAPES = {"w": (64, 8, 3, 3), "u": (64, 48), "v": (32, 48)}


@pytest.fixture
def model() -> ir.Model:
    return parse(
        """g (float[2,8,4,4] x, float[64,8,3,3] w, float[64,48] u, float[32,48] v) => (float[2,32] y)
        { c = Conv(x, w) p = GlobalAveragePool(c) f = Flatten(p) m = MatMul(f, u) y = Gemm <transB = 1>(m, v) }""",
        SHAPES,
    )


def test_supports_are_by_output(model: ir.Model) -> None:
    layers = [layer for node in model.graph if (layer := read_layer(node)) is not None]
    assert [layer.support.shape for layer in layers] == [(64, 72), (48, 64), (32, 48)]
    assert [(layer.rows, layer.taps) for layer in layers] == [(8, 9), (2, 1), (2, 1)]
    assert [layer.squares(Machine()) for layer in layers] == [(), (16, 32), (16,)], "on a CPU convolutions have none"
    gpu = Machine(sparse_blocks=((32, 32), (64, 64)), sparse_sides=(32, 64))
    assert [layer.squares(gpu) for layer in layers] == [(), (32, 64), ()]


def test_channels_of_a_convolution_move_with_their_taps(model: ir.Model) -> None:
    layer = read_layer(model.graph.node(0))
    assert layer is not None
    layer.support = np.arange(64 * 72).reshape(64, 72)
    moved = layer.permuted(np.arange(64)[::-1], np.arange(8)[::-1])
    np.testing.assert_array_equal(moved.reshape(64, 8, 9), layer.support.reshape(64, 8, 9)[::-1, ::-1])


def test_squares_of_a_convolution_are_channels_at_one_tap() -> None:
    """32 channels of one tap are a block: the others at that tap, and other taps, are not looked at."""
    model = parse(
        "g (float[1,64,4,4] x, float[32,64,3,3] w) => (float[1,32,2,2] y) { y = Conv(x, w) }", {"w": (32, 64, 3, 3)}
    )
    layer = read_layer(model.graph.node(0))
    assert layer is not None
    gpu = Machine(sparse_blocks=((32, 32),), sparse_sides=(32,))
    support = np.zeros((32, 64, 9), bool)
    support[:, :32, 4] = True
    one = layer.sparse_seconds(gpu, support.reshape(32, -1))
    support[:, 32:, 7] = True
    two = layer.sparse_seconds(gpu, support.reshape(32, -1))
    support[3, 5, 8] = True
    assert one < two < layer.sparse_seconds(gpu, support.reshape(32, -1))


def test_groups_may_end_early() -> None:
    np.testing.assert_array_equal(grouped(np.eye(3, dtype=bool), 2), [[True, True, False], [False, False, True]])


def test_a_pattern_in_blocks_takes_less_time(model: ir.Model) -> None:
    layer = read_layer(model.graph.node(4))
    assert layer is not None
    generator = np.random.default_rng(0)
    layer.rows, layer.support = 128, np.repeat(generator.random((2, 48)) < 0.2, 16, axis=0)
    blocks, dense = layer.sparse_seconds(Machine(), layer.support), layer.dense_seconds(Machine())
    assert blocks < layer.sparse_seconds(Machine(), layer.support[generator.permutation(32)])
    assert blocks < dense


@pytest.mark.parametrize("node", ["y = Conv <group = 2>(x, w)", "y = Mul(x, w)", "y = MatMul(w, x)"])
def test_other_nodes_are_no_layers(node: str) -> None:
    model = parse(f"g (float[1,4,4,4] x, float[4,2,4,4] w) => (float[1,4,1,1] y) {{ {node} }}", {"w": (4, 2, 4, 4)})
    assert read_layer(model.graph.node(0)) is None
