"""before -> after of every rule; the `rewrite` fixture checks validity, numbers and idempotence each time."""

import numpy as np
import pytest

from graphopt.passes import Normalize

CASES = {
    "identity at an output": (
        "g (float[2,3] x) => (float[2,3] y) { a = Relu(x)  y = Identity(a) }",
        {},
        "y[2,3] = Relu(x)",
    ),
    "identity from input to output stays": (
        "g (float[2,3] x) => (float[2,3] y) { y = Identity(x) }",
        {},
        "y[2,3] = Identity(x)",
    ),
    "dropout": (
        "g (float[2,3] x) => (float[2,3] y) { a = Dropout(x)  y = Relu(a) }",
        {},
        "y[2,3] = Relu(x)",
    ),
    "cast to the same type": (
        "g (float[2,3] x) => (float[2,3] y) { a = Cast<to = 1>(x)  y = Relu(a) }",
        {},
        "y[2,3] = Relu(x)",
    ),
    "reshapes": (
        "g (float[2,3,4] x) => (float[6,4] y) <int64[2] s = {6, 4}> { a = Flatten(x)  b = Reshape(a, s)  y = Relu(b) }",
        {},
        "b[6,4] = Reshape(x, const[2])\ny[6,4] = Relu(b)",
    ),
    "reshape to the same shape": (
        "g (float[6,4] x) => (float[6,4] y) <int64[2] s = {6, -1}> { a = Reshape(x, s)  y = Relu(a) }",
        {},
        "y[6,4] = Relu(x)",
    ),
    "transposes": (
        "g (float[2,3,4] x) => (float[3,4,2] y)"
        "{ a = Transpose<perm = [0, 2, 1]>(x)  b = Transpose<perm = [2, 1, 0]>(a)  y = Relu(b) }",
        {},
        "b[3,4,2] = Transpose(x) {perm=[1, 2, 0]}\ny[3,4,2] = Relu(b)",
    ),
    "transposes that cancel": (
        "g (float[2,3] x) => (float[2,3] y) { a = Transpose(x)  b = Transpose(a)  y = Relu(b) }",
        {},
        "y[2,3] = Relu(x)",
    ),
    "pad without effect": (
        "g (float[2,3] x) => (float[2,3] y) <int64[4] p = {0, 0, 0, 0}> { a = Pad(x, p)  y = Relu(a) }",
        {},
        "y[2,3] = Relu(x)",
    ),
    "sum": (
        "g (float[2,3] a, float[3] b, float[1] c) => (float[2,3] y) { y = Sum(a, b, c) }",
        {},
        "sum0.add[2,3] = Add(a, b)\ny[2,3] = Add(sum0.add, c)".replace("sum0.add", "y.add"),
    ),
    "rows of a product that were counted through": (
        "g (float[2,3,5] x, float[5,4] w, float[4] b, float[2,3,4] z) => (float[2,3,4] y)"
        "<int64[2] s = {6, 5}, int64[3] t = {2, 3, 4}>"
        "{ f = Reshape(x, s)  p = Gemm(f, w, b)  r = Reshape(p, t)  y = Add(z, r) }",
        {},
        "r.product[2,3,4] = MatMul(x, w)\nr[2,3,4] = Add(r.product, b)\ny[2,3,4] = Add(z, r)",
    ),
    "rows of a product that get an axis": (
        "g (float[6,5] x, float[5,4] w) => (float[3,2,4] y) <int64[3] t = {3, 2, 4}>"
        "{ p = Gemm(x, w)  y = Reshape(p, t) }",
        {},
        "y.rows[3,2,5] = Reshape(x, const[3])\ny[3,2,4] = MatMul(y.rows, w)",
    ),
    "columns that get an axis stay with their product": (
        "g (float[6,5] x, float[5,4] w) => (float[6,2,2] y) <int64[3] t = {6, 2, 2}>"
        "{ p = Gemm(x, w)  y = Reshape(p, t) }",
        {},
        "p[6,4] = Gemm(x, w)\ny[6,2,2] = Reshape(p, const[3])",
    ),
    "constant comes second": (
        "g (float[2,3] x, float[3] c) => (float[2,3] y) { y = Mul(c, x) }",
        {"c": (3,)},
        "y[2,3] = Mul(x, const[3])",
    ),
    "sub of a constant, div by powers of two": (
        "g (float[2,3] x, float[3] c) => (float[2,3] y) <float[3] d = {2, -0.25, 1024}>"
        " { a = Sub(x, c)  y = Div(a, d) }",
        {"c": (3,)},
        "a[2,3] = Add(x, const[3])\ny[2,3] = Mul(a, const[3])",
    ),
    "division that rounds stays": (
        "g (float[2,3] x) => (float[2,3] y) <float[3] d = {2, 3, 4}> { y = Div(x, d) }",
        {},
        "y[2,3] = Div(x, const[3])",
    ),
    "neutral constants": (
        "g (float[2,3] x, int64[2] n) => (float[2,3] y, int64[2] m)"
        "<float zero = {-0.0}, float[1] one = {1}, int64 none = {0}>"
        "{ a = Add(x, zero)  b = Mul(one, a)  y = Relu(b)  c = Add(n, none)  m = Abs(c) }",
        {},
        "y[2,3] = Relu(x)\nm[2] = Abs(n)",
    ),
    "a zero that makes -0.0 another zero stays": (
        "g (float[2,3] x) => (float[2,3] y) <float zero = {0.0}> { y = Add(x, zero) }",
        {},
        "y[2,3] = Add(x, const[])",
    ),
    "neutral constant that broadcasts": (
        "g (float[3] x) => (float[2,3] y) <float[2,1] zero = {0, 0}> { y = Add(x, zero) }",
        {},
        "y[2,3] = Add(x, const[2,1])",
    ),
    "gemm": (
        "g (float[2,3] x, float[3,4] w, float[4] c) => (float[2,4] y) { y = Gemm<alpha = 0.5, beta = 2.0>(x, w, c) }",
        {"w": (3, 4), "c": (4,)},
        "y[2,4] = Gemm(x, const[3,4], const[4]) {transA=0, transB=0}",
    ),
    "clip": (
        "g (float[2,3] x) => (float[2,3] y) <float low = {0}, float high = {inf}> { y = Clip(x, low, high) }",
        {},
        "y[2,3] = Relu(x)",
    ),
    "clip without a bound makes infinities the largest number": (
        "g (float16[2,3] x, float16 low) => (float16[2,3] y) { y = Clip(x, low) }",
        {},
        "y[2,3] = Clip(x, low, const[])",
    ),
    "average pool of the plane with padding": (
        "g (float[1,2,6,6] x) => (float[1,2,1,1] y) { y = AveragePool<kernel_shape = [7, 7], pads = [0, 0, 1, 1]>(x) }",
        {},
        "y[1,2,1,1] = GlobalAveragePool(x)",
    ),
    "average pool that counts its padding stays": (
        "g (float[1,2,6,6] x) => (float[1,2,1,1] y)"
        "{ y = AveragePool<kernel_shape = [7, 7], pads = [0, 0, 1, 1], count_include_pad = 1>(x) }",
        {},
        "y[1,2,1,1] = AveragePool(x) {count_include_pad=1, kernel_shape=[7, 7], pads=[0, 0, 1, 1]}",
    ),
    "average pool of a part stays": (
        "g (float[1,2,6,6] x) => (float[1,2,1,1] y) { y = AveragePool<kernel_shape = [5, 5], strides = [2, 2]>(x) }",
        {},
        "y[1,2,1,1] = AveragePool(x) {kernel_shape=[5, 5], strides=[2, 2]}",
    ),
    "mean of the plane": (
        "g (float[1,2,6,5] x) => (float[1,2] y) <int64[2] axes = {-1, 2}> { y = ReduceMean<keepdims = 0>(x, axes) }",
        {},
        "y.pool[1,2,1,1] = GlobalAveragePool(x)\ny[1,2] = Reshape(y.pool, const[2])",
    ),
    "same upper": (
        "g (float[1,2,6,5] x, float[3,2,3,2] w) => (float[1,3,3,3] y)"
        '{ y = Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w) }',
        {"w": (3, 2, 3, 2)},
        "y[1,3,3,3] = Conv(x, const[3,2,3,2]) {pads=[0, 0, 1, 1], strides=[2, 2]}",
    ),
    "same lower": (
        'g (float[1,2,6,5] x) => (float[1,2,6,5] y) { y = MaxPool<auto_pad = "SAME_LOWER", kernel_shape = [2, 4]>(x) }',
        {},
        "y[1,2,6,5] = MaxPool(x) {kernel_shape=[2, 4], pads=[1, 2, 0, 1]}",
    ),
    "mean and variance": (
        "g (float[2,3,4] x) => (float[2,3,4] y) { y = MeanVarianceNormalization<axes = [0, -1]>(x) }",
        {},
        "meanvariancenormalization0.mean[1,3,1] = ReduceMean(x, const[2])\n"
        "meanvariancenormalization0.centred[2,3,4] = Sub(x, meanvariancenormalization0.mean)\n"
        "meanvariancenormalization0.squares[2,3,4] = "
        "Mul(meanvariancenormalization0.centred, meanvariancenormalization0.centred)\n"
        "meanvariancenormalization0.variance[1,3,1] = ReduceMean(meanvariancenormalization0.squares, const[2])\n"
        "meanvariancenormalization0.deviation[1,3,1] = Sqrt(meanvariancenormalization0.variance)\n"
        "y[2,3,4] = Div(meanvariancenormalization0.centred, meanvariancenormalization0.deviation)",
    ),
    "windows of a convolution that leave out more than they overlap": (
        "g (float[1,2,6,7] x, float[3,2,1,1] w) => (float[1,3,1,1] y)"
        '{ y = Conv<auto_pad = "SAME_UPPER", strides = [6, 7]>(x, w) }',
        {"w": (3, 2, 1, 1)},
        "conv0.cropped[1,2,4,5] = Slice(x, const[2], const[2], const[2])\n"
        "y[1,3,1,1] = Conv(conv0.cropped, const[3,2,1,1]) {pads=[0, 0, 0, 0], strides=[6, 7]}",
    ),
    "and of one of bytes": (
        "g (uint8[1,2,6,7] x, uint8[3,2,1,1] w) => (int32[1,3,1,1] y)"
        '{ y = ConvInteger<auto_pad = "SAME_LOWER", strides = [6, 7]>(x, w) }',
        {},
        "convinteger0.cropped[1,2,5,5] = Slice(x, const[2], const[2], const[2])\n"
        "y[1,3,1,1] = ConvInteger(convinteger0.cropped, w) {pads=[0, 0, 0, 0], strides=[6, 7]}",
    ),
    "and of a pool": (
        "g (float[1,2,6,7] x) => (float[1,2,1,2] y)"
        '{ y = LpPool<auto_pad = "SAME_LOWER", kernel_shape = [1, 2], strides = [6, 4]>(x) }',
        {},
        "lppool0.cropped[1,2,4,7] = Slice(x, const[1], const[1], const[1])\n"
        "y[1,2,1,2] = LpPool(lppool0.cropped) {kernel_shape=[1, 2], pads=[0, 0, 0, 0], strides=[6, 4]}",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(rewrite, name: str) -> None:
    text, weights, expected = CASES[name]
    after, result = rewrite(Normalize(), text, weights)
    assert after == expected
    assert result.refusals == ()


BATCH_NORM = """
g (float[2,3,4,4] x, float[3] s, float[3] b, float[3] m) => (float[2,3,4,4] y) <float[3] v = {0.5, 1.0, 2.0}>
{ y = BatchNormalization<epsilon = 0.001>(x, s, b, m, v) }
"""


def test_batch_normalization(rewrite) -> None:
    after, _ = rewrite(Normalize(), BATCH_NORM, {"s": (3,), "b": (3,), "m": (3,)})
    assert after == "y.mul[2,3,4,4] = Mul(x, const[1,3,1,1])\ny[2,3,4,4] = Add(y.mul, const[1,3,1,1])"


def test_equal_constants_are_shared(rewrite) -> None:
    text = """
    g (float[2] x) => (float[2] y) <float[2] a = {1.5, 2}, float[2] b = {1.5, 2}, float[1,2] c = {1.5, 2}>
    { p = Add(x, a)  q = Mul(p, b)  r = Min(q, c)  y = Squeeze(r) }
    """
    after, result = rewrite(Normalize(), text)
    assert after.count("const[2]") == 2
    assert len(result.model.graph.initializers) == 2


REFUSED = {
    "parameters of BatchNormalization are not constant": (BATCH_NORM, {"s": (3,)}),
    "a matrix that is not constant": (
        "g (float[2,3] x, float[3,4] w) => (float[2,4] y) { y = Gemm<alpha = 0.5>(x, w) }",
        {},
    ),
    "Gemm gemm0 before it transposes": (
        "g (float[6,5] x, float[4,5] w) => (float[3,2,4] y) <int64[3] t = {3, 2, 4}>"
        "{ p = Gemm<transB = 1>(x, w)  y = Reshape(p, t) }",
        {},
    ),
    "Gemm gemm0 before it has other uses": (
        "g (float[6,5] x, float[5,4] w) => (float[3,2,4] y, float[6,4] p) <int64[3] t = {3, 2, 4}>"
        "{ p = Gemm(x, w)  y = Reshape(p, t) }",
        {},
    ),
    "the bias of Gemm gemm0 differs from row to row": (
        "g (float[6,5] x, float[5,4] w, float[6,4] b) => (float[3,2,4] y) <int64[3] t = {3, 2, 4}>"
        "{ p = Gemm(x, w, b)  y = Reshape(p, t) }",
        {},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusal(rewrite, reason: str) -> None:
    text, weights = REFUSED[reason]
    after, result = rewrite(Normalize(), text, weights)
    assert [reason in refusal.reason for refusal in result.refusals] == [True]
    assert not result.modified


def test_division_by_zero_and_by_integers_stays(rewrite) -> None:
    text = "g (float[2] x, int64[2] n) => (float[2] y, int64[2] m) <float[2] c = {0, 2}, int64 k = {3}>"
    after, result = rewrite(Normalize(), text + "{ y = Div(x, c)  m = Div(n, k) }")
    assert not result.modified
    assert after.count("Div") == 2


def test_provenance() -> None:
    import onnx_ir as ir

    model = ir.from_onnx_text('<ir_version: 11, opset_import: ["": 20]>' + BATCH_NORM)
    node = model.graph[0]
    node.name = "norm"
    for name in "sbm":
        value = next(v for v in model.graph.inputs if v.name == name)
        value.const_value = ir.Tensor(np.ones(3, np.float32), name=name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    Normalize()(model)
    assert [(n.metadata_props["graphopt.origin"], n.metadata_props["graphopt.rule"]) for n in model.graph] == [
        ("norm", "normalize")
    ] * 2
