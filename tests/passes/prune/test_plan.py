"""Which layers a recipe means, and what it cannot mean."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import GraphoptError
from graphopt.graph.edit import dims
from graphopt.passes import Prune
from graphopt.passes.prune.granularity import Granularity
from graphopt.passes.prune.plan import Recipe
from graphopt.passes.prune.prune import PrunedLayer, prune
from graphopt.pipeline.pipeline import Pipeline
from tests.helpers.text_models import parse

TEXT = (
    "g (float[4,8] x, float[8,32] w, float[32,12] v) => (float[4,12] y) "
    "{ t = MatMul(x, w) r = Relu(t) y = MatMul(r, v) }"
)
SHAPES = {"w": (8, 32), "v": (32, 12)}


def run(granularity: str = "element", sparsity: float | None = 0.5, **more: Any) -> list[PrunedLayer]:
    return prune(parse(TEXT, SHAPES), Recipe(Granularity.parse(granularity), sparsity, **more), dims)


def test_every_layer_or_those_that_are_named() -> None:
    assert [layer.reached for layer in run()] == [0.5, 0.5]
    assert [layer.reached for layer in run(layers={"matmul2": 0.75})] == [0.5, 0.75]
    assert [layer.reached for layer in run(sparsity=None, layers={"v": 0.25})] == [0, 0.25]
    assert [layer.reached for layer in run(skip=("matmul2",))] == [0.5, 0]
    assert [layer.reached for layer in run(skip=("*2",))] == [0.5, 0]
    assert [layer.energy for layer in run(sparsity=0.0)] == [1, 1]


def test_a_layer_may_be_called_as_the_weights_of_another() -> None:
    model = parse(TEXT, SHAPES)
    model.graph.node(2).name = "w"
    layers = prune(model, Recipe(Granularity.parse("element"), layers={"w": 0.25}), dims)
    assert [layer.reached for layer in layers] == [0, 0.25]


def test_what_does_not_fit_is_left_alone_unless_it_was_named() -> None:
    layers = run("block:16x1")
    assert [layer.reached for layer in layers] == [0.5, 0]
    assert layers[1].reason == "has 12 outputs, which 16 does not divide"
    assert run("kernel")[0].reason == "is a product, which has no kernels"
    with pytest.raises(GraphoptError, match="--layer matmul2 has 12 outputs, which 16 does not divide"):
        run("block:16x1", layers={"matmul2": 0.5})


def test_a_layer_that_is_one_group_keeps_it() -> None:
    layers = run("block:32x8")
    assert [(layer.reached, layer.skipped) for layer in layers] == [(0, True), (0, True)]
    assert layers[0].reason == "has one group of weights, without which nothing would be left"
    assert layers[1].reason == "has 12 outputs, which 32 does not divide"
    with pytest.raises(GraphoptError, match="--layer matmul0 has one group of weights, .* leave the layer out"):
        run("block:32x8", layers={"matmul0": 0.5})
    model = parse("g (float[4,8] x, float[8,1] w) => (float[4,1] y) { y = MatMul(x, w) }", {"w": (8, 1)})
    for granularity in ("row", "filter"):
        (layer,) = prune(model, Recipe(Granularity.parse(granularity), 0.5), dims)
        assert layer.reason.startswith("has one group of weights")
    (layer,) = prune(model, Recipe(Granularity.parse("1:8")), dims)
    assert layer.reached == 0.875


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"sparsity": 1.5}, "--sparsity is 1.5; it must be a share from 0 to 1"),
        ({"sparsity": -0.1}, "it must be a share from 0 to 1"),
        ({"sparsity": float("nan")}, "--sparsity is nan; it must be a share"),
        ({"sparsity": 1.0}, "leaves a layer without weights"),
        ({"layers": {"matmul2": 2.0}}, "--layer matmul2 is 2"),
        ({"layers": {"matmul1": 0.5}}, "--layer names 'matmul1', which is no layer with weights; did you mean"),
        ({"skip": ("fc*",)}, "--skip names 'fc\\*', which is no layer"),
        ({"layers": {"matmul2": 0.5}, "skip": ("*2",)}, "gives matmul2 a sparsity and --skip spares it; leave one"),
        ({"layers": {"matmul2": 0.5, "v": 0.6}}, "both read the same weights; make them equal"),
        ({"granularity": "2:4", "sparsity": 0.9}, "2:4 leaves out 50% of the weights, not 90%"),
    ],
)
def test_bad_recipes_are_one_sentence(more: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        run(**more)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_named(bad: float) -> None:
    model = parse(TEXT, SHAPES)
    weights = model.graph.initializers["v"].const_value.numpy().copy()
    weights[3, 3] = bad
    model.graph.initializers["v"].const_value = ir.Tensor(weights, name="v")
    with pytest.raises(GraphoptError, match="weights of matmul2 \\(MatMul\\) hold NaN or infinity"):
        prune(model, Recipe(Granularity.parse("element"), 0.5), dims)
    assert prune(model, Recipe(Granularity.parse("element"), 0.5, skip=("matmul2",)), dims)[0].reached == 0.5


def test_a_layer_of_zeros_is_left_alone() -> None:
    model = parse(TEXT, SHAPES)
    model.graph.initializers["v"].const_value = ir.Tensor(np.zeros((32, 12), np.float32), name="v")
    layers = prune(model, Recipe(Granularity.parse("element"), 0.5), dims)
    assert (layers[1].reason, layers[1].energy) == ("has no weight that is not zero", 1.0)


def test_weights_of_two_layers_are_pruned_once() -> None:
    text = "g (float[4,32] x, float[32,32] w) => (float[4,32] y) { t = MatMul(x, w) y = Gemm <transB = 1>(t, w) }"
    model = parse(text, {"w": (32, 32)})
    (layer,) = prune(model, Recipe(Granularity.parse("element"), 0.5), dims)
    assert layer.reached == 0.5
    assert np.count_nonzero(model.graph.initializers["w"].const_value.numpy()) == 512
    (layer,) = prune(parse(text, {"w": (32, 32)}), Recipe(Granularity.parse("filter"), 0.5), dims)
    assert (layer.removed, layer.reached) == (False, 0.5)


def test_weights_that_are_also_a_table() -> None:
    text = (
        "g (int64[4] i, float[32,8] w) => (float[4,32] y) "
        "{ e = Gather(w, i) t = Transpose <perm = [1, 0]>(w) y = MatMul(e, t) }"
    )
    model = parse(text, {"w": (32, 8)})
    (layer,) = prune(model, Recipe(Granularity.parse("element"), 0.5), dims)
    assert layer.reason == "shares its weights with gather0 (Gather)"
    (layer,) = prune(model, Recipe(Granularity.parse("element"), layers={"w": 0.5}), dims)
    assert (layer.reached, layer.before) == (0.5, (32, 8, 1))


def test_weights_in_a_constant_behind_a_transpose() -> None:
    text = (
        "g (float[4,8] x) => (float[4,2] y) { c = Constant <value = float[2,8] "
        "{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>() t = Transpose(c) y = MatMul(x, t) }"
    )
    model = parse(text)
    (layer,) = prune(model, Recipe(Granularity.parse("element"), 0.25), dims)
    assert (layer.before, layer.reached) == ((2, 8, 1), 0.25)
    kept = model.graph.node(0).attributes["value"].as_tensor().numpy()
    assert kept.tolist() == [[0, 0, 0, 0, 5, 6, 7, 8], [9, 10, 11, 12, 13, 14, 15, 16]]


@pytest.mark.parametrize(("onnx_type", "dtype"), [("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)])
def test_narrow_floats_keep_their_type(onnx_type: str, dtype: type) -> None:
    model = parse(TEXT.replace("float[", f"{onnx_type}["), SHAPES)
    prune(model, Recipe(Granularity.parse("block:16x1"), 0.5), dims)
    weights = model.graph.initializers["w"].const_value.numpy()
    assert weights.dtype == dtype
    assert np.count_nonzero(weights.astype(np.float32)) == weights.size // 2


def test_a_model_without_layers() -> None:
    with pytest.raises(GraphoptError, match="so there is nothing to prune"):
        prune(parse("g (float[4] x) => (float[4] y) { y = Relu(x) }"), Recipe(Granularity.parse("element"), 0.5), dims)


def test_the_pass_is_spelled_like_the_others() -> None:
    text = "prune{sparsity=0.75,granularity=block:16x1,criterion=magnitude,remove=false}"
    pipeline = Pipeline.parse(text)
    assert str(pipeline) == text
    model = parse(TEXT, SHAPES)
    (step,) = pipeline.run(model, ()).steps
    assert step.modified
    assert [refusal.node for refusal in step.refusals] == ["matmul2"]
    assert np.count_nonzero(model.graph.initializers["w"].const_value.numpy()) == 64
    assert str(Prune.from_options({"granularity": "2:4"})) == "prune{granularity=2:4}"
