"""A model whose channels are gone computes what the model computes that has zeros in their place."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.graph.edit import dims
from graphopt.passes.prune.granularity import Granularity
from graphopt.passes.prune.plan import Recipe
from graphopt.passes.prune.prune import PrunedLayer, prune
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import parse

# Name -> (graph, weights, [outputs, inputs] of every layer after half of the outputs went where they can).
MODELS = {
    "products": (
        "g (float[4,8] x, float[8,32] w, float[32] b, float[32,16] v, float[16,8] u) => (float[4,8] y) "
        "{ t = MatMul(x, w) a = Add(t, b) r = Sigmoid(a) s = MatMul(r, v) y = MatMul(s, u) }",
        {"w": (8, 32), "b": (32,), "v": (32, 16), "u": (16, 8)},
        [(16, 8), (8, 16), (8, 8)],
    ),
    "gemms": (
        "g (float[4,8] x, float[32,8] w, float[1,32] b, float[32,8] v, float[8] c) => (float[4,8] y) "
        "{ t = Gemm <transB = 1>(x, w, b) r = Tanh(t) y = Gemm(r, v, c) }",
        {"w": (32, 8), "b": (1, 32), "v": (32, 8), "c": (8,)},
        [(16, 8), (8, 16)],
    ),
    "convolutions and a flat product": (
        "g (float[1,3,8,8] x, float[8,3,3,3] w, float[8] b, float[8,1,3,3] d, float[12,8,1,1] v, float[192,10] f) "
        "=> (float[1,10] y) { t = Conv <pads = [1, 1, 1, 1]>(x, w, b) r = Relu(t) "
        "e = Conv <pads = [1, 1, 1, 1], group = 8>(r, d, b) p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(e) "
        "c = Conv(p, v) l = Flatten(c) y = MatMul(l, f) }",
        {"w": (8, 3, 3, 3), "b": (8,), "d": (8, 1, 3, 3), "v": (12, 8, 1, 1), "f": (192, 10)},
        [(4, 3), (4, 1), (6, 4), (10, 96)],
    ),
    "reshape with the count": (
        "g (float[1,4,8,8] x, float[8,4,1,1] v, float[512,10] f) => (float[1,10] y) <int64[2] s = {1, 512}> "
        "{ c = Conv(x, v) l = Reshape(c, s) y = MatMul(l, f) }",
        {"v": (8, 4, 1, 1), "f": (512, 10)},
        [(4, 4), (10, 256)],
    ),
    "residual addition": (
        "g (float[1,4,6,6] x, float[8,4,1,1] w, float[8,8,3,3] a, float[8] s, float[8] q, float[5,8,1,1] v) "
        "=> (float[1,5,6,6] y) { t = Conv(x, w) r = Relu(t) c = Conv <pads = [1, 1, 1, 1]>(r, a) "
        "n = BatchNormalization(c, s, s, s, q) u = Add(n, r) y = Conv(u, v) }",
        {"w": (8, 4, 1, 1), "a": (8, 8, 3, 3), "s": (8,), "q": (8,), "v": (5, 8, 1, 1)},
        [(4, 4), (4, 4), (5, 4)],
    ),
    "concatenation": (
        "g (float[1,4,6,6] x, float[8,4,1,1] w, float[4,4,1,1] a, float[5,12,1,1] v) => (float[1,5,6,6] y) "
        "{ t = Conv(x, w) s = Conv(x, a) u = Concat <axis = 1>(t, s) y = Conv(u, v) }",
        {"w": (8, 4, 1, 1), "a": (4, 4, 1, 1), "v": (5, 12, 1, 1)},
        [(4, 4), (2, 4), (5, 6)],
    ),
    "split": (
        "g (float[2,4] x, float[4,16] w, float[8,3] a, float[8,3] b) => (float[2,3] y) <int64[2] s = {8, 8}> "
        "{ t = MatMul(x, w) p, q = Split <axis = 1>(t, s) c = MatMul(p, a) d = MatMul(q, b) y = Add(c, d) }",
        {"w": (4, 16), "a": (8, 3), "b": (8, 3)},
        None,
    ),
    "gate": (
        "g (float[1,4,6,6] x, float[8,4,1,1] w, float[8,8,1,1] a, float[5,8,1,1] v) => (float[1,5,6,6] y) "
        "{ t = Conv(x, w) m = GlobalAveragePool(t) s = Conv(m, a) g = Sigmoid(s) u = Mul(t, g) y = Conv(u, v) }",
        {"w": (8, 4, 1, 1), "a": (8, 8, 1, 1), "v": (5, 8, 1, 1)},
        [(4, 4), (4, 4), (5, 4)],
    ),
    "a constant behind Unsqueeze": (
        "g (float[1,4,6,6] x, float[8,4,1,1] w, float[8] s, float[5,8,1,1] v) => (float[1,5,6,6] y) "
        "<int64[2] ax = {1, 2}> { t = Conv(x, w) e = Unsqueeze(s, ax) u = Mul(t, e) y = Conv(u, v) }",
        {"w": (8, 4, 1, 1), "s": (8,), "v": (5, 8, 1, 1)},
        [(4, 4), (5, 4)],
    ),
    "layer normalization mixes": (
        "g (float[4,8] x, float[8,32] w, float[32] s, float[32,8] v) => (float[4,8] y) "
        "{ t = MatMul(x, w) n = LayerNormalization(t, s, s) y = MatMul(n, v) }",
        {"w": (8, 32), "s": (32,), "v": (32, 8)},
        [(32, 8), (8, 32)],
    ),
    "softmax mixes": (
        "g (float[4,8] x, float[8,32] w, float[32,8] v) => (float[4,8] y) "
        "{ t = MatMul(x, w) n = Softmax(t) y = MatMul(n, v) }",
        {"w": (8, 32), "v": (32, 8)},
        [(32, 8), (8, 32)],
    ),
    "a Pad that moves channels": (
        "g (float[1,8,5,5] x, float[32,8,1,1] w, float[4,32,1,1] v) => (float[1,4,5,5] y) "
        "<int64[8] p = {0, 1, 0, 0, 0, -1, 0, 0}> { t = Conv(x, w) m = Pad(t, p) y = Conv(m, v) }",
        {"w": (32, 8, 1, 1), "v": (4, 32, 1, 1)},
        [(32, 8), (4, 32)],
    ),
    "a Pad of planes": (
        "g (float[1,8,5,5] x, float[32,8,1,1] w, float[4,32,3,3] v) => (float[1,4,5,5] y) "
        "<int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}> { t = Conv(x, w) m = Pad(t, p) y = Conv(m, v) }",
        {"w": (32, 8, 1, 1), "v": (4, 32, 3, 3)},
        [(16, 8), (4, 16)],
    ),
    "the type of something larger": (
        "g (float[3,8] x, float[1,2,3,32] z, float[8,32] w, float[32,4] v) => (float[3,4] y) "
        "{ t = MatMul(x, w) c = CastLike(t, z) y = MatMul(c, v) }",
        {"w": (8, 32), "v": (32, 4)},
        [(16, 8), (4, 16)],
    ),
    "the type of an input of as many channels": (
        "g (float[3,8] x, float[32] z, float[8,32] w, float[32,4] v) => (float[3,4] y) "
        "{ t = MatMul(x, w) c = CastLike(t, z) y = MatMul(c, v) }",
        {"w": (8, 32), "v": (32, 4)},
        [(16, 8), (4, 16)],
    ),
    "a mean over channels": (
        "g (float[4,8] x, float[8,32] w, float[1,3] v) => (float[4,3] y) <int64[1] a = {1}> "
        "{ t = MatMul(x, w) n = ReduceMean(t, a) y = MatMul(n, v) }",
        {"w": (8, 32), "v": (1, 3)},
        [(32, 8), (3, 1)],
    ),
    "heads": (
        "g (float[4,8] x, float[8,32] w, float[32,8] v) => (float[4,8] y) "
        "<int64[3] s = {4, 4, 8}, int64[2] u = {4, 32}> "
        "{ t = MatMul(x, w) h = Reshape(t, s) i = Relu(h) j = Reshape(i, u) y = MatMul(j, v) }",
        {"w": (8, 32), "v": (32, 8)},
        [(32, 8), (8, 32)],
    ),
    "groups": (
        "g (float[1,4,6,6] x, float[8,4,1,1] w, float[8,4,1,1] a) => (float[1,8,6,6] y) "
        "{ t = Conv(x, w) y = Conv <group = 2>(t, a) }",
        {"w": (8, 4, 1, 1), "a": (8, 4, 1, 1)},
        [(8, 4), (8, 4)],
    ),
}


def model_of(name: str) -> ir.Model:
    model = parse(MODELS[name][0], MODELS[name][1])
    if "q" in MODELS[name][1]:  # a variance
        q = model.graph.initializers["q"]
        q.const_value = ir.Tensor(np.abs(q.const_value.numpy()), name="q")
    return model


def pruned(name: str, granularity: str, remove: bool) -> tuple[ir.Model, list[PrunedLayer]]:
    model = model_of(name)
    recipe = Recipe(Granularity.parse(granularity), 0.5, remove=remove)
    return model, prune(model, recipe, dims)


@pytest.mark.parametrize("granularity", ["filter", "row", "channel", "column"])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_gone_is_what_nobody_reads(name: str, granularity: str) -> None:
    smaller, layers = pruned(name, granularity, True)
    zeros, same = pruned(name, granularity, False)
    feeds = random_inputs(zeros, 0)
    tolerance = {"float32": Tolerance(1e-4, 1e-4)}
    require_equal(run_onnxruntime(zeros, feeds), run_onnxruntime(smaller, feeds), "smaller", tolerance)
    onnx.checker.check_model(ir.to_proto(smaller), full_check=True)
    for a, b in zip(layers, same, strict=True):
        assert (a.reached, a.energy, a.skipped) == pytest.approx((b.reached, b.energy, b.skipped))
        assert b.before == b.after
    assert all(value.uses() or value.is_graph_output() for value in smaller.graph.initializers.values())


@pytest.mark.parametrize("name", [name for name, (_, _, expected) in MODELS.items() if expected])
def test_half_of_the_outputs_go_where_they_can(name: str) -> None:
    _, layers = pruned(name, "filter", True)
    assert [layer.after[:2] for layer in layers] == MODELS[name][2]


def test_a_model_of_an_old_opset_keeps_it() -> None:
    text = (
        "g (float[2,4] x, float[4,16] w, float[8,3] a, float[8,3] b) => (float[2,3] y) "
        "{ t = MatMul(x, w) p, q = Split <axis = 1, split = [8, 8]>(t) c = MatMul(p, a) d = MatMul(q, b) "
        "y = Add(c, d) }"
    )
    outputs = []
    for remove in (True, False):
        model = parse(text, {"w": (4, 16), "a": (8, 3), "b": (8, 3)}, opset=11)
        (first, *_) = prune(model, Recipe(Granularity.parse("row"), 0.5, remove=remove), dims)
        outputs.append(run_onnxruntime(model, random_inputs(model, 0)))
        assert first.removed == remove
    require_equal(outputs[1], outputs[0], "smaller", {"float32": Tolerance(1e-4, 1e-4)})


def test_a_spared_layer_keeps_its_channels_and_those_added_to_them() -> None:
    model = model_of("residual addition")
    layers = prune(model, Recipe(Granularity.parse("filter"), 0.5, skip=("conv2",)), dims)
    assert [layer.after[:2] for layer in layers] == [(8, 4), (8, 8), (5, 8)]
    assert layers[0].reason == "zeros: a layer that is left alone shares its channels"
    assert layers[0].reached == 0.5


def test_a_layer_of_which_nothing_is_asked_keeps_its_channels() -> None:
    model = model_of("residual addition")
    layers = prune(model, Recipe(Granularity.parse("filter"), 0.5, {"conv0": 0.0}), dims)
    assert [layer.after[:2] for layer in layers] == [(8, 4), (8, 8), (5, 8)]
    assert (layers[0].reached, layers[0].skipped) == (0, False)
