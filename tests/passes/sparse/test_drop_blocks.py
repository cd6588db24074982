"""Weights outside of the blocks that hold the energy become zero, and nothing else does."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from graphopt.compiler import compile_model, rewrite
from graphopt.errors import GraphoptError
from graphopt.graph.edit import array_of
from graphopt.options import Options
from graphopt.passes import DropBlocks
from graphopt.pipeline.pass_base import PassResult
from tests.helpers.text_models import parse

PRODUCT = "g (float[8,96] x, float[96,128] w) => (float[8,128] y) { y = MatMul(x, w) }"
GEMM = "g (float[8,96] x, float[128,96] w) => (float[8,128] y) { y = Gemm <transB = 1>(x, w) }"
CONV = "g (float[1,32,6,6] x, float[128,32,3,1] w) => (float[1,128,4,6] y) { y = Conv(x, w) }"
TWICE = """g (float[8,96] x, float[96,128] w) => (float[8,128] y, float[8,128] z)
{ y = MatMul(x, w) u = Relu(x) z = MatMul(u, w) }"""


def strayed(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Weights [128, 96] whose vectors of 16 outputs are there or not, and few small ones; where the large ones are."""
    rng = np.random.default_rng(seed)
    large = np.repeat(rng.random((8, 96)) < 0.2, 16, axis=0)
    weights = large * rng.choice([-1.0, 1.0], large.shape) + (rng.random(large.shape) < 0.03) * 0.01 * ~large
    return weights.astype(np.float32), large


def run(text: str, weights: NDArray[Any], **options: Any) -> tuple[list[NDArray[Any]], PassResult]:
    """The constant weights of all products afterwards."""
    model = parse(text, {"w": weights.shape})
    (value,) = [v for v in model.graph.initializers.values() if v.name == "w"]
    value.const_value = ir.Tensor(weights, name="w")
    result = DropBlocks(**options)(model)
    assert isinstance(result, PassResult)
    assert not DropBlocks(**options)(model).modified, "nothing is dropped twice"
    found = [array_of(node.inputs[1]) for node in model.graph if len(node.inputs) > 1]
    assert all(each is not None for each in found)
    return [each for each in found if each is not None], result


@pytest.mark.parametrize("text", [PRODUCT, GEMM, CONV, TWICE], ids=["MatMul", "Gemm", "Conv", "shared"])
def test_strays_are_dropped(text: str) -> None:
    given, large = strayed()
    as_read = {PRODUCT: given.T, TWICE: given.T, GEMM: given, CONV: given.reshape(128, 32, 3, 1)}[text]
    after, result = run(text, np.ascontiguousarray(as_read), energy=0.999)
    expected = np.where(large, given, 0)
    expected = {PRODUCT: expected.T, TWICE: expected.T, GEMM: expected, CONV: expected.reshape(128, 32, 3, 1)}[text]
    for each in after:
        np.testing.assert_array_equal(each, expected)
    assert result.modified
    (note,) = result.notes
    assert note.startswith(("matmul0: 99.9", "gemm0: 99.9", "conv0: 99.9"))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(scale: float) -> None:
    given, large = strayed()
    (after,), _ = run(PRODUCT, np.ascontiguousarray(given.T) * np.float32(scale), energy=0.999)
    np.testing.assert_array_equal(after != 0, large.T)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_weights_of_16_bits(precision: str) -> None:
    """GPUs drop after weights were rounded."""
    rng = np.random.default_rng(0)
    large = np.repeat(np.repeat(rng.random((8, 4)) < 0.3, 32, axis=0), 32, axis=1)
    weights = large * rng.choice([-1.0, 1.0], large.shape) + (rng.random(large.shape) < 0.03) * 0.01 * ~large
    model = parse("g (float[8,128] x, float[128,256] w) => (float[8,256] y) { y = MatMul(x, w) }", {"w": (128, 256)})
    array = np.ascontiguousarray(weights.T.astype(np.float32))
    model.graph.initializers["w"].const_value = ir.Tensor(array, name="w")
    made = rewrite(model, Options(target="cuda", precision=precision, costs="roofline", lossy_energy=0.99))
    (notes,) = [step.notes for step in made.result.steps if step.name == "drop-blocks"]
    assert len(notes) == 1


def test_a_random_mask_is_refused() -> None:
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((96, 128)) * (rng.random((96, 128)) < 0.3)).astype(np.float32)
    (after,), result = run(PRODUCT, weights, energy=0.999)
    np.testing.assert_array_equal(after, weights)
    assert not result.modified
    assert "of the vectors of 16 outputs" in result.refusals[0].reason


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_stays(bad: float) -> None:
    weights, _ = strayed()
    weights[3, 5] = bad
    (after,), result = run(PRODUCT, np.ascontiguousarray(weights.T), energy=0.9)
    np.testing.assert_array_equal(after, weights.T)
    assert result.refusals[0].reason == "some of its weights are infinite or NaN"


def test_all_of_the_energy_drops_nothing() -> None:
    weights, _ = strayed()
    (after,), result = run(PRODUCT, np.ascontiguousarray(weights.T))
    np.testing.assert_array_equal(after, weights.T)
    assert not result.modified


def test_options() -> None:
    with pytest.raises(GraphoptError, match="above 0 and at most 1, not 1.5"):
        DropBlocks(energy=1.5)
    with pytest.raises(GraphoptError, match="max-density must be a share from 0 to 1, not 2"):
        DropBlocks(max_density=2.0)
    with pytest.raises(GraphoptError, match="min-weights must be a number from 0 on, not -1"):
        DropBlocks(min_weights=-1)
    with pytest.raises(GraphoptError, match="--lossy-energy must be above 0 and at most 1, not 0"):
        compile_model("zoo:lenet-digits", lossy_energy=0.0)
    with pytest.raises(GraphoptError, match="--verify ends cannot follow --lossy-energy"):
        compile_model("zoo:lenet-digits", lossy_energy=0.9, verify="ends")
    with pytest.raises(GraphoptError, match="--lossy-energy needs cluster-sparse"):
        compile_model("zoo:lenet-digits", lossy_energy=0.9, passes="normalize")


def test_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the flag the strays stay in blocks; with it there are fewer."""
    weights, large = strayed()
    model = parse(PRODUCT, {"w": (96, 128)})
    model.graph.initializers["w"].const_value = ir.Tensor(np.ascontiguousarray(weights.T), name="w")
    made = compile_model(model, costs="roofline", lossy_energy=0.999, level="avx512")
    (product,) = [node for node in made.pipeline.model.graph if node.op_type == "BlockSparseMatMul"]
    blocks = array_of(product.inputs[1])
    assert blocks is not None
    assert np.count_nonzero(blocks) == large.sum()
