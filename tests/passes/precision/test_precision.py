"""before -> after; `halve` checks validity, types, numbers in ONNX Runtime and idempotence each time."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import pytest

from graphopt.errors import PipelineError
from graphopt.modes import Precision as Format
from graphopt.passes import Precision
from graphopt.passes.precision.cut import FLOAT, HALF, Tensor, choose, cost
from graphopt.pipeline.pipeline import Pipeline
from graphopt.verify.oracle import random_inputs, run_onnxruntime
from tests.helpers.halved import halve, listing, parse, reasons

CASES = {
    "a chain of products": (
        "g (float[2,8] x, float[8,8] w, float[8] b) => (float[2,8] y)"
        "{ p = Gemm(x, w, b)  r = Relu(p)  y = MatMul(r, w) }",
        {"w": (8, 8), "b": (8,)},
        "x.float16:h = Cast(x)\np:h = Gemm(x.float16, const[8,8]h, const[8]h)\nr:h = Relu(p)\n"
        "y.float16:h = MatMul(r, const[8,8]h)\ny = Cast(y.float16)",
    ),
    "softmax between products": (
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { p = MatMul(x, w)  s = Softmax(p)  y = MatMul(s, w) }",
        {"w": (8, 8)},
        "x.float16:h = Cast(x)\np:h = MatMul(x.float16, const[8,8]h)\np.float32 = Cast(p)\ns = Softmax(p.float32)\n"
        "s.float16:h = Cast(s)\ny.float16:h = MatMul(s.float16, const[8,8]h)\ny = Cast(y.float16)",
    ),
    "what moves numbers is cast where they are few": (
        "g (float[2,2] x, float[8,8] w) => (float[2,8] y)"
        "<int64[2] t = {1, 4}> { e = Tile(x, t)  r = Relu(e)  y = MatMul(r, w) }",
        {"w": (8, 8)},
        "x.float16:h = Cast(x)\ne:h = Tile(x.float16, const[2]i)\nr:h = Relu(e)\n"
        "y.float16:h = MatMul(r, const[8,8]h)\ny = Cast(y.float16)",
    ),
    "between float32 operators nothing is cast": (
        "g (float[2,8] x) => (float[2,8] y) { a = Exp(x)  b = Relu(a)  y = Softmax(b) }",
        {},
        "a = Exp(x)\nb = Relu(a)\ny = Softmax(b)",
    ),
    "read in half and in float32": (
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y, float[2,8] z, float[2,8] p)"
        "{ p = MatMul(x, w)  y = Softmax(p)  q = LogSoftmax(p)  z = MatMul(p, w) }",
        {"w": (8, 8)},
        "x.float16:h = Cast(x)\np.float16:h = MatMul(x.float16, const[8,8]h)\np = Cast(p.float16)\ny = Softmax(p)\n"
        "q = LogSoftmax(p)\nz.float16:h = MatMul(p.float16, const[8,8]h)\nz = Cast(z.float16)",
    ),
    "one cast of an input for two products": (
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { p = MatMul(x, w)  q = Gemm(x, w)  y = Add(p, q) }",
        {"w": (8, 8)},
        "x.float16:h = Cast(x)\np:h = MatMul(x.float16, const[8,8]h)\nq:h = Gemm(x.float16, const[8,8]h)\n"
        "y.float16:h = Add(p, q)\ny = Cast(y.float16)",
    ),
    "a weight read in half and in float32": (
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { p = MatMul(x, w)  e = Exp(w)  s = Softmax(p)"
        " y = Gemm(s, e) }",
        {"w": (8, 8)},
        "x.float16:h = Cast(x)\np:h = MatMul(x.float16, const[8,8]h)\ne = Exp(const[8,8])\np.float32 = Cast(p)\n"
        "s = Softmax(p.float32)\ns.float16:h = Cast(s)\ne.float16:h = Cast(e)\n"
        "y.float16:h = Gemm(s.float16, e.float16)\ny = Cast(y.float16)",
    ),
    "a constant in half saves its cast": (
        "g (int64[4] i, float[6,8] t, float[8,8] w) => (float[4,8] y)"
        "{ e = Gather(t, i)  p = MatMul(e, w)  y = Softmax(p) }",
        {"t": (6, 8), "w": (8, 8)},
        "e:h = Gather(const[6,8]h, i)\np:h = MatMul(e, const[8,8]h)\np.float32 = Cast(p)\ny = Softmax(p.float32)",
    ),
    "casts of the model are used, turned back ones dropped": (
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y)"
        "{ a = Cast<to = 10>(x)  b = Cast<to = 1>(a)  p = MatMul(b, w)  c = Cast<to = 10>(p)  d = Relu(c)"
        " e = Cast<to = 1>(d)  y = Softmax(e) }",
        {"w": (8, 8)},
        "a:h = Cast(x)\np:h = MatMul(a, const[8,8]h)\nd:h = Relu(p)\ne = Cast(d)\ny = Softmax(e)",
    ),
    "attention masks beyond the range are raised": (
        "g (float[2,3,5,4] q, float[2,3,5,4] k, bool[1,1,1,5] c, float[5,5] m) => (float[2,3,5,4] y)"
        "<float z = {0}, float low = {-3.4e38}> { w = Where(c, z, low)"
        " a = graphopt.AttentionMasked<scale = 0.5>(q, k, k, w)"
        " y = graphopt.AttentionMasked<scale = 0.5>(a, k, k, m) }",
        {"m": np.triu(np.full((5, 5), -3.4e38, np.float32), 1)},
        "w:h = Where(c, const[]h, const[]h)\nq.float16:h = Cast(q)\nk.float16:h = Cast(k)\n"
        "a:h = AttentionMasked(q.float16, k.float16, k.float16, w)\n"
        "y.float16:h = AttentionMasked(a, k.float16, k.float16, const[5,5]h)\ny = Cast(y.float16)",
    ),
    "a mask made in float32 is raised after its cast": (
        "g (float[2,3,5,4] q, bool[1,1,1,5] c) => (float[2,3,5,4] y) <float low = {-1e38}>"
        "{ e = Cast<to = 1>(c)  f = Mul(e, low)  y = graphopt.AttentionMasked<scale = 0.5>(q, q, q, f) }",
        {},
        "e = Cast(c)\nf = Mul(e, const[])\nq.float16:h = Cast(q)\nf.float16:h = Cast(f)\n"
        "f.raised:h = Max(f.float16, const[]h)\n"
        "y.float16:h = AttentionMasked(q.float16, q.float16, q.float16, f.raised)\ny = Cast(y.float16)",
    ),
    "numbers that are no float32 stay": (
        "g (double[2,8] x, int64[2] i, double[8,8] w) => (double[2,8] y, int64[2] j)"
        "{ y = MatMul(x, w)  j = Add(i, i) }",
        {"w": (8, 8)},
        "y:d = MatMul(x, const[8,8]d)\nj:i = Add(i, i)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_rewrite(name: str) -> None:
    text, weights, expected = CASES[name]
    model, _ = halve(text, weights)
    assert listing(model) == expected


def test_convolutions() -> None:
    """A residual block: products, the sum and poolings in half, the mean over the plane in float32."""
    model, result = halve(
        "g (float[1,3,16,16] x, float[8,3,3,3] w, float[8] b, float[8,8,3,3] v, float[8,1,5,5] d, float[8,5] f)"
        " => (float[1,5] y) <int64[2] n = {1, 8}, float lo = {0}, float hi = {6}> {"
        " c = Conv<pads = [1,1,1,1]>(x, w, b)  r = Clip(c, lo, hi)  e = Conv<pads = [1,1,1,1]>(r, v, b)  s = Add(r, e)"
        " t = Relu(s)  g1 = Conv<group = 8, pads = [2,2,2,2]>(t, d, b)  m = MaxPool<kernel_shape = [2,2]>(g1)"
        " a = AveragePool<kernel_shape = [3,3]>(m)  p = GlobalAveragePool(a)  h = Reshape(p, n)  y = MatMul(h, f) }",
        {"w": (8, 3, 3, 3), "b": (8,), "v": (8, 8, 3, 3), "d": (8, 1, 5, 5), "f": (8, 5)},
    )
    assert reasons(result) == {"globalaveragepool8": "GlobalAveragePool adds up many numbers, which needs float32"}
    assert Counter(node.op_type for node in model.graph)["Cast"] == 4
    for node in model.graph:
        if node.op_type == "Conv":
            assert {value.dtype for value in node.inputs} == {ir.DataType.FLOAT16}
    assert "10 nodes compute in float16, 1 in float32; 4 casts move" in result.notes[0]


def test_transformer() -> None:
    """Softmax in float32; what lies between two products in half, normalization of halves too."""
    model, result = halve(
        "g (float[2,5,8] x, float[8] g1, float[8] b1, float[8,8] w, float[8,16] u, float[16,8] v) => (float[2,5,8] y)"
        "<float k = {0.35}> { n = LayerNormalization(x, g1, b1)  q = MatMul(n, w)"
        " t = Transpose<perm = [0,2,1]>(q)  s = MatMul(q, t)  z = Mul(s, k)  p = Softmax(z)  o = MatMul(p, q)"
        " r = Add(x, o)  l = LayerNormalization(r, g1, b1)  h = MatMul(l, u)  e = Gelu(h)  f = MatMul(e, v)"
        " y = Add(r, f) }",
        {"g1": (8,), "b1": (8,), "w": (8, 8), "u": (8, 16), "v": (16, 8)},
    )
    in_half = {node.name for node in model.graph if node.outputs[0].dtype == ir.DataType.FLOAT16}
    assert {"layernormalization0", "matmul1", "transpose2", "matmul3", "mul4", "matmul6"} <= in_half
    assert {"add7", "layernormalization8", "matmul9", "gelu10", "matmul11", "add12"} <= in_half
    assert reasons(result) == {"softmax5": "Softmax sums exponentials, which needs float32"}
    assert Counter(node.op_type for node in model.graph)["Cast"] == 4


REFUSED = {
    "w holds 1e+05, beyond the largest float16, 6.55e+04": (
        "g (float[2,8] x, float[8,8] w, float[8,8] v) => (float[2,8] y) { p = MatMul(x, w)  y = MatMul(p, v) }",
        {"w": np.full((8, 8), 1e5), "v": np.full((8, 8), 1e-5)},
    ),
    "w would change by 0.87 %, because 100 % of its numbers are below the smallest normal float16, 6.1e-05": (
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { y = MatMul(x, w) }",
        {"w": np.full((8, 8), 1.3e-6)},
    ),
    "t holds 1e+30, beyond the largest float16, 6.55e+04": (
        "g (float[2,8] x, float[8,8] w, float[8] t) => (float[2,8] y) { p = MatMul(x, w)  m = Min(p, t)"
        " y = MatMul(m, w) }",
        {"w": (8, 8), "t": np.full(8, 1e30)},
    ),
    "AveragePool adds up more than 16 numbers, which needs float32": (
        "g (float[1,2,9,9] x) => (float[1,2,1,1] y) { y = AveragePool<kernel_shape = [9,9]>(x) }",
        {},
    ),
    "LayerNormalization is to find its deviation in the type of its numbers": (
        "g (float[2,8] x, float[8,8] w, float[8] s) => (float[2,8] y) { p = MatMul(x, w)"
        " n = LayerNormalization<stash_type = 16>(p, s)  y = MatMul(n, w) }",
        {"w": (8, 8), "s": (8,)},
    ),
    "LayerNormalization also gives its mean or deviation, which stay float32": (
        "g (float[2,8] x, float[8,8] w, float[8] s) => (float[2,8] y, float[2,1] m) { p = MatMul(x, w)"
        " n, m = LayerNormalization(p, s)  y = MatMul(n, w) }",
        {"w": (8, 8), "s": (8,)},
    ),
    "squares can leave the range of half numbers": (
        "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { p = MatMul(x, w)  m = Mul(p, p)  y = MatMul(m, w) }",
        {"w": (8, 8)},
    ),
    "the indices of MaxPool decide by comparing, and rounding makes ties": (
        "g (float[1,2,4,4] x) => (float[1,2,2,2] y, int64[1,2,2,2] i)"
        "{ y, j = MaxPool<kernel_shape = [2,2], strides = [2,2]>(x)  i = Neg(j) }",
        {},
    ),
    "ArgMax decides by comparing, and rounding makes ties": (
        "g (float[2,8] x) => (int64[2,1] y) { y = ArgMax<axis = 1>(x) }",
        {},
    ),
    "Exp can leave the range of half numbers": ("g (float[2,8] x) => (float[2,8] y) { y = Exp(x) }", {}),
    "Atan is not known to be safe in half": ("g (float[2,8] x) => (float[2,8] y) { y = Atan(x) }", {}),
    "its neighbours compute in float32, so casts would move more than half saves": (
        "g (float[2,8] x) => (float[2,8] y) { y = Relu(x) }",
        {},
    ),
    "graphopt.GlobalAveragePoolBlocked is not known in half; run precision before the pass that makes it": (
        "g (float[1,1,4,4,8] x) => (float[1,1,1,1,8] y) { y = graphopt.GlobalAveragePoolBlocked(x) }",
        {},
    ),
    "the body of a branch or loop reads its result": (
        "g (float[2,8] x, float[8,8] w, bool c) => (float[2,8] y) { p = MatMul(x, w)  y = If(c) <"
        " then_branch = a () => (float[2,8] u) { u = Relu(p) }, else_branch = b () => (float[2,8] v) { v = Neg(p) }> }",
        {"w": (8, 8)},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusal(reason: str) -> None:
    text, weights = REFUSED[reason]
    _, result = halve(text, weights)
    assert reason in reasons(result).values()


def test_tf32_marks_products() -> None:
    text = "g (float[2,8] x, float[8,8] w) => (float[2,8] y) { p = MatMul(x, w)  y = Relu(p) }"
    model = parse(text, {"w": (8, 8)})
    before = listing(model)
    result = Precision(Format.TF32)(model)
    assert result.modified
    assert listing(model) == before
    assert [node.metadata_props.get("graphopt.precision") for node in model.graph] == ["tf32", None]
    assert result.notes == ("products that may round their factors to TF32: 1; sums and all tensors stay float32",)
    assert not Precision(Format.TF32)(model).modified
    assert Precision(Format.FP16)(model).modified
    assert all("graphopt.precision" not in node.metadata_props for node in model.graph)


def test_spelling() -> None:
    assert str(Pipeline.parse("normalize,precision{to=fp16}")) == "normalize,precision{to=fp16}"
    assert not Pipeline.parse("precision").run(parse(CASES["softmax between products"][0])).steps[0].modified
    with pytest.raises(PipelineError, match="one of fp32, tf32, fp16, bf16"):
        Pipeline.parse("precision{to=fp8}")


@pytest.mark.parametrize("seed", range(40))
def test_no_choice_is_cheaper_than_the_cut(seed: int) -> None:
    generator = np.random.default_rng(seed)
    nodes = [f"n{i}" for i in range(int(generator.integers(1, 8)))]
    ends = [HALF, FLOAT, *nodes]
    extra = {node: int(generator.integers(0, 5)) for node in nodes}
    tensors = [
        Tensor(
            ends[generator.integers(len(ends))],
            frozenset(ends[i] for i in generator.integers(len(ends), size=generator.integers(1, 4))),
            int(generator.integers(0, 9)),
        )
        for _ in range(12)
    ]
    subsets: Sequence[tuple[str, ...]] = [s for n in range(len(nodes) + 1) for s in itertools.combinations(nodes, n)]
    costs = {frozenset(subset): cost(extra, tensors, subset) for subset in subsets}
    chosen = choose(extra, tensors)
    assert costs[chosen] == min(costs.values())
    assert all(subset <= chosen for subset, total in costs.items() if total == costs[chosen]), "not the largest half"


def test_a_row_masked_everywhere_stays_a_number() -> None:
    text, weights, _ = CASES["attention masks beyond the range are raised"]
    model, _ = halve(text, weights)
    feeds = {**random_inputs(model, 0), "c": np.zeros((1, 1, 1, 5), np.bool_)}
    assert np.isfinite(run_onnxruntime(model, feeds)["y"]).all()
