"""Convolutions whose weights are sparse enter the selection with one more algorithm."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.passes import SelectConv
from graphopt.pipeline.pass_base import PassResult
from graphopt.verify.oracle import random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import listing, parse

TEXT = """g (float[1,32,14,14] x, float[64,32,3,3] w, float[64] b) => (float[1,64,14,14] y)
{ y = Conv <pads = [1, 1, 1, 1]>(x, w, b) }"""


def rewritten(density: float) -> tuple[str, PassResult]:
    model = parse(TEXT, {"w": (64, 32, 3, 3), "b": (64,)})
    value = model.graph.initializers["w"]
    kept = np.repeat(np.random.default_rng(0).random((4, 32, 3, 3)) < density, 16, axis=0)
    value.const_value = ir.Tensor((value.const_value.numpy() * kept).astype(np.float32), name="w")
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(model, feeds)
    result = SelectConv()(model)
    require_equal(expected, run_onnxruntime(model, feeds), "after the pass")
    return listing(model), result


def test_sparse_weights_run_as_blocks() -> None:
    after, result = rewritten(0.05)
    assert "BlockSparseConv(x.blocked" in after
    assert "kernel_shape=[3, 3], outputs=[64]" in after
    assert result.choices[0].algorithm == "sparse"


@pytest.mark.parametrize("density", [0.55, 1.0])
def test_dense_weights_do_not(density: float) -> None:
    after, result = rewritten(density)
    assert "BlockSparseConv" not in after
    (sparse,) = [other for other in result.choices[0].alternatives if other.algorithm == "sparse"]
    if density == 1.0:
        assert sparse.reason == "100% of its vectors of 16 outputs hold a weight other than zero"
        assert sparse.seconds is None
    else:
        assert sparse.reason == "slower"
