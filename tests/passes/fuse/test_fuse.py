"""before -> after of every rule; the `rewrite` fixture checks validity, numbers and idempotence each time."""

import pytest

from graphopt.passes import Fuse

HEAD = "g (float[1,4,6,6] x, float[8,4,3,3] w, float[8] b, float[8,1,1] s, float[1,8,1,1] t)"
CONV_WEIGHTS = {"w": (8, 4, 3, 3), "b": (8,), "s": (8, 1, 1), "t": (1, 8, 1, 1)}

CASES = {
    "mul and add into conv": (
        HEAD + "=> (float[1,8,4,4] y) { c = Conv(x, w)  m = Mul(c, s)  a = Add(m, t)  y = Relu(a) }",
        CONV_WEIGHTS,
        "a[1,8,4,4] = Conv(x, const[8,4,3,3], const[8])\ny[1,8,4,4] = Relu(a)",
    ),
    "mul into conv with bias and groups": (
        "g (float[1,4,6,6] x, float[8,2,3,3] w, float[8] b, float[8,1,1] s) => (float[1,8,2,2] y)"
        "{ c = Conv<group = 2, strides = [2, 2]>(x, w, b)  y = Mul(c, s) }",
        {"w": (8, 2, 3, 3), "b": (8,), "s": (8, 1, 1)},
        "y[1,8,2,2] = Conv(x, const[8,2,3,3], const[8]) {group=2, strides=[2, 2]}",
    ),
    "scalar into conv": (
        HEAD + "=> (float[1,8,4,4] y) <float k = {0.5}> { c = Conv(x, w)  y = Mul(c, k) }",
        CONV_WEIGHTS,
        "y[1,8,4,4] = Conv(x, const[8,4,3,3])",
    ),
    "into transposed conv with groups": (
        "g (float[1,4,5,5] x, float[4,3,2,2] w, float[6,1,1] s, float[6,1,1] t) => (float[1,6,10,10] y)"
        "{ c = ConvTranspose<group = 2, strides = [2, 2]>(x, w)  m = Mul(c, s)  y = Add(m, t) }",
        {"w": (4, 3, 2, 2), "s": (6, 1, 1), "t": (6, 1, 1)},
        "y[1,6,10,10] = ConvTranspose(x, const[4,3,2,2], const[6]) {group=2, strides=[2, 2]}",
    ),
    "into gemm": (
        "g (float[2,3] x, float[4,3] w, float[4] s, float[4] t) => (float[2,4] y)"
        "{ c = Gemm<transB = 1>(x, w)  m = Mul(c, s)  y = Add(m, t) }",
        {"w": (4, 3), "s": (4,), "t": (4,)},
        "y[2,4] = Gemm(x, const[4,3], const[4]) {transB=1}",
    ),
    "constants in a row, whose products and sums round each, stay": (
        "g (float[2,3] x, float[3] a, float[3] b) => (float[2,3] y) { p = Mul(x, a)  q = Mul(p, b)  y = Add(q, b) }",
        {"a": (3,), "b": (3,)},
        "p[2,3] = Mul(x, const[3])\nq[2,3] = Mul(p, const[3])\ny[2,3] = Add(q, const[3])",
    ),
    "divisor into conv": (
        HEAD + "=> (float[1,8,4,4] y) <float k = {3}> { c = Conv(x, w)  y = Div(c, k) }",
        CONV_WEIGHTS,
        "y[1,8,4,4] = Conv(x, const[8,4,3,3])",
    ),
    "pad into conv": (
        HEAD + "=> (float[1,8,7,5] y) <int64[8] p = {0, 0, 2, 1, 0, 0, 1, 0}>"
        "{ q = Pad(x, p)  y = Conv<pads = [0, 0, 0, 0]>(q, w) }",
        CONV_WEIGHTS,
        "y[1,8,7,5] = Conv(x, const[8,4,3,3]) {pads=[2, 1, 1, 0]}",
    ),
    "layer normalization": (
        "g (float[2,5,8] x, float[8] g1, float[8] b1) => (float[2,5,8] y)"
        "<float two = {2}, float eps = {0.00001}, int64[1] axes = {-1}> {"
        " m = ReduceMean(x, axes)  d = Sub(x, m)  p = Pow(d, two)  v = ReduceMean(p, axes)  e = Add(v, eps)"
        " r = Sqrt(e)  n = Div(d, r)  k = Mul(n, g1)  y = Add(k, b1) }",
        {"g1": (8,), "b1": (8,)},
        "y[2,5,8] = LayerNormalization(x, const[8], const[8]) {axis=-1, epsilon=1e-05}",
    ),
    "layer normalization without parameters": (
        "g (float[2,5,8] x) => (float[2,5,8] y) <float eps = {0.001}, int64[1] axes = {2}> {"
        " m = ReduceMean(x, axes)  d = Sub(x, m)  p = Mul(d, d)  v = ReduceMean(p, axes)  e = Add(v, eps)"
        " r = Sqrt(e)  y = Div(d, r) }",
        {},
        "y[2,5,8] = LayerNormalization(x, const[8]) {axis=-1, epsilon=0.001}",
    ),
    "gelu by erf, halved first": (
        "g (float[2,8] x) => (float[2,8] y) <float h = {0.5}, float one = {1}, float r = {1.4142135}> {"
        " a = Mul(x, h)  b = Div(x, r)  c = Erf(b)  d = Add(c, one)  y = Mul(a, d) }",
        {},
        "y[2,8] = Gelu(x) {approximate=none}",
    ),
    "gelu by erf, halved last": (
        "g (float[2,8] x) => (float[2,8] y) <float h = {0.5}, float one = {1}, float r = {0.70710677}> {"
        " b = Mul(x, r)  c = Erf(b)  d = Add(c, one)  e = Mul(x, d)  y = Mul(e, h) }",
        {},
        "y[2,8] = Gelu(x) {approximate=none}",
    ),
    "gelu by tanh": (
        "g (float[2,8] x) => (float[2,8] y)"
        "<float h = {0.5}, float one = {1}, float three = {3}, float k = {0.044715}, float r = {0.7978845608}> {"
        " a = Pow(x, three)  b = Mul(a, k)  c = Add(x, b)  d = Mul(c, r)  e = Tanh(d)  f = Add(e, one)"
        " i = Mul(x, f)  y = Mul(i, h) }",
        {},
        "y[2,8] = Gelu(x) {approximate=tanh}",
    ),
    "gelu by tanh, behind a sum that is none of it": (
        "g (float[2,8] z, float[8] w) => (float[2,8] y)"
        "<float h = {0.5}, float one = {1}, float k = {0.044715}, float r = {0.7978845608}> {"
        " x = Add(z, w)  a = Mul(x, k)  q = Mul(x, a)  p = Mul(x, q)  c = Add(x, p)  d = Mul(c, r)  e = Tanh(d)"
        " f = Add(e, one)  i = Mul(f, h)  y = Mul(x, i) }",
        {"w": (8,)},
        "x[2,8] = Add(z, const[8])\ny[2,8] = Gelu(x) {approximate=tanh}",
    ),
    "a curve that is not gelu stays": (
        "g (float[2,8] x) => (float[2,8] y) <float h = {0.5}, float one = {1}, float r = {0.8}> {"
        " a = Mul(x, h)  b = Mul(x, r)  c = Erf(b)  d = Add(c, one)  y = Mul(a, d) }",
        {},
        "a[2,8] = Mul(x, const[])\nb[2,8] = Mul(x, const[])\nc[2,8] = Erf(b)\nd[2,8] = Add(c, const[])\n"
        "y[2,8] = Mul(a, d)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(rewrite, name: str) -> None:
    text, weights, expected = CASES[name]
    after, _ = rewrite(Fuse(), text, weights)
    assert after == expected


QKV = "g (float[2,3,5,4] q, float[2,3,7,4] k, float[2,3,7,4] v, float[2,1,1,7] m, bool[1,1,5,7] c)"
ATTENTION = {
    "scale at the scores": (
        QKV + "=> (float[2,3,5,4] y) <float s = {2}> { t = Transpose<perm = [0, 1, 3, 2]>(k)"
        " p = MatMul(q, t)  z = Div(p, s)  w = Softmax<axis = -1>(z)  y = MatMul(w, v) }",
        "y[2,3,5,4] = Attention(q, k, v) {scale=0.5}",
    ),
    "scale at q and k, mask added": (
        QKV + "=> (float[2,3,5,4] y) <float s = {0.7}> { t = Transpose<perm = [0, 1, 3, 2]>(k)  a = Mul(q, s)"
        " b = Mul(t, s)  p = MatMul(a, b)  z = Add(m, p)  w = Softmax<axis = 3>(z)  y = MatMul(w, v) }",
        "y[2,3,5,4] = AttentionMasked(q, k, v, m) {scale=0.49}",
    ),
    "mask chosen by a condition": (
        QKV + "=> (float[2,3,5,4] y) <float s = {2}, float low = {-1e30}> { t = Transpose<perm = [0, 1, 3, 2]>(k)"
        " p = MatMul(q, t)  z = Where(c, low, p)  w = Softmax<axis = -1>(z)  y = MatMul(w, v) }",
        "c.additive[1,1,5,7] = Where(c, const[], const[])\ny[2,3,5,4] = AttentionMasked(q, k, v, c.additive) {scale=1}",
    ),
    "k straight from another order": (
        "g (float[2,3,5,4] q, float[2,7,3,4] r, float[2,3,7,4] v) => (float[2,3,5,4] y) {"
        " t = Transpose<perm = [0, 2, 3, 1]>(r)  p = MatMul(q, t)  w = Softmax<axis = -1>(p)  y = MatMul(w, v) }",
        "t.untransposed[2,3,7,4] = Transpose(r) {perm=[0, 2, 1, 3]}\n"
        "y[2,3,5,4] = Attention(q, t.untransposed, v) {scale=1}",
    ),
    "scores of doubles are doubles": (
        "g (double[2,3,5,4] q, double[2,3,7,4] k, double[2,3,7,4] v) => (double[2,3,5,4] y) {"
        " t = Transpose<perm = [0, 1, 3, 2]>(k)  p = MatMul(q, t)  w = Softmax<axis = -1>(p)  y = MatMul(w, v) }",
        "y[2,3,5,4] = Attention(q, k, v) {compute=11, scale=1}",
    ),
    "k transposed with merged heads": (
        QKV + "=> (float[2,3,5,4] y) <int64[3] n = {-1, 7, 4}, int64[4] h = {2, 3, 4, 7}> { a = Reshape(k, n)"
        " b = Transpose<perm = [0, 2, 1]>(a)  t = Reshape(b, h)  p = MatMul(q, t)  w = Softmax<axis = -1>(p)"
        " y = MatMul(w, v) }",
        "y[2,3,5,4] = Attention(q, k, v) {scale=1}",
    ),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(rewrite, name: str) -> None:
    text, expected = ATTENTION[name]
    assert rewrite(Fuse(), text)[0] == expected
    after, _ = rewrite(Fuse(attention=False), text)
    assert "Attention" not in after


def test_layers_share_the_mask_of_one_condition(rewrite) -> None:
    layer = (
        " p{i} = MatMul(q{i}, t)  z{i} = Where(c, p{i}, low)  w{i} = Softmax<axis = -1>(z{i})  q{j} = MatMul(w{i}, v)"
    )
    text = (
        "g (float[2,3,7,4] q0, float[2,3,7,4] k, float[2,3,7,4] v, bool[7,7] c) => (float[2,3,7,4] q2)"
        "<float low = {-1e30}> { t = Transpose<perm = [0, 1, 3, 2]>(k)"
        + layer.format(i=0, j=1)
        + layer.format(i=1, j=2)
        + "}"
    )
    after, _ = rewrite(Fuse(), text)
    assert after.count("AttentionMasked") == 2
    assert after.count("Where") == 1


REFUSED = {
    "before it has other uses": (
        HEAD + "=> (float[1,8,4,4] y, float[1,8,4,4] c) { c = Conv(x, w)  y = Mul(c, s) }",
        CONV_WEIGHTS,
    ),
    "are not constant": (
        HEAD + "=> (float[1,8,4,4] y) { c = Conv(x, w)  y = Mul(c, s) }",
        {"s": (8, 1, 1)},
    ),
    "the constant is not one number per channel": (
        "g (float[1,4,6,6] x, float[8,4,3,3] w, float[4] s) => (float[1,8,4,4] y) { c = Conv(x, w)  y = Mul(c, s) }",
        {"w": (8, 4, 3, 3), "s": (4,)},
    ),
    "the Pad does not pad with zero": (
        HEAD + "=> (float[1,8,6,6] y) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}, float one = {1}>"
        "{ q = Pad(x, p, one)  y = Conv(q, w) }",
        CONV_WEIGHTS,
    ),
    "the padded tensor has other uses": (
        HEAD + "=> (float[1,8,6,6] y, float[1,4,8,8] q) <int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}>"
        "{ q = Pad(x, p)  y = Conv(q, w) }",
        CONV_WEIGHTS,
    ),
    "the scores of the attention have other uses": (
        QKV + "=> (float[2,3,5,4] y, float[2,3,5,7] p) { t = Transpose<perm = [0, 1, 3, 2]>(k)"
        " p = MatMul(q, t)  w = Softmax<axis = -1>(p)  y = MatMul(w, v) }",
        {},
    ),
    "k of the attention is no transposed tensor": (
        "g (float[2,3,5,4] q, float[2,3,4,7] t, float[2,3,7,4] v) => (float[2,3,5,4] y)"
        "{ p = MatMul(q, t)  w = Softmax<axis = -1>(p)  y = MatMul(w, v) }",
        {},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusal(rewrite, reason: str) -> None:
    text, weights = REFUSED[reason]
    _, result = rewrite(Fuse(), text, weights)
    assert [reason in refusal.reason for refusal in result.refusals] == [True]
    assert not result.modified


def test_gelu_needs_its_opset(rewrite) -> None:
    text, _, _ = CASES["gelu by erf, halved first"]
    _, result = rewrite(Fuse(), text, opset=18)
    assert "which needs opset 20" in result.refusals[0].reason
