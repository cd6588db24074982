"""Floating point is not algebra: what kernels compute is what the operators say, one rounding after the other."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest

import graphopt
from graphopt.targets.common.tir import ieee
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.equal import require_equal

ALGEBRA = """
    a0 = Add(x, big) a = Sub(a0, big)
    b = Sub(x, x)
    c = Div(x, x)
    d0 = Mul(x, big) d = Div(d0, big)
    e = Mul(x, zero)
    f0 = Sub(z, x) f = Add(f0, x)
    g0 = Equal(x, x) g = Not(g0)
    h0 = Less(x, z) h = Not(h0)
    i0 = GreaterOrEqual(x, z) i = Not(i0)
    j0 = Less(x, z) j1 = GreaterOrEqual(x, z) j = Or(j0, j1)
    k0 = Max(x, z) k = Max(k0, x)
    l0 = Mul(x, z) l1 = Mul(z, x) l = Sub(l0, l1)
    m0 = Mul(x, x) m1 = Mul(z, z) m = Sub(m0, m1)
    n0 = Sub(x, z) n1 = Sub(n0, x) n2 = Add(n1, z) n = Abs(n2)
    o0 = Reciprocal(x) o = Reciprocal(o0)
    p0 = Add(x, zero) p = Reciprocal(p0)
"""
OUTPUTS = "abcdefghijklmnop"
SPECIAL = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.5, 0.1, 1e-3, 12345.678, 2.5, 5e-324, 1e-40, 3e38, -3e38, 7.0]


def bits_agree(want: dict[str, Any], got: dict[str, Any]) -> None:
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, name)


def pairs(dtype: str) -> dict[str, Any]:
    with np.errstate(over="ignore"):
        values = np.array(SPECIAL).astype(dtype)
    return {"x": np.repeat(values, len(values)), "z": np.tile(values, len(values))}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nothing_is_simplified_as_if_floats_were_real_numbers(lab: Any, dtype: str) -> None:
    constants = {"big": np.array(1e30 if dtype == "float64" else 1e8, dtype), "zero": np.array(0.0, dtype)}
    feeds = pairs(dtype)
    model = lab.model(ALGEBRA, feeds, constants, outputs=tuple(OUTPUTS))
    bits_agree(run_onnxruntime(model, feeds), lab.execute(lab.lower(model), feeds))


@pytest.mark.parametrize("kinds", [(16,), (10,), (11,), (16, 10), (10, 16, 11)])
def test_conversions_there_and_back_round(kinds: tuple[int, ...]) -> None:
    """Through bfloat16 (16), float16 (10) and float64 (11), between other operators of the same kernel."""
    steps, last = "a = Add(x, x)", "a"
    for number, kind in enumerate(kinds):
        steps += f" b{number} = Cast<to={kind}>({last}) c{number} = Cast<to=1>(b{number})"
        last = f"c{number}"
    with np.errstate(over="ignore"):
        feeds = {"x": np.concatenate([np.array(SPECIAL).astype(np.float32), np.linspace(-3, 3, 48, dtype=np.float32)])}
    text = f"""
        <ir_version: 10, opset_import: ["" : 20]> g (float[64] x) => (float[64] y) {{
            {steps} d = Sub({last}, a) y = Max(d, {last})
        }}"""
    model = onnx.parser.parse_model(text)
    want = run_onnxruntime(ir.from_proto(model), feeds)
    bits_agree(want, graphopt.compile(model, fallback=False).session().run(feeds))


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_integers_wrap_around(lab: Any, dtype: str) -> None:
    limits = np.iinfo(dtype)
    feeds = {"x": np.array([limits.max, limits.min, 0, 1, -1, limits.max - 1], dtype)}
    constants = {"one": np.array(1, dtype), "least": np.array(limits.min, dtype)}
    body = "a0 = Add(x, one) a = Greater(a0, x) b0 = Sub(x, least) b = Less(b0, x) c = Equal(x, least) d = Abs(x)"
    model = lab.model(f"{body} e0 = Mul(x, x) e = Sub(e0, one)", feeds, constants, outputs=tuple("abcde"))
    bits_agree(run_onnxruntime(model, feeds), lab.execute(lab.lower(model), feeds))


def test_products_are_not_contracted_where_nodes_meet(lab: Any) -> None:
    """x y - round(x y) is 0 only if the product was rounded."""
    random = np.random.default_rng(0)
    feeds = {name: random.standard_normal(4096).astype(np.float32) for name in ("x", "z")}
    feeds["p"] = feeds["x"] * feeds["z"]
    lowered = lab.lower(lab.model("a = Mul(x, z) y = Sub(a, p)", feeds))
    assert len(lowered.calls) == 1
    assert not lab.execute(lowered, feeds)["y"].any()


def test_operators_are_registered_once() -> None:
    ieee.register()
    ieee.register()


def test_a_kernel_keeps_no_hidden_operator(lab: Any) -> None:
    """LLVM knows none of them: code is generated for a reduction, a pool and loops written by hand as well."""
    feeds = {"x": np.arange(24, dtype=np.float32).reshape(4, 6), "i": np.array([[0, 1, 2, 3, 2, 1]])}
    feeds["u"] = np.ones((1, 6), np.float32)
    body = "a = Sub(x, x) b = ReduceMax<keepdims=1>(a) c = CumSum(x, one) s = ScatterElements(c, i, u) y = Sub(s, b)"
    model = lab.model(body, feeds, {"one": np.array(1)})
    require_equal(run_onnxruntime(model, feeds), lab.execute(lab.lower(model), feeds), "of several kernels")


def bfloat16_model(body: str) -> onnx.ModelProto:
    head = "g (bfloat16[4,24] x, bfloat16[4,24] w, float[4,24] f) => (bfloat16[4,24] y)"
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 22]> {head} {{ {body} }}')


LONG = "a0 = Add(x, w) " + " ".join(
    f"a{number + 1} = {operator}(a{number}, {other})"
    for number, (operator, other) in enumerate([("Mul", "x"), ("Add", "w"), ("Sub", "x"), ("Mul", "w")] * 5)
)
DOUBLING = (
    "a0 = Add(x, w) "
    + " ".join(f"a{n + 1} = Mul(a{n}, a{n})" for n in range(3))
    + " ".join(f" b{n + 1} = Add(b{n}, b{n})".replace("b0,", "a3,").replace("b0)", "a3)") for n in range(12))
)


@pytest.mark.parametrize(
    "body",
    [
        f"{LONG} y = Add(a20, x)",  # more values than one expression takes
        "a = Neg(w) y = Max(x, w, a, x)",
        "a = Neg(w) y = Min(x, w, a)",
        f"{DOUBLING} y = Sub(b12, a3)",  # 2^15 terms, were every value written out
        "t = Transpose(f) p = MatMul(f, t) q = MatMul(p, f) c = Cast<to = 1>(x) d = Mul(c, f) e = Add(q, d)"
        " y = Cast<to = 16>(e)",  # behind a product, in whose kernel values of float32 have names
    ],
)
def test_bfloat16_is_rounded_after_every_operator(body: str) -> None:
    from onnx.reference import ReferenceEvaluator

    model, generator = bfloat16_model(body), np.random.default_rng(0)
    kinds = {"x": ml_dtypes.bfloat16, "w": ml_dtypes.bfloat16, "f": np.float32}
    feeds = {name: generator.integers(-8, 8, (4, 24)).astype(kind) / 4 for name, kind in kinds.items()}
    (want,) = ReferenceEvaluator(model).run(None, feeds)
    got = graphopt.compile(model, fallback=False).session().run(feeds)["y"]
    np.testing.assert_array_equal(got.view(np.uint16), np.asarray(want).view(np.uint16))
