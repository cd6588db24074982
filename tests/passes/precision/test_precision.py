"""before -> after; `halve` checks validity, types, numbers in ONNX Runtime and idempotence each time."""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import onnx.reference
import onnx_ir as ir
import onnx_ir.passes.common
import pytest

import graphopt
from graphopt.errors import PipelineError
from graphopt.modes import Precision as Format
from graphopt.passes import Precision
from graphopt.passes.precision.cut import FLOAT, HALF, Tensor, choose, cost
from graphopt.passes.precision.nodes import unfit
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pass_base import PassResult
from graphopt.pipeline.pipeline import Event, Pipeline
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal

SHORT = {"FLOAT": "", "FLOAT16": "h", "BFLOAT16": "b", "DOUBLE": "d", "INT64": "i", "BOOL": "?"}
CLOSE = {"float32": Tolerance(1e-2, 1e-3), "float16": Tolerance(1e-2, 1e-3)}
"""Float32 outputs of a model that computes in float16."""


def parse(text: str, weights: Mapping[str, object] | None = None, opset: int = 20) -> ir.Model:
    """A model from ONNX text; inputs named in `weights` become those numbers, or random ones of that extents."""
    model = ir.from_onnx_text(f'<ir_version: 11, opset_import: ["": {opset}, "graphopt": 1]>\n{text}')
    generator = np.random.default_rng(0)
    for value in list(model.graph.inputs):
        given = (weights or {}).get(str(value.name))
        if given is None:
            continue
        array = given if isinstance(given, np.ndarray) else generator.uniform(0.5, 1.5, given)
        value.const_value = ir.Tensor(np.asarray(array, value.dtype.numpy()), name=value.name)
        value.shape = ir.Shape(array.shape)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    for number, node in enumerate(model.graph.all_nodes()):
        node.name = f"{node.op_type.lower()}{number}"
        if node.domain == "graphopt":
            graphopt.ops.ensure(model, node.op_type)
    ir.passes.common.ShapeInferencePass()(model)
    return model


def listing(model: ir.Model) -> str:
    """One line per node, the letter of its type behind each value and constant: none for float32, h for float16."""

    def letter(value: ir.Value) -> str:
        return SHORT[value.dtype.name]

    def argument(value: ir.Value | None) -> str:
        if value is None:
            return "-"
        extents = ",".join(map(str, value.shape or ()))
        return f"const[{extents}]{letter(value)}" if value.is_initializer() else f"{value.name}"

    return "\n".join(
        ", ".join(f"{value.name}:{letter(value)}" if letter(value) else str(value.name) for value in node.outputs)
        + f" = {node.op_type}({', '.join(map(argument, node.inputs))})"
        for node in model.graph
    )


def check_types(model: ir.Model) -> None:
    """Types and shapes on all values are those that inference finds."""
    inferred = model.clone()
    outputs = set(inferred.graph.outputs)
    for node in inferred.graph:
        for value in node.outputs:
            if value not in outputs:
                value.type = value.shape = None
    ir.passes.common.ShapeInferencePass()(inferred)
    mine = {v.name: (v.dtype, v.shape) for node in model.graph for v in node.outputs}
    found = {v.name: (v.dtype, v.shape) for node in inferred.graph for v in node.outputs if v.dtype is not None}
    assert found
    for name, (dtype, shape) in found.items():  # of some GroupNormalization inference finds no shape
        assert mine[name] == (dtype, mine[name][1] if shape is None else shape)


def halve(
    text: str, weights: Mapping[str, object] | None = None, to: str = "fp16", opset: int = 20, *, execute: bool = True
) -> tuple[ir.Model, PassResult]:
    model = parse(text, weights, opset)
    before = listing(model)
    ports = [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)]
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(model, feeds)
    each = Precision(Format(to))
    result = each(model)
    assert isinstance(result, PassResult)
    assert result.modified == (listing(model) != before), "the result lies about what was modified"
    Check()(Event(1, each.name, model, None))
    check_types(model)
    assert [(v.name, v.dtype, v.shape) for v in (*model.graph.inputs, *model.graph.outputs)] == ports
    assert all(value.uses() or value.is_graph_output() for value in model.graph.initializers.values())
    casts = [(node.inputs[0], node.outputs[0].dtype) for node in model.graph if node.op_type == "Cast"]
    assert len(set(casts)) == len(casts), "a value is cast twice"
    if execute:
        require_equal(expected, run_onnxruntime(model, feeds), "after the pass", CLOSE)
    after = listing(model)
    assert not each(model).modified, listing(model)
    assert listing(model) == after
    return model, result


def reasons(result: PassResult) -> dict[str, str]:
    return {refusal.node: refusal.reason for refusal in result.refusals}


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


NORMALIZATIONS = {
    "LayerNormalization(p, s, b)": (20, 8),
    "RMSNormalization(p, s)": (23, 8),
    "GroupNormalization<num_groups = 2>(p, s, b)": (21, 4),
    "InstanceNormalization(p, s, b)": (22, 4),
}


@pytest.mark.parametrize("to", ["fp16", "bf16"])
@pytest.mark.parametrize("call", NORMALIZATIONS)
def test_normalizations_of_halves(call: str, to: str) -> None:
    """Those between products are in half, as far as operators know that type."""
    opset, extent = NORMALIZATIONS[call]
    names = ("s", "b") if "b)" in call else ("s",)
    model, result = halve(
        f"g (float[2,4,3,8] x, float[8,8] w, {', '.join(f'float[{extent}] {name}' for name in names)})"
        f" => (float[2,4,3,8] y) <float far = {{4}}> {{ m = MatMul(x, w)  p = Add(m, far)  n = {call}"
        " y = MatMul(n, w) }",
        {"w": (8, 8), **dict.fromkeys(names, (extent,))},
        to,
        opset,
        execute=to == "fp16",
    )
    assert not reasons(result)
    assert Counter(node.op_type for node in model.graph)["Cast"] == 2
    norm = next(node for node in model.graph if node.op_type.endswith("Normalization"))
    assert len({value.dtype for value in (*norm.inputs, *norm.outputs)}) == 1


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


def test_small_numbers_beside_large_ones_are_no_loss() -> None:
    weights = np.geomspace(1e-12, 1, 1000, dtype=np.float32)
    assert unfit(weights, ir.DataType.FLOAT16, "w") is None
    assert unfit(weights[:500], ir.DataType.FLOAT16, "w") is not None
    assert unfit(weights[:500], ir.DataType.BFLOAT16, "w") is None


def test_a_row_masked_everywhere_stays_a_number() -> None:
    text, weights, _ = CASES["attention masks beyond the range are raised"]
    model, _ = halve(text, weights)
    feeds = {**random_inputs(model, 0), "c": np.zeros((1, 1, 1, 5), np.bool_)}
    assert np.isfinite(run_onnxruntime(model, feeds)["y"]).all()


def test_bfloat16_matches_the_reference() -> None:
    """ONNX Runtime has no bfloat16 kernels on CPUs; the reference evaluator has."""
    text = (
        "g (float[2,8] x, float[8,8] w, float[8] b) => (float[2,8] y)"
        "{ p = MatMul(x, w)  a = Add(p, b)  r = Relu(a)  s = Softmax(r)  y = Gemm(s, w, b) }"
    )
    weights = {"w": (8, 8), "b": (8,)}
    model, result = halve(text, weights, "bf16", execute=False)
    assert listing(model) == (
        "x.bfloat16:b = Cast(x)\np:b = MatMul(x.bfloat16, const[8,8]b)\na:b = Add(p, const[8]b)\nr:b = Relu(a)\n"
        "r.float32 = Cast(r)\ns = Softmax(r.float32)\ns.bfloat16:b = Cast(s)\n"
        "y.bfloat16:b = Gemm(s.bfloat16, const[8,8]b, const[8]b)\ny = Cast(y.bfloat16)"
    )
    assert all(value.const_value.numpy().dtype == ml_dtypes.bfloat16 for value in model.graph.initializers.values())
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(parse(text, weights), feeds)
    actual = onnx.reference.ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    require_equal(expected, {"y": actual[0]}, "bfloat16", {"float32": Tolerance(4e-2, 1e-2)})


@pytest.mark.parametrize("opset", [20, 22])
def test_bfloat16_convolutions_get_their_opset(opset: int) -> None:
    text = "g (float[1,3,8,8] x, float[4,3,3,3] w) => (float[1,4,6,6] y) { c = Conv(x, w)  y = Relu(c) }"
    model, result = halve(text, {"w": (4, 3, 3, 3)}, "bf16", opset=opset, execute=False)
    assert model.opset_imports[""] == 22
    assert any("opset 22 is the first" in note for note in result.notes) == (opset == 20)
    assert listing(model) == (
        "x.bfloat16:b = Cast(x)\nc:b = Conv(x.bfloat16, const[4,3,3,3]b)\ny.bfloat16:b = Relu(c)\ny = Cast(y.bfloat16)"
    )


def test_an_opset_is_not_raised_over_what_would_mean_something_else() -> None:
    text = (
        "g (float[1,4,8,8] x, float[4,4,3,3] w, float[2] s, float[2] b) => (float[1,4,6,6] y)"
        "{ c = Conv(x, w)  y = GroupNormalization<num_groups = 2>(c, s, b) }"
    )
    model = parse(text, {"w": (4, 4, 3, 3), "s": (2,), "b": (2,)})
    result = Precision(Format.BF16)(model)
    assert isinstance(result, PassResult)
    assert model.opset_imports[""] == 20
    assert reasons(result)["conv0"] == "Conv of opset 20 has no bfloat16; opset 22 has"
    assert not result.modified


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


ZOO = {"lenet-digits": 2, "mobilenetv2": 4}
"""Model and its casts: at the input, around the mean over the plane if there is one, at the output."""


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str) -> None:
    model = graphopt.load(f"zoo:{name}").model
    Pipeline.parse("normalize,fuse").run(model)
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(model, feeds)
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT)
    step = Pipeline.parse("precision{to=fp16}").run(model, [Check()]).steps[0]
    assert step.modified
    check_types(model)
    products = [node for node in model.graph if node.op_type in ("Conv", "Gemm")]
    assert {value.dtype for node in products for value in node.inputs} == {ir.DataType.FLOAT16}
    assert Counter(node.op_type for node in model.graph)["Cast"] == ZOO[name]
    assert all("GlobalAveragePool" in refusal.reason for refusal in step.refusals)
    halves = [v.const_value for v in model.graph.initializers.values() if v.dtype == ir.DataType.FLOAT16]
    assert sum(tensor.nbytes for tensor in halves) <= weights / 2
    require_equal(expected, run_onnxruntime(model, feeds), name, CLOSE)
    assert not Precision(Format.FP16)(model).modified
