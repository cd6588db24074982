"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time."""

from __future__ import annotations

import pytest

from graphopt.passes import QuantizedMoves

CONSTANTS = """float s = {0.3}, uint8 z = {3}, float t = {0.25}, uint8 u = {1}, float[4] many = {1, 0.5, 0.25, 0.7},
    int64[2] flat = {2, 12}, int64[1] one = {0}, int64[2] some = {2, 0}, int8 e = {-4}"""


def model(body: str, y: str = "2,12", more: str = "") -> str:
    return f"g (uint8[2,3,4] p, uint8[2,3,4] r) => (float[{y}] y{more}) <{CONSTANTS}> {{ {body} }}"


GOLDEN = {
    "a view between two": (
        model("a = DequantizeLinear(p, s, z) b = Reshape(a, flat) q = QuantizeLinear(b, s, z) "
              "c = DequantizeLinear(q, s, z) y = Relu(c)"),
        """b.bytes[2,12] = Reshape(p, const[2])
c[2,12] = DequantizeLinear(b.bytes, const[], const[])
y[2,12] = Relu(c)""",
    ),
    "one after another": (
        model("a = DequantizeLinear(p, s) b = Transpose<perm = [2, 0, 1]>(a) c = Gather(b, some) y = Sqrt(c)", "2,2,3"),
        """b.bytes[4,2,3] = Transpose(p) {perm=[2, 0, 1]}
c.bytes[2,2,3] = Gather(b.bytes, const[2])
c[2,2,3] = DequantizeLinear(c.bytes, const[])
y[2,2,3] = Sqrt(c)""",
    ),
    "the largest of a window": (
        model("a = DequantizeLinear(p, s, z) b = MaxPool<kernel_shape = [2]>(a) y = Neg(b)", "2,3,3"),
        """b.bytes[2,3,3] = MaxPool(p) {kernel_shape=[2]}
b[2,3,3] = DequantizeLinear(b.bytes, const[], const[])
y[2,3,3] = Neg(b)""",
    ),
    "scales of an axis go where the axis goes": (
        model("a = DequantizeLinear<axis = 2>(p, many) b = Transpose<perm = [2, 0, 1]>(a) y = Neg(b)", "4,2,3"),
        """b.bytes[4,2,3] = Transpose(p) {perm=[2, 0, 1]}
b[4,2,3] = DequantizeLinear(b.bytes, const[4]) {axis=0}
y[4,2,3] = Neg(b)""",
    ),
    "parts of one tensor, of which one has other units": (
        model("a = DequantizeLinear(p, s, z) b = DequantizeLinear(r, t, u) c = Concat<axis = 1>(a, b) "
              "q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) y = Neg(d)", "2,6,4"),
        """b[2,3,4] = DequantizeLinear(r, const[], const[])
b.bytes[2,3,4] = QuantizeLinear(b, const[], const[])
q[2,6,4] = Concat(p, b.bytes) {axis=1}
d[2,6,4] = DequantizeLinear(q, const[], const[])
y[2,6,4] = Neg(d)""",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(rewrite, case: str) -> None:
    text, expected = GOLDEN[case]
    after, result = rewrite(QuantizedMoves(), text)
    assert after == expected
    assert result.modified


STAYS = {
    "a pair in other units": model(
        "a = DequantizeLinear(p, s, z) q = QuantizeLinear(a, t, z) b = DequantizeLinear(q, t, z) y = Neg(b)", "2,3,4"
    ),
    "a pair of other types": model(
        "a = DequantizeLinear(p, s, z) q = QuantizeLinear(a, s, e) b = DequantizeLinear(q, s, e) y = Neg(b)", "2,3,4"
    ),
    "scales of an axis that a view takes apart": model(
        "a = DequantizeLinear<axis = 2>(p, many) b = Reshape(a, flat) y = Neg(b)"
    ),
    "a pool that says where": model(
        "a = DequantizeLinear(p, s, z) y, i = MaxPool<kernel_shape = [2]>(a)", "2,3,3", ", int64[2,3,3] i"
    ),
    "parts that others read": model(
        "a = DequantizeLinear(p, s, z) b = DequantizeLinear(r, t, u) c = Concat<axis = 1>(a, b) "
        "q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) y = Add(c, d)", "2,6,4"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_what_stays(rewrite, case: str) -> None:
    assert not rewrite(QuantizedMoves(), STAYS[case])[1].modified
