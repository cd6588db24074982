"""How sparse layers are."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes.sparse.survey import survey
from graphopt.solve.clustering import expected_of_random
from tests.helpers.text_models import parse

TEXT = """g (float[1,8,4,4] x, float[64,8,1,1] w, float[64,40] u, float[10,40] v) => (float[1,10] y)
{ c = Conv(x, w) p = GlobalAveragePool(c) f = Flatten(p) m = MatMul(f, u) y = Gemm <transB = 1>(m, v) }"""
SHAPES = {"w": (64, 8, 1, 1), "u": (64, 40), "v": (10, 40)}


def model_of(masks: dict[str, np.ndarray]) -> ir.Model:
    model = parse(TEXT, SHAPES)
    for name, mask in masks.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor((value.const_value.numpy() * mask).astype(np.float32), name=name)
    return model


def test_dense_layers_are_left_out() -> None:
    assert list(survey(model_of({}), 16)) == []


def test_the_shares_of_a_convolution_and_a_product() -> None:
    generator = np.random.default_rng(0)
    groups = np.repeat(generator.random((4, 8)) < 0.3, 16, axis=0)
    shuffled = groups[generator.permutation(64)].reshape(64, 8, 1, 1)
    rows = np.zeros((64, 40))
    rows[::2] = 1
    conv, product = survey(model_of({"w": shuffled, "u": rows}), 16)
    assert (conv.operator, conv.outputs, conv.inputs) == ("Conv", 64, 8)
    assert conv.clustered == conv.bound == pytest.approx(groups.mean())
    assert conv.given > conv.clustered
    assert conv.random == expected_of_random(conv.density, 16)
    assert (product.operator, product.outputs, product.inputs) == ("MatMul", 40, 64)
    assert product.given == product.clustered == 0.5
    assert product.before.shape == (40, 64)
