"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time.

Scales are powers of two, so that sums of floats are exact, and both ways round the same numbers.
"""

from __future__ import annotations

from typing import Any

import pytest

from graphopt.passes import QuantizedProducts

CONSTANTS = """float s = {0.5}, uint8 z = {3}, int8 n = {-2}, float t = {0.25}, int8 u = {1}, float v = {2.0},
    uint8 c = {9}, int8 e = {-4}, uint8 low = {0}, int8 lowest = {-128}, float[6] many = {1, 0.5, 0.25, 0.5, 1, 2},
    float[3] three = {1, 0.5, 0.25}, float f = {0.125}, float g = {0.3},
    float[6] biases = {0.5, 0.25, 0.125, 0.25, 0.5, 1}"""

HEADS = {"uint8": "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)",
         "int8": "q = QuantizeLinear(x, s, n) a = DequantizeLinear(q, s, n)"}  # fmt: skip

PLAIN = "b = DequantizeLinear(w, t, u)"
PRODUCT = f"{PLAIN} m = MatMul(a, b)"
CONV = f"{PLAIN} m = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(a, b)"
END = "p = QuantizeLinear(m, v, c) y = DequantizeLinear(p, v, c)"


def model(body: str, kind: str = "uint8", x: str = "4,8", w: str = "8,6", more: str = "") -> str:
    shape = ",".join(f"r{axis}" for axis in range(x.count(",") + 1))
    head = f"g (float[{x}] x, int8[{w}] w, int32[6] d) => (float[{shape}] y{more})"
    return f"{head} <{CONSTANTS}> {{ {HEADS[kind]} {body} }}"


def weights(w: str = "8,6") -> dict[str, Any]:
    return {"w": tuple(map(int, w.split(","))), "d": (6,)}


SUMS = """m.matmulinteger[4,6] = MatMulInteger(q, const[8,6], const[], const[])
m.cast[4,6] = Cast(m.matmulinteger) {to=1}
m[4,6] = Mul(m.cast, const[])"""

QUANTIZE = "q[4,8] = QuantizeLinear(x, const[], const[])"
GOLDEN = {
    "a product": (
        model(f"{PRODUCT} {END}"),
        weights(),
        f"""{QUANTIZE}
p[4,6] = QLinearMatMul(q, const[], const[], const[8,6], const[], const[], const[], const[])
y[4,6] = DequantizeLinear(p, const[], const[])""",
    ),
    "of int8": (
        model(f"{PRODUCT} p = QuantizeLinear(m, v, e) y = DequantizeLinear(p, v, e)", "int8"),
        weights(),
        f"""{QUANTIZE}
p[4,6] = QLinearMatMul(q, const[], const[], const[8,6], const[], const[], const[], const[])
y[4,6] = DequantizeLinear(p, const[], const[])""",
    ),
    "columns of their own scales, and no zero point": (
        model(f"b = DequantizeLinear<axis = -1>(w, many) m = MatMul(a, b) {END}"),
        weights(),
        f"""{QUANTIZE}
p[4,6] = QLinearMatMul(q, const[], const[], const[8,6], const[6], const[6], const[], const[])
y[4,6] = DequantizeLinear(p, const[], const[])""",
    ),
    "a Relu whose bound is that of the type": (
        model(f"{PRODUCT} r = Relu(m) p = QuantizeLinear(r, v, low) y = DequantizeLinear(p, v, low)"),
        weights(),
        f"""{QUANTIZE}
p[4,6] = QLinearMatMul(q, const[], const[], const[8,6], const[], const[], const[], const[])
y[4,6] = DequantizeLinear(p, const[], const[])""",
    ),
    "a convolution": (
        model(f"{CONV} {END}", x="1,3,7,8", w="6,3,3,3"),
        weights("6,3,3,3"),
        """q[1,3,7,8] = QuantizeLinear(x, const[], const[])
p[1,6,4,8] = QLinearConv(q, const[], const[], const[6,3,3,3], const[], const[], const[], const[]) """
        """{pads=[1, 1, 1, 1], strides=[2, 1]}
y[1,6,4,8] = DequantizeLinear(p, const[], const[])""",
    ),
    "filters of their own scales, and a bias": (
        model(
            "b = DequantizeLinear<axis = 0>(w, many) h = DequantizeLinear<axis = 0>(d, biases) m = Conv(a, b, h) "
            + END,
            x="1,3,7,8",
            w="6,3,3,3",
        ),
        weights("6,3,3,3"),
        """q[1,3,7,8] = QuantizeLinear(x, const[], const[])
p[1,6,5,6] = QLinearConv(q, const[], const[], const[6,3,3,3], const[6], const[6], const[], const[], const[6])
y[1,6,5,6] = DequantizeLinear(p, const[], const[])""",
    ),
    "a result that is read as a float": (
        model(f"{PRODUCT} {END} k = Exp(m)", more=", float[4,6] k"),
        weights(),
        f"""{QUANTIZE}
{SUMS}
p[4,6] = QuantizeLinear(m, const[], const[])
y[4,6] = DequantizeLinear(p, const[], const[])
k[4,6] = Exp(m)""",
    ),
    "a Relu with a zero point above the bound": (
        model(f"{PRODUCT} r = Relu(m) p = QuantizeLinear(r, v, c) y = DequantizeLinear(p, v, c)"),
        weights(),
        f"""{QUANTIZE}
{SUMS}
r[4,6] = Relu(m)
p[4,6] = QuantizeLinear(r, const[], const[])
y[4,6] = DequantizeLinear(p, const[], const[])""",
    ),
    "a result of another type": (
        model(f"{PRODUCT} p = QuantizeLinear(m, v, e) y = DequantizeLinear(p, v, e)"),
        weights(),
        f"""{QUANTIZE}
{SUMS}
p[4,6] = QuantizeLinear(m, const[], const[])
y[4,6] = DequantizeLinear(p, const[], const[])""",
    ),
    "a Gemm with a bias in units of the products, and columns of their own scales": (
        model(
            "b = DequantizeLinear<axis = 0>(w, many) h = DequantizeLinear<axis = 0>(d, biases) "
            f"m = Gemm<transB = 1>(a, b, h) {END}",
            w="6,8",
        ),
        weights("6,8"),
        f"""{QUANTIZE}
m.transpose[8,6] = Transpose(const[6,8]) {{perm=[1, 0]}}
m.matmulinteger[4,6] = MatMulInteger(q, m.transpose, const[])
m.add[4,6] = Add(m.matmulinteger, const[6])
m.cast[4,6] = Cast(m.add) {{to=1}}
m[4,6] = Mul(m.cast, const[6])
p[4,6] = QuantizeLinear(m, const[], const[])
y[4,6] = DequantizeLinear(p, const[], const[])""",
    ),
    "a Gemm with factors, and a bias in other units": (
        model(
            f"{PLAIN} h = DequantizeLinear(d, g) m = Gemm<transA = 1, alpha = 0.5, beta = 2.0>(a, b, h) y = Exp(m)",
            x="8,4",
        ),
        weights(),
        """q[8,4] = QuantizeLinear(x, const[], const[])
h[6] = DequantizeLinear(const[6], const[])
m.transpose[4,8] = Transpose(q) {perm=[1, 0]}
m.matmulinteger[4,6] = MatMulInteger(m.transpose, const[8,6], const[], const[])
m.cast[4,6] = Cast(m.matmulinteger) {to=1}
m.mul[4,6] = Mul(m.cast, const[])
m.mul.1[6] = Mul(h, const[])
m[4,6] = Add(m.mul, m.mul.1)
y[4,6] = Exp(m)""",
    ),
    "the weights of a convolution that stays": (
        model(f"{PLAIN} h = DequantizeLinear(d, f) m = Conv(a, b, h) y = Sigmoid(m)", x="1,3,7,8", w="6,3,3,3"),
        weights("6,3,3,3"),
        """q[1,3,7,8] = QuantizeLinear(x, const[], const[])
a[1,3,7,8] = DequantizeLinear(q, const[], const[])
m[1,6,5,6] = Conv(a, const[6,3,3,3], const[6])
y[1,6,5,6] = Sigmoid(m)""",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(rewrite, case: str) -> None:
    text, given, expected = GOLDEN[case]
    after, result = rewrite(QuantizedProducts(), text, given)
    assert after == expected
    assert result.modified


def test_products_of_activations(rewrite) -> None:
    text = f"""g (float[2,3,4,8] x, float[2,3,8,5] o) => (float[2,3,4,5] y) <{CONSTANTS}> {{ {HEADS["uint8"]}
        k = QuantizeLinear(o, t, u) b = DequantizeLinear(k, t, u) m = MatMul(a, b) {END} }}"""
    after, _ = rewrite(QuantizedProducts(), text)
    assert "p[2,3,4,5] = QLinearMatMul(q, const[], const[], k, const[], const[], const[], const[])" in after


STAYS = {
    "a result that is read as a float": (f"{CONV} {END} j = Exp(m)", "its result is not quantized"),
    "a result of another type": (
        f"{CONV} p = QuantizeLinear(m, v, e) y = DequantizeLinear(p, v, e)",
        "of another type than its left operand",
    ),
    "a left operand with a scale for each channel": (
        f"l = DequantizeLinear<axis = 1>(q, three) {PLAIN} m = Conv<pads = [1, 1, 1, 1], strides = [2, 1]>(l, b) {END}",
        "its left operand has several scales",
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_convolutions_that_stay(rewrite, case: str) -> None:
    body, reason = STAYS[case]
    more = ", float[1,6,4,8] j" if "j =" in body else ""
    after, result = rewrite(QuantizedProducts(), model(body, x="1,3,7,8", w="6,3,3,3", more=more), weights("6,3,3,3"))
    assert "= Conv(" in after
    assert [reason in each.reason for each in result.refusals] == [True]


UNFIT = {
    "sums that may leave int32": (
        model(f"{PLAIN} m = MatMul(a, b) y = Exp(m)", x="2,70000", w="70000,1"), "70000,1", "too large for int32"
    ),
    "sums of nothing": (model(f"{PRODUCT} {END}", x="4,0", w="0,6"), "0,6", "an operand is empty"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNFIT)
def test_products_that_stay(rewrite, case: str) -> None:
    text, w, reason = UNFIT[case]
    _, result = rewrite(QuantizedProducts(), text, weights(w) if "0,6" in w else {})  # of known weights sums are known
    assert not result.modified
    assert [reason in each.reason for each in result.refusals] == [True]


def test_half_precision_stays(rewrite) -> None:
    text = f"""g (uint8[4,8] q, int8[8,6] w) => (float16[4,6] y) <{CONSTANTS}> {{
        a = DequantizeLinear<output_dtype = 10>(q, s, z) b = DequantizeLinear<output_dtype = 10>(w, t, u)
        y = MatMul(a, b) }}"""
    assert not rewrite(QuantizedProducts(), text, {"w": (8, 6)}, 23)[1].modified


def test_scales_of_rows_stay(rewrite) -> None:
    text = model(f"b = DequantizeLinear<axis = 0>(w, many) m = MatMul(a, b) {END}", x="4,6", w="6,6")
    _, result = rewrite(QuantizedProducts(), text, weights("6,6"))
    assert not result.modified
    assert [each.reason for each in result.refusals] == [
        "the scales of its right operand are not those of columns or filters"
    ]


def test_a_bias_in_other_units_stays_float(rewrite) -> None:
    text = model(f"{PLAIN} h = DequantizeLinear(d, g) m = Conv(a, b, h) {END}", x="1,3,7,8", w="6,3,3,3")
    after, result = rewrite(QuantizedProducts(), text, weights("6,3,3,3"))
    assert "m[1,6,5,6] = Conv(a, const[6,3,3,3], const[6])" in after, "with constant weights"
    assert [each.reason for each in result.refusals] == ["its bias is not quantized as the products are"]


def test_weights_that_are_an_output_too_stay(rewrite) -> None:
    text = model(f"{PLAIN} m = Conv(a, b) y = Sigmoid(m)", x="1,3,7,8", w="6,3,3,3", more=", float[6,3,3,3] b")
    _, result = rewrite(QuantizedProducts(), text, weights("6,3,3,3"))
    assert not result.modified
