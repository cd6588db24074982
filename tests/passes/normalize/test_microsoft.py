"""Operators of com.microsoft become standard ones that compute what ONNX Runtime does, or stay, with a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

from graphopt.frontend import load
from graphopt.passes import Normalize
from graphopt.pipeline.pass_base import PassResult
from graphopt.verify.oracle import TOLERANCES, Tolerance, run_onnxruntime
from tests.helpers.equal import require_equal

B, S, L, D, N = 2, 5, 6, 8, 2
TYPES = {"float32": "float", "int32": "int32", "int64": "int64", "uint8": "uint8", "int8": "int8", "float16": "float16"}


def numbers(*shape: int) -> Any:
    return np.random.default_rng([6, *shape]).standard_normal(shape).astype(np.float32)


def read(body: str, feeds: dict[str, Any], constants: dict[str, Any]) -> ir.Model:
    """A loaded model whose outputs are the values of `body` whose names begin with y."""

    def declared(name: str, array: Any) -> str:
        return f"{TYPES[str(array.dtype)]}[{','.join(map(str, array.shape))}] {name}"

    inputs = ", ".join(declared(*item) for item in (feeds | constants).items())
    nodes = onnx.parser.parse_graph(f"g ({inputs}) => () {{ {body} }}")
    for name in constants:
        nodes.initializer.append(onnx.numpy_helper.from_array(constants[name], name))
    kept = [value for value in nodes.input if value.name not in constants]
    del nodes.input[:]
    nodes.input.extend(kept)
    nodes.output.extend(onnx.ValueInfoProto(name=o) for node in nodes.node for o in node.output if o.startswith("y"))
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("com.microsoft", 1)]
    return load.load(onnx.helper.make_model(nodes, opset_imports=opsets, ir_version=10)).model


def foreign(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph if node.domain == "com.microsoft"]


def rewritten(
    body: str, feeds: dict[str, Any], constants: dict[str, Any] | None = None, rtol: float = 2e-5
) -> ir.Model:
    """The model after normalize, in which nothing of com.microsoft is left and every value keeps its type."""
    model = read(body, feeds, constants or {})
    types = {value.name: (value.dtype, value.shape) for value in model.graph.outputs}
    assert all(shape is not None and shape.is_static() for _, shape in types.values())
    expected = run_onnxruntime(model, feeds)
    assert {name: array.shape for name, array in expected.items()} == {
        n: tuple(s.numpy()) for n, (_, s) in types.items()
    }
    assert Normalize()(model).modified
    assert foreign(model) == []
    assert {value.name: (value.dtype, value.shape) for value in model.graph.outputs} == types
    assert not [value for node in model.graph for value in node.outputs if value.shape is None or value.dtype is None]
    tolerances = dict(TOLERANCES) | {"float32": Tolerance(rtol, 1e-6)}
    require_equal(expected, run_onnxruntime(model, feeds), "after normalize", tolerances)
    assert not Normalize()(model).modified
    return model


def kept(body: str, feeds: dict[str, Any], constants: dict[str, Any] | None = None) -> PassResult:
    """The result for a model whose operators of com.microsoft stay."""
    model = read(body, feeds, constants or {})
    before = foreign(model)
    result = Normalize()(model)
    assert foreign(model) == before
    return result


def test_activations() -> None:
    x = numbers(2, 3, 8)
    x[0, 0, :4] = np.nan, np.inf, -np.inf, 0
    body = """
        y0 = com.microsoft.FastGelu(x)          y1 = com.microsoft.FastGelu(x, b)
        y2 = com.microsoft.BiasGelu(x, b)       y3 = com.microsoft.Gelu(x)
        y4 = com.microsoft.QuickGelu(x)         y5 = com.microsoft.QuickGelu<alpha = 1.0>(x)
    """
    rewritten(body, {"x": numbers(2, 3, 8), "b": numbers(8)})
    model = read("y = com.microsoft.QuickGelu(x)", {"x": x}, {})
    expected = run_onnxruntime(model, {"x": x})
    Normalize()(model)
    require_equal(expected, run_onnxruntime(model, {"x": x}), "special values")


def test_normalizations() -> None:
    nodes = []
    for number, skip in enumerate(("s", "t", "u")):
        nodes.append(f"y{number}a = com.microsoft.SkipLayerNormalization(x, {skip}, g)")
        nodes.append(f'y{number}b, "", "", y{number}c = com.microsoft.SkipLayerNormalization<epsilon = 0.001>'
                     f"(x, {skip}, g, h, b)")  # fmt: skip
        nodes.append(
            f'y{number}d, "", "", y{number}e = com.microsoft.SkipSimplifiedLayerNormalization(x, {skip}, g, b)'
        )
    feeds = {"x": numbers(2, 3, 8), "s": numbers(2, 3, 8) + 1, "t": numbers(1, 3, 8), "u": numbers(3, 8)}
    feeds["x"][1, 2], feeds["s"][1, 2] = 0.7, 0.3
    rewritten("\n".join(nodes), feeds, {"g": numbers(8), "h": numbers(8) + 1, "b": numbers(8) - 1})


def test_embeddings() -> None:
    generator = np.random.default_rng(2)
    feeds = {name: generator.integers(0, n, (2, 3)).astype(np.int32) for name, n in (("i", 9), ("s", 2), ("p", 5))}
    feeds["m"] = np.array([[1, 1, 0], [1, 1, 1]], np.int32)
    constants = {"w": numbers(9, 8), "o": numbers(6, 8), "t": numbers(2, 8), "g": numbers(8), "h": numbers(8) + 1}
    rewritten(
        """
        y0, y1 = com.microsoft.EmbedLayerNormalization(i, s, w, o, t, g, h)
        y2, y3, y4 = com.microsoft.EmbedLayerNormalization<epsilon = 0.001>(i, "", w, o, "", g, h, m)
        y5, y6 = com.microsoft.EmbedLayerNormalization(i, s, w, o, t, g, h, m, p)
        """, feeds, constants,
    )  # fmt: skip


def test_products() -> None:
    feeds = {"a": numbers(2, 3, 4), "c": numbers(2, 4, 3), "b": numbers(2, 4, 5), "d": numbers(2, 5, 4),
             "e": numbers(3, 2, 4), "f": numbers(4, 2, 3), "g": numbers(4, 2, 5), "m": numbers(3, 4)}  # fmt: skip
    nodes = [
        f"y{left}{right}{k} = com.microsoft.FusedMatMul<transA = {int(left == 'c')}, transB = {int(right == 'd')},"
        f" alpha = {alpha}>({left}, {right})"
        for left in "ac" for right in "bd" for k, alpha in enumerate((1.0, 0.25))
    ]  # fmt: skip
    nodes += [
        "ye = com.microsoft.FusedMatMul<transBatchA = 1>(e, b)",
        "yf = com.microsoft.FusedMatMul<transBatchA = 1, transA = 1>(f, b)",
        "yg = com.microsoft.FusedMatMul<transBatchB = 1>(a, g)",
    ]
    for number, activation in enumerate(("Relu", "Tanh", "Sigmoid", "LeakyRelu", "HardSigmoid", "Elu")):
        parameters = ", activation_alpha = 0.3" if number > 2 else ""
        parameters += ", activation_beta = 0.4" if activation == "HardSigmoid" else ""
        nodes.append(
            f'yx{number} = com.microsoft.FusedGemm<activation = "{activation}", alpha = 0.5, beta = 2.0{parameters}>'
            "(m, w, v)"
        )
    rewritten("\n".join(nodes), feeds, {"w": numbers(4, 5), "v": numbers(5)})


def test_convolutions_with_activations() -> None:
    nodes = [
        f'y{number} = com.microsoft.FusedConv<pads = [1, 1, 1, 1], activation = "{activation}"{parameters}>(x, w, b)'
        for number, (activation, parameters) in enumerate((
            ("Relu", ""), ("LeakyRelu", ", activation_params = [0.3]"), ("Clip", ", activation_params = [-1.0, 1.0]"),
            ("HardSigmoid", ", activation_params = [0.3, 0.4]"),
        ))
    ]  # fmt: skip
    nodes.append('yz = com.microsoft.FusedConv<pads = [1, 1, 1, 1], activation = "Relu">(x, w, b, z)')
    feeds = {"x": numbers(1, 3, 6, 7), "z": numbers(1, 4, 6, 7)}
    rewritten("\n".join(nodes), feeds, {"w": numbers(4, 3, 3, 3), "b": numbers(4)})


def test_quantization() -> None:
    feeds = {"x": numbers(3, 4), "u": np.arange(12, dtype=np.uint8).reshape(3, 4) * 20}
    constants = {"s": np.array(0.1, np.float32), "z": np.array(3, np.uint8), "i": np.array(-3, np.int8),
                 "v": np.array([0.1, 0.2, 0.3, 0.4], np.float32), "n": np.array([1, 2, 3, 4], np.uint8)}  # fmt: skip
    rewritten(
        """
        y0 = com.microsoft.QuantizeLinear(x, s, z)            y1 = com.microsoft.QuantizeLinear(x, s, i)
        y2 = com.microsoft.QuantizeLinear<axis = 1>(x, v, n)  y3 = com.microsoft.DequantizeLinear(u, s, z)
        y4 = com.microsoft.DequantizeLinear<axis = 1>(u, v, n)
        """, feeds, constants,
    )  # fmt: skip


MASKS = {
    "m": np.array([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]], np.int32), "ends": np.array([3, 5], np.int32),
    "both": np.array([4, 5, 0, 2], np.int32), "rows": np.tril(np.ones((B, S, S), np.int32)),
    "hidden": np.array([[0, 0, 1, 1, 1], [1, 0, 0, 0, 0]], np.int32), "empty": np.array([0, 5], np.int32),
    "long": np.array([[0, 1, 1, 1, 1, 1, 1, 0], [1] * 8], np.int32),
}  # fmt: skip


@pytest.mark.parametrize("causal", [0, 1])
def test_attention(causal: int) -> None:
    """Every form of mask, whole rows hidden, a past, and a bias on the scores."""
    common = f"num_heads = {N}, unidirectional = {causal}"
    nodes = [f"y{name} = com.microsoft.Attention<{common}>(x, w, b, {name})" for name in MASKS if name != "long"]
    nodes += [
        f"y0, y1 = com.microsoft.Attention<{common}, scale = 0.3>(x, w, b)",
        f'y2, y3 = com.microsoft.Attention<{common}>(x, w, b, "", past)',
        f"y4, y5 = com.microsoft.Attention<{common}, mask_filter_value = -3.0>(x, w, b, long, past)",
        f'y6 = com.microsoft.Attention<{common}>(x, w, b, m, "", bias)',
        f"y7 = com.microsoft.Attention<{common}, qkv_hidden_sizes = [8, 8, 4]>(x, v, c, m)",
    ]
    feeds = {"x": numbers(B, S, D), "past": numbers(2, B, N, 3, D // N), "bias": numbers(1, N, S, S)}
    constants = {"w": numbers(D, 3 * D), "b": numbers(3 * D), "v": numbers(D, 20), "c": numbers(20)} | MASKS
    rewritten("\n".join(nodes), feeds, constants)


def test_multi_head_attention() -> None:
    feeds = {"q": numbers(B, S, D), "k": numbers(B, L, D), "v": numbers(B, L, 12), "bias": numbers(1, N, S, L),
             "s": numbers(B, S, D) + 1, "p": numbers(B, N, 3, 4), "r": numbers(B, N, 3, 4) + 1,
             "h": numbers(B, N, L, 4), "t": numbers(B, N, L, 4) - 1, "wide": numbers(B, N, S, 8)}  # fmt: skip
    masks = {"ends": np.array([3, 6], np.int32), "m": np.array([[1, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1]], np.int32),
             "rows": np.tril(np.ones((B, S, L), np.int32)), "long": MASKS["long"]}  # fmt: skip
    nodes = [
        f"y{number} = com.microsoft.MultiHeadAttention<num_heads = {N}>(q, k, v, {operands})"
        for number, operands in enumerate(
            f"{b}, {m}, {a}" for b in ('""', "b") for m in ('""', "ends", "m", "rows") for a in ('""', "bias")
        )
    ]  # fmt: skip
    nodes.append(f"yh = com.microsoft.MultiHeadAttention<num_heads = {N}>(q, h, t)")
    for causal in (0, 1):
        common = f"num_heads = {N}, unidirectional = {causal}"
        nodes += [
            f"ya{causal}, yb{causal}, yc{causal} = com.microsoft.MultiHeadAttention<{common}, scale = 0.2>(q, s, s, c)",
            f"yd{causal}, ye{causal}, yf{causal} = com.microsoft.MultiHeadAttention<{common}>"
            '(q, s, s, c, "", "", p, r)',
            f"yg{causal}, yh{causal}, yi{causal} = com.microsoft.MultiHeadAttention<{common}>"
            '(q, s, s, "", long, wide, p, r)',
        ]
    rewritten("\n".join(nodes), feeds, {"b": numbers(2 * D + 12), "c": numbers(3 * D)} | masks)


def test_rotary_positions() -> None:
    heads, width = 4, 8
    feeds = {"x": numbers(B, S, heads * width), "h": numbers(B, heads, S, width)}
    constants: dict[str, Any] = {
        "c": numbers(20, 4),
        "s": numbers(20, 4) + 1,
        "d": numbers(20, 2),
        "t": numbers(20, 2) + 1,
    }
    constants |= {"p": np.random.default_rng(1).integers(0, 16, (B, S)), "o": np.array([3])}
    nodes = [
        f"y{x}{p}{i}{len(more)} = com.microsoft.RotaryEmbedding<interleaved = {i}{more}>({x}, {p}, {tables})"
        for x in feeds for p in ("p", "o") for i in (0, 1)
        for more, tables in (("", "c, s"), (", num_heads = 4, rotary_embedding_dim = 4", "d, t"))
    ]  # fmt: skip
    rewritten("\n".join(nodes), feeds, constants)


def test_group_query_attention() -> None:
    heads, groups, width = 4, 2, 16
    feeds = {
        "q": numbers(1, S, heads * width), "k": numbers(1, S, groups * width), "v": numbers(1, S, groups * width) + 1,
        "a": numbers(1, S, (heads + 2 * groups) * width), "p": numbers(1, groups, 3, width),
        "r": numbers(1, groups, 3, width) + 1, "l": np.array([S - 1], np.int32), "n": np.array([S], np.int32),
    }  # fmt: skip
    constants = {"l3": np.array([S + 2], np.int32), "n3": np.array(S + 3, np.int32), "c": numbers(20, 8),
                 "s": numbers(20, 8) + 1, "l0": np.array([S - 1], np.int32), "n0": np.array(S, np.int32)}  # fmt: skip
    nodes = []
    for i in (0, 1):
        common = f"num_heads = {heads}, kv_num_heads = {groups}, rotary_interleaved = {i}"
        turned = f"{common}, do_rotary = 1"
        nodes += [
            f'y0{i}, y1{i}, y2{i} = com.microsoft.GroupQueryAttention<{common}, scale = 0.3>(q, k, v, "", "", l0, n0)',
            f'y3{i} = com.microsoft.GroupQueryAttention<{turned}>(a, "", "", "", "", l, n, c, s)',
            f"y4{i}, y5{i}, y6{i} = com.microsoft.GroupQueryAttention<{turned}>(q, k, v, p, r, l3, n3, c, s)",
        ]
    rewritten("\n".join(nodes), feeds, constants)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ('y = com.microsoft.FusedGemm<activation = "Swish">(m, w)', "has the activation Swish, which is not known"),
        ('y = com.microsoft.MultiHeadAttention<num_heads = 2>(q, q, q, "", "", "", p, p)', "has a past but no present"),
        ("y = com.microsoft.MultiHeadAttention<num_heads = 2>(packed)", "q, k and v of MultiHeadAttention are packed"),
        ("y = com.microsoft.MultiHeadAttention<num_heads = 2, unidirectional = 1>(q, k, k)", "of another sequence"),
        ("y = com.microsoft.Attention<num_heads = 2, do_rotary = 1>(q, v, b)", "do_rotary of Attention has no rewrite"),
        ("y = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2>(q, q, q, p, p, l, n)", "at run time"),
        ('y = com.microsoft.GroupQueryAttention<num_heads = 2, kv_num_heads = 2, local_window_size = 2>'
         '(q, q, q, "", "", l, n)', "a window, a cap"),
    ],
)  # fmt: skip
def test_what_is_not_understood_stays(body: str, reason: str) -> None:
    feeds = {"m": numbers(3, 4), "w": numbers(4, 5), "packed": numbers(B, S, 2, 3, 4), "q": numbers(B, S, D),
             "k": numbers(B, L, D), "v": numbers(D, 3 * D), "b": numbers(3 * D), "p": numbers(B, 2, 3, 4),
             "l": np.array([4, 4], np.int32), "n": np.array([5], np.int32)}  # fmt: skip
    result = kept(body, feeds)
    assert [refusal.reason for refusal in result.refusals if reason in refusal.reason]
