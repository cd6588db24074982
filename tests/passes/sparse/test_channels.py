"""Channels that are permuted, with all constants that follow them, change nothing that anybody sees."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.graph.edit import Editor
from graphopt.passes.sparse.channels import classes
from graphopt.passes.sparse.permute import permute
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import parse

# Name -> (graph, weights, extents of the classes that nothing fixes).
MODELS = {
    "mlp": (
        "g (float[4,8] x, float[8,32] w, float[32] b, float[32,8] v) => (float[4,8] y) "
        "{ t = MatMul(x, w) u = Add(t, b) r = Relu(u) y = MatMul(r, v) }",
        {"w": (8, 32), "b": (32,), "v": (32, 8)},
        [32],
    ),
    "gemm": (
        "g (float[4,8] x, float[32,8] w, float[32] b, float[32,8] v) => (float[4,8] y) "
        "{ t = Gemm <transB = 1>(x, w, b) r = Tanh(t) y = Gemm(r, v) }",
        {"w": (32, 8), "b": (32,), "v": (32, 8)},
        [32],
    ),
    "residual addition": (
        "g (float[4,8] x, float[8,32] w, float[32,32] a, float[32,8] v) => (float[4,8] y) "
        "{ t = MatMul(x, w) r = Relu(t) s = MatMul(r, a) u = Add(s, t) y = MatMul(u, v) }",
        {"w": (8, 32), "a": (32, 32), "v": (32, 8)},
        [32],
    ),
    "convolutions": (
        "g (float[1,3,8,8] x, float[32,3,3,3] w, float[32] b, float[32,1,3,3] d, float[16,32,1,1] v, float[16,10] f)"
        " => (float[1,10] y) "
        "{ t = Conv <pads = [1, 1, 1, 1]>(x, w, b) r = Relu(t) e = Conv <pads = [1, 1, 1, 1], group = 32>(r, d, b)"
        "  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]>(e) c = Conv(p, v) a = GlobalAveragePool(c)"
        "  l = Flatten(a) y = MatMul(l, f) }",
        {"w": (32, 3, 3, 3), "b": (32,), "d": (32, 1, 3, 3), "v": (16, 32, 1, 1), "f": (16, 10)},
        [32, 16],
    ),
    "batch normalization": (
        "g (float[1,3,6,6] x, float[32,3,3,3] w, float[32] s, float[4,32,1,1] v) => (float[1,4,4,4] y) "
        "{ t = Conv(x, w) n = BatchNormalization(t, s, s, s, q) y = Conv(n, v) }",
        {"w": (32, 3, 3, 3), "s": (32,), "q": (32,), "v": (4, 32, 1, 1)},
        [32],
    ),
    "layer normalization and softmax": (
        "g (float[4,8] x, float[8,32] w, float[32] s, float[32,8] v) => (float[4,8] y) "
        "{ t = MatMul(x, w) n = LayerNormalization(t, s, s) m = Softmax(n) y = MatMul(m, v) }",
        {"w": (8, 32), "s": (32,), "v": (32, 8)},
        [32],
    ),
    "broadcast operands": (
        "g (float[4,8] x, float[8,32] w, float[1,32] s, float[4,1] c, float[1] o, float[32,8] v) => (float[4,8] y) "
        "{ t = MatMul(x, w) m = Mul(t, s) n = Add(m, c) q = Max(n, o) y = MatMul(q, v) }",
        {"w": (8, 32), "s": (1, 32), "c": (4, 1), "o": (1,), "v": (32, 8)},
        [32],
    ),
    "transposes that keep channels": (
        "g (float[1,4,8] x, float[8,32] w, float[4,32,1] s, float[32,8] v) => (float[1,4,8] y) "
        "{ t = MatMul(x, w) a = Transpose <perm = [1, 2, 0]>(t) b = Mul(a, s) c = Transpose <perm = [2, 0, 1]>(b)"
        "  y = MatMul(c, v) }",
        {"w": (8, 32), "s": (4, 32, 1), "v": (32, 8)},
        [32],
    ),
    "a weight of two layers": (
        "g (float[4,8] x, float[8,32] w, float[32,32] a, float[32,8] v) => (float[4,8] y) "
        "{ t = MatMul(x, w) r = MatMul(t, a) s = MatMul(r, a) y = MatMul(s, v) }",
        {"w": (8, 32), "a": (32, 32), "v": (32, 8)},
        [32, 32, 32],
    ),
    "outputs are seen": (
        "g (float[4,8] x, float[8,32] w) => (float[4,32] y) { t = MatMul(x, w) y = Relu(t) }",
        {"w": (8, 32)},
        [],
    ),
    "axes are split and joined again": (
        "g (float[4,8] x, float[8,32] w, float[32,8] v) => (float[4,8] y) "
        "<int64[3] s = {4, 4, 8}, int64[2] u = {4, 32}> "
        "{ t = MatMul(x, w) h = Reshape(t, s) i = Relu(h) j = Reshape(i, u) y = MatMul(j, v) }",
        {"w": (8, 32), "v": (32, 8)},
        [32],
    ),
    "an order that matters": (
        "g (float[4,8] x, float[8,32] w, float[32,8] v) => (float[4,8] y) <int64 a = {1}> "
        "{ t = MatMul(x, w) c = CumSum(t, a) y = MatMul(c, v) }",
        {"w": (8, 32), "v": (32, 8)},
        [],
    ),
    "a product of two activations": (
        "g (float[32,32] x, float[32,32] w, float[32,8] v) => (float[32,8] y) "
        "{ t = MatMul(x, w) q = MatMul(t, x) y = MatMul(q, v) }",
        {"w": (32, 32), "v": (32, 8)},
        [],
    ),
}


def model_of(name: str) -> ir.Model:
    text, weights, _ = MODELS[name]
    if name == "batch normalization":
        text = text.replace("float[32] s,", "float[32] s, float[32] q,")
    model = parse(text, weights)
    if name == "batch normalization":
        q = model.graph.initializers["q"]
        q.const_value = ir.Tensor(np.abs(q.const_value.numpy()), name="q")
    return model


@pytest.mark.parametrize("name", MODELS)
def test_classes(name: str) -> None:
    found = sorted((each.extent for each in classes(model_of(name).graph)), reverse=True)
    assert found == MODELS[name][2]


@pytest.mark.parametrize("name", [name for name, (_, _, extents) in MODELS.items() if extents])
@pytest.mark.parametrize("seed", range(3))
def test_any_permutation_changes_nothing(name: str, seed: int) -> None:
    model = model_of(name)
    feeds = random_inputs(model, seed)
    before = run_onnxruntime(model, feeds)
    editor, generator = Editor(model, "test"), np.random.default_rng(seed)
    permute(editor, [(channels, generator.permutation(channels.extent)) for channels in classes(model.graph)])
    tolerance = {"float32": Tolerance(1e-4, 1e-4)}
    require_equal(before, run_onnxruntime(model, feeds), "permuted", tolerance)
    assert all(value.uses() or value.is_graph_output() for value in model.graph.initializers.values())
