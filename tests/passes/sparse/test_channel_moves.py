"""Channels beside each other, cut apart and in heads change places only where nobody sees it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.edit import Editor
from graphopt.passes import Fuse
from graphopt.passes.sparse.channels import classes
from graphopt.passes.sparse.permute import permute
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import parse

HEADS = """<int64[4] s = {1, 4, 3, 8}, int64[3] u = {1, 4, 24}>"""
ATTENDED = """{ q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c)
  r = Reshape(q, s) t = Transpose <perm = [0, 2, 1, 3]>(r) l = Reshape(k, s) m = Transpose <perm = [0, 2, 3, 1]>(l)
  w = Reshape(v, s) z = Transpose <perm = [0, 2, 1, 3]>(w) d = MatMul(t, m) e = Softmax(d) f = MatMul(e, z)
  g = Transpose <perm = [0, 2, 1, 3]>(f) h = Reshape(g, u) y = MatMul(h, o) }"""

# Name -> (graph, weights, extents of the classes, times how often).
MODELS = {
    "concatenation": (
        "g (float[1,3,5,5] x, float[16,3,1,1] a, float[24,3,1,1] b, float[4,40,1,1] v) => (float[1,4,5,5] y) "
        "{ p = Conv(x, a) q = Conv(x, b) r = Relu(q) c = Concat <axis = 1>(p, r) y = Conv(c, v) }",
        {"a": (16, 3, 1, 1), "b": (24, 3, 1, 1), "v": (4, 40, 1, 1)},
        {16: 1, 24: 1},
    ),
    "a dense block": (
        "g (float[1,16,5,5] x, float[16,16,1,1] a, float[40] s, float[24,16,1,1] b, float[8,40,1,1] d, "
        "float[4,48,1,1] v) => (float[1,4,5,5] y) "
        "{ p = Conv(x, a) q = Conv(p, b) c = Concat <axis = 1>(p, q) n = BatchNormalization(c, s, s, s, t) r = Relu(n)"
        "  e = Conv(r, d) f = Concat <axis = 1>(c, e) y = Conv(f, v) }",
        {"a": (16, 16, 1, 1), "b": (24, 16, 1, 1), "s": (40,), "t": (40,), "d": (8, 40, 1, 1), "v": (4, 48, 1, 1)},
        {16: 1, 24: 1, 8: 1},
    ),
    "a residual addition cuts both concatenations": (
        "g (float[4,8] x, float[8,16] a, float[8,24] b, float[8,24] c, float[8,16] d, float[40,8] v) => (float[4,8] y) "
        "{ p = MatMul(x, a) q = MatMul(x, b) r = MatMul(x, c) s = MatMul(x, d) m = Concat <axis = -1>(p, q)"
        "  n = Concat <axis = -1>(r, s) u = Add(m, n) y = MatMul(u, v) }",
        {"a": (8, 16), "b": (8, 24), "c": (8, 24), "d": (8, 16), "v": (40, 8)},
        {16: 2, 8: 1},
    ),
    "a concatenation with inputs and constants": (
        "g (float[4,8] x, float[8,16] a, float[4,8] k, float[32,8] v) => (float[4,8] y) "
        "{ p = MatMul(x, a) c = Concat <axis = 1>(x, p, k) y = MatMul(c, v) }",
        {"a": (8, 16), "k": (4, 8), "v": (32, 8)},
        {16: 1},
    ),
    "a concatenation of other axes": (
        "g (float[1,4,8] x, float[8,16] a, float[1,2,16] k, float[16,8] v) => (float[1,6,8] y) "
        "{ p = MatMul(x, a) c = Concat <axis = 1>(k, p) y = MatMul(c, v) }",
        {"a": (8, 16), "k": (1, 2, 16), "v": (16, 8)},
        {16: 1},
    ),
    "the same twice": (
        "g (float[4,8] x, float[8,16] a, float[32,8] v) => (float[4,8] y) "
        "{ p = MatMul(x, a) r = Relu(p) c = Concat <axis = 1>(p, r) y = MatMul(c, v) }",
        {"a": (8, 16), "v": (32, 8)},
        {16: 1},
    ),
    "a split": (
        "g (float[4,8] x, float[8,40] a, float[16,8] v, float[24,8] w) => (float[4,8] y) <int64[2] s = {16, 24}> "
        "{ p = MatMul(x, a) q, r = Split <axis = 1>(p, s) t = MatMul(q, v) u = MatMul(r, w) y = Add(t, u) }",
        {"a": (8, 40), "v": (16, 8), "w": (24, 8)},
        {16: 1, 24: 1},
    ),
    "a gated unit": (
        "g (float[4,8] x, float[8,32] a, float[16,8] v) => (float[4,8] y) "
        "{ p = MatMul(x, a) q, r = Split <axis = -1, num_outputs = 2>(p) s = Sigmoid(q) t = Mul(s, r)"
        "  y = MatMul(t, v) }",
        {"a": (8, 32), "v": (16, 8)},
        {16: 1},
    ),
    "slices that overlap": (
        "g (float[4,8] x, float[8,40] a, float[24,8] v, float[24,8] w) => (float[4,8] y) "
        "<int64[1] o = {0}, int64[1] p = {24}, int64[1] q = {-24}, int64[1] e = {1000}, int64[1] k = {1}> "
        "{ t = MatMul(x, a) c = Slice(t, o, p, k) d = Slice(t, q, e, k) l = MatMul(c, v) r = MatMul(d, w)"
        "  y = Add(l, r) }",
        {"a": (8, 40), "v": (24, 8), "w": (24, 8)},
        {16: 2, 8: 1},
    ),
    "a sum of a value and itself backwards": (
        "g (float[4,8] x, float[8,32] a, float[32,8] v) => (float[4,8] y) "
        "<int64[1] o = {-1}, int64[1] p = {-1000}, int64[1] k = {1}> "
        "{ t = MatMul(x, a) c = Slice(t, o, p, k, o) s = Add(t, c) y = MatMul(s, v) }",
        {"a": (8, 32), "v": (32, 8)},
        {16: 1},
    ),
    "a sum of a value and itself shuffled": (
        "g (float[4,8] x, float[8,12] a, float[12,8] v) => (float[4,8] y) "
        "<int64[3] s = {4, 3, 4}, int64[2] u = {4, 12}> "
        "{ t = MatMul(x, a) r = Reshape(t, s) m = Transpose <perm = [0, 2, 1]>(r) c = Reshape(m, u) s_ = Add(t, c)"
        "  y = MatMul(s_, v) }",
        {"a": (8, 12), "v": (12, 8)},
        {2: 1},
    ),
    "every other channel, backwards": (
        "g (float[4,8] x, float[8,32] a, float[16,8] v) => (float[4,8] y) "
        "<int64[1] o = {-1}, int64[1] p = {-1000}, int64[1] k = {1}, int64[1] s = {-2}> "
        "{ t = MatMul(x, a) c = Slice(t, o, p, k, s) y = MatMul(c, v) }",
        {"a": (8, 32), "v": (16, 8)},
        {16: 2},
    ),
    "a channel shuffle between convolutions with groups": (
        "g (float[1,3,4,4] x, float[24,3,1,1] a, float[24,8,1,1] b, float[24,1,3,3] d, float[24,8,1,1] c, "
        "float[4,24,1,1] v) => (float[1,4,4,4] y) <int64[5] s = {1, 3, 8, 4, 4}, int64[4] u = {1, 24, 4, 4}> "
        "{ t = Conv(x, a) p = Conv <group = 3>(t, b) q = Reshape(p, s) r = Transpose <perm = [0, 2, 1, 3, 4]>(q)"
        "  e = Reshape(r, u) f = Conv <group = 24, pads = [1, 1, 1, 1]>(e, d) h = Conv <group = 3>(f, c)"
        "  y = Conv(h, v) }",
        {"a": (24, 3, 1, 1), "b": (24, 8, 1, 1), "d": (24, 1, 3, 3), "c": (24, 8, 1, 1), "v": (4, 24, 1, 1)},
        {8: 3},
    ),
    "planes that are flattened": (
        "g (float[2,3,4,4] x, float[16,3,1,1] a, float[256,8] v) => (float[2,8] y) "
        "{ t = Conv(x, a) r = Relu(t) f = Flatten(r) y = MatMul(f, v) }",
        {"a": (16, 3, 1, 1), "v": (256, 8)},
        {16: 1},
    ),
    "planes that are flattened behind channels that are last": (
        "g (float[2,3,4,4] x, float[16,3,1,1] a, float[256,8] v, float[256] b) => (float[2,8] y) "
        "{ t = Conv(x, a) r = Transpose <perm = [0, 2, 3, 1]>(t) f = Flatten(r) s = Mul(f, b) y = MatMul(s, v) }",
        {"a": (16, 3, 1, 1), "v": (256, 8), "b": (256,)},
        {16: 1},
    ),
    "planes that are pooled, padded, resized and summed": (
        "g (float[1,3,4,4] x, float[16,3,1,1] a, float[16,8,2,2] t, float[8] b, float[4,8,1,1] v) => (float[1,4] y) "
        "<float[4] s = {1, 1, 2, 2}, int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, int64[2] e = {2, 3}> "
        "{ c = Conv(x, a) d = Resize(c, , s) f = Pad(d, p) h = ConvTranspose <strides = [2, 2]>(f, t, b)"
        "  i = Conv(h, v) y = ReduceMean <keepdims = 0>(i, e) }",
        {"a": (16, 3, 1, 1), "t": (16, 8, 2, 2), "b": (8,), "v": (4, 8, 1, 1)},
        {16: 1},
    ),
    "rows of a table": (
        "g (int64[1,4] i, float[50,16] e, float[16,16] a, float[16,8] v) => (float[1,4,8] y) "
        "{ t = Gather(e, i) p = MatMul(t, a) r = Add(p, t) y = MatMul(r, v) }",
        {"e": (50, 16), "a": (16, 16), "v": (16, 8)},
        {16: 1},
    ),
    "the first token": (
        "g (float[1,4,8] x, float[8,16] a, float[16,8] v) => (float[1,8] y) <int64 i = {0}> "
        "{ t = MatMul(x, a) f = Gather <axis = 1>(t, i) y = MatMul(f, v) }",
        {"a": (8, 16), "v": (16, 8)},
        {16: 1},
    ),
    "heads of attention": (
        f"g (float[1,4,8] x, float[8,24] a, float[8,24] b, float[8,24] c, float[24,8] o) => (float[1,4,8] y) "
        f"{HEADS} {ATTENDED}",
        {"a": (8, 24), "b": (8, 24), "c": (8, 24), "o": (24, 8)},
        {8: 6},
    ),
    "heads of q that share one of k and v": (
        "g (float[1,4,8] x, float[8,48] a, float[8,16] b, float[8,16] c, float[48,8] o) => (float[1,4,8] y) "
        "<int64[4] s = {1, 4, 6, 8}, int64[5] i = {1, 4, 2, 1, 8}, int64[5] j = {1, 4, 2, 3, 8}, "
        "int64[3] u = {1, 4, 48}> "
        "{ q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c) r = Reshape(q, s)"
        "  t = Transpose <perm = [0, 2, 1, 3]>(r) l = Reshape(k, i) e = Expand(l, j) m = Reshape(e, s)"
        "  n = Transpose <perm = [0, 2, 3, 1]>(m) w = Reshape(v, i) f = Expand(w, j) z = Reshape(f, s)"
        "  p = Transpose <perm = [0, 2, 1, 3]>(z) d = MatMul(t, n) g = Softmax(d) h = MatMul(g, p)"
        "  aa = Transpose <perm = [0, 2, 1, 3]>(h) ab = Reshape(aa, u) y = MatMul(ab, o) }",
        {"a": (8, 48), "b": (8, 16), "c": (8, 16), "o": (48, 8)},
        {8: 4},
    ),
    "heads of q, k and v in one product": (
        "g (float[1,4,8] x, float[8,72] a, float[72] d, float[24,8] o) => (float[1,4,8] y) "
        "<int64[5] s = {1, 4, 3, 3, 8}, int64[3] u = {1, 4, 24}, int64 zero = {0}, int64 one = {1}, int64 two = {2}> "
        "{ t = MatMul(x, a) p = Add(t, d) r = Reshape(p, s) m = Transpose <perm = [2, 0, 3, 1, 4]>(r)"
        "  q = Gather(m, zero) k = Gather(m, one) v = Gather(m, two) l = Transpose <perm = [0, 1, 3, 2]>(k)"
        "  e = MatMul(q, l) f = Softmax(e) h = MatMul(f, v) i = Transpose <perm = [0, 2, 1, 3]>(h) j = Reshape(i, u)"
        "  y = MatMul(j, o) }",
        {"a": (8, 72), "d": (72,), "o": (24, 8)},
        {8: 6},
    ),
    "a scale of each head": (
        "g (float[1,4,8] x, float[8,24] a, float[3,1] s, float[24,8] o) => (float[1,4,8] y) "
        "<int64[4] h = {1, 4, 3, 8}, int64[3] u = {1, 4, 24}> "
        "{ t = MatMul(x, a) r = Reshape(t, h) m = Mul(r, s) j = Reshape(m, u) y = MatMul(j, o) }",
        {"a": (8, 24), "s": (3, 1), "o": (24, 8)},
        {8: 3},
    ),
    "a scale inside all heads alike": (
        "g (float[1,4,8] x, float[8,24] a, float[8] s, float[24,8] o) => (float[1,4,8] y) "
        "<int64[4] h = {1, 4, 3, 8}, int64[3] u = {1, 4, 24}> "
        "{ t = MatMul(x, a) r = Reshape(t, h) m = Softmax(r) n = Mul(m, s) j = Reshape(n, u) y = MatMul(j, o) }",
        {"a": (8, 24), "s": (8,), "o": (24, 8)},
        {},
    ),
    "heads that are seen": (
        "g (float[1,4,8] x, float[8,24] a, float[24,8] o) => (float[1,4,8] y, float[1,4,3,8] r) "
        "<int64[4] h = {1, 4, 3, 8}, int64[3] u = {1, 4, 24}> "
        "{ t = MatMul(x, a) r = Reshape(t, h) j = Reshape(r, u) y = MatMul(j, o) }",
        {"a": (8, 24), "o": (24, 8)},
        {},
    ),
    "a product with heads as they are": (
        "g (float[1,4,8] x, float[8,24] a, float[8,8] o) => (float[1,4,3,8] y) <int64[4] h = {1, 4, 3, 8}> "
        "{ t = MatMul(x, a) r = Reshape(t, h) y = MatMul(r, o) }",
        {"a": (8, 24), "o": (8, 8)},
        {},
    ),
    "scores with a mask of inputs": (
        "g (float[1,4,8] x, float[24,24] w, float[8,24] a, float[24,8] o) => (float[1,4,8] y) "
        "{ t = MatMul(x, a) p = MatMul(t, w) r = Softmax <axis = 1>(p) k = Mul(r, t) n = ReduceSum <keepdims = 1>(k, e)"
        "  m = Mul(k, n) y = MatMul(m, o) }",
        {"w": (24, 24), "a": (8, 24), "o": (24, 8)},
        {24: 1},
    ),
}


def model_of(name: str) -> ir.Model:
    text, weights, _ = MODELS[name]
    if "float[40] s" in text:
        text = text.replace("float[40] s", "float[40] s, float[40] t")
    if "ReduceSum" in text:
        text = text.replace("{ t", "<int64[1] e = {-1}> { t", 1)
    model = parse(text, weights)
    variance = model.graph.initializers.get("t")
    if variance is not None:
        variance.const_value = ir.Tensor(np.abs(variance.const_value.numpy()), name="t")
    return model


@pytest.mark.parametrize("name", MODELS)
def test_classes(name: str) -> None:
    found = sorted(each.extent for each in classes(model_of(name).graph))
    assert found == sorted(extent for extent, times in MODELS[name][2].items() for _ in range(times))


@pytest.mark.parametrize("name", MODELS)
def test_any_permutation_changes_nothing(name: str) -> None:
    model = model_of(name)
    feeds = random_inputs(model, 0)
    before = run_onnxruntime(model, feeds)
    generator = np.random.default_rng(0)
    permute(Editor(model, "test"), [(each, generator.permutation(each.extent)) for each in classes(model.graph)])
    require_equal(before, run_onnxruntime(model, feeds), "permuted", {"float32": Tolerance(1e-4, 1e-4)})


@pytest.mark.parametrize("masked", [False, True])
def test_heads_of_fused_attention(masked: bool) -> None:
    """The operator that fuse makes is looked through like the nodes that it was made of."""
    text, weights, expected = MODELS["heads of attention"]
    if masked:
        text = text.replace("x, float", "x, float[4,4] n, float", 1).replace("Softmax(d)", "Softmax(d_)")
        text = text.replace("d = MatMul(t, m)", "d = MatMul(t, m) d_ = Add(d, n)")
    model = parse(text, weights)
    Fuse()(model)
    assert ("AttentionMasked" if masked else "Attention") in [node.op_type for node in model.graph]
    found = classes(model.graph)
    assert sorted(each.extent for each in found) == [extent for extent, times in expected.items() for _ in range(times)]
    feeds = random_inputs(model, 0)
    before = run_onnxruntime(model, feeds)
    generator = np.random.default_rng(0)
    permute(Editor(model, "test"), [(each, generator.permutation(each.extent)) for each in found])
    require_equal(before, run_onnxruntime(model, feeds), "permuted", {"float32": Tolerance(1e-4, 1e-4)})
