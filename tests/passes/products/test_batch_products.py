"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time."""

import pytest

from graphopt.passes import BatchProducts

WEIGHTS = {"w": (5, 6), "v": (6, 5), "c": (6,), "r": (1, 6), "other": (5, 6)}
HEAD = (
    "g (float[4,2,5] x, float[2,4,5] z, float[8,3,5] l, float[4,10,5] m, float[1,36,5] big,"
    " float[5,6] w, float[5,6] other, float[6,5] v, float[6] c, float[1,6] r) => ({outputs})"
    " <int64 zero = {{0}}, int64 one = {{1}}, int64 two = {{2}}, int64 end = {{-1}}, int64[1] n0 = {{0}},"
    " int64[1] n1 = {{1}}, int64[1] n2 = {{2}}, int64[1] n4 = {{4}}, int64[1] n1e = {{-1}}> {{"
)


def model(body: str, outputs: str) -> str:
    return HEAD.format(outputs=outputs) + body + "}"


def steps(operator: str, source: str = "x", axis: int = 0, count: int = 4) -> str:
    places = ("zero", "one", "two", "end")[:count]
    gathers = (f"a{n} = Gather<axis = {axis}>({source}, {place})" for n, place in enumerate(places))
    return " ".join(f"{gather} y{n} = {operator.format(a=f'a{n}')}" for n, gather in enumerate(gathers))


FOUR = "float[2,6] y0, float[2,6] y1, float[2,6] y2, float[2,6] y3"


def test_steps_of_a_recurrent_layer(rewrite) -> None:
    after, result = rewrite(BatchProducts(), model(steps("Gemm<transB = 1>({a}, v, c)"), FOUR), WEIGHTS)
    assert after.splitlines() == [
        "gemm1.batched[4,2,6] = MatMul(x, const[5,6])",
        "gemm1.batched.sum[4,2,6] = Add(gemm1.batched, const[6])",
        "y0[2,6] = Gather(gemm1.batched.sum, const[]) {axis=0}",
        "y1[2,6] = Gather(gemm1.batched.sum, const[]) {axis=0}",
        "y2[2,6] = Gather(gemm1.batched.sum, const[]) {axis=0}",
        "y3[2,6] = Gather(gemm1.batched.sum, const[]) {axis=0}",
    ]
    assert result.notes == ("4 products as 1",)


@pytest.mark.parametrize("operator", ["MatMul({a}, w)", "Gemm({a}, w)", "Gemm({a}, w, r)", "Gemm({a}, w, c)"])
@pytest.mark.parametrize(("source", "axis"), [("x", 0), ("z", 1)])
def test_forms_of_products_and_axes(rewrite, operator: str, source: str, axis: int) -> None:
    after, _ = rewrite(BatchProducts(), model(steps(operator, source, axis), FOUR), WEIGHTS)
    assert after.count("MatMul(") == 1
    assert "Gemm(" not in after


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (
            "a, b, d, e = Split<axis = 0, num_outputs = 4>(x) y = MatMul(a, w) u = MatMul(d, w) t = Neg(b)",
            "float[1,2,6] y, float[1,2,6] u, float[1,2,5] t",
        ),
        (
            "a, b = Split<axis = 0, num_outputs = 2>(z) s = Squeeze(a, n0) t = Squeeze(b, n0)"
            " y = Gemm(s, w, c) u = Gemm(t, w, c)",
            "float[4,6] y, float[4,6] u",
        ),
        ("a = Slice(x, n0, n2, n0) y = MatMul(a, w) b = Slice(x, n2, n4, n0) u = MatMul(b, w)",
         "float[2,2,6] y, float[2,2,6] u"),
        ("a = Slice(x, n1e, n0, n0, n1e) y = MatMul(a, w) b = Gather(x, n1) u = MatMul(b, w)",
         "float[3,2,6] y, float[1,2,6] u"),
    ],
)  # fmt: skip
def test_forms_of_parts(rewrite, body: str, outputs: str) -> None:
    after, result = rewrite(BatchProducts(), model(body, outputs), WEIGHTS)
    assert after.count("MatMul(") == 1
    assert "Gemm(" not in after
    assert result.notes == ("2 products as 1",)


def test_what_is_read_elsewhere_stays(rewrite) -> None:
    after, _ = rewrite(
        BatchProducts(), model(steps("MatMul({a}, w)") + " t = Neg(a0)", f"{FOUR}, float[2,5] t"), WEIGHTS
    )
    assert "t[2,5] = Neg(a0)" in after
    assert after.count("Gather(") == 5


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        (steps("MatMul({a}, w)", count=1), "float[2,6] y0"),
        (steps("MatMul({a}, w)", "l", 0, 3), "float[3,6] y0, float[3,6] y1, float[3,6] y2"),  # 3 of 8 parts
        (steps("MatMul({a}, w)", "m", 0, 3), "float[10,6] y0, float[10,6] y1, float[10,6] y2"),  # many rows, 3 of 4
        (steps("Gemm<alpha = 2.0>({a}, w)"), FOUR),
        ("a = Gather(x, zero) y = MatMul(a, w) b = Gather(x, one) u = MatMul(b, other)", "float[2,6] y, float[2,6] u"),
        (
            "a, b = Split<axis = 1, num_outputs = 2>(big) s = MatMul(a, w) y = MatMul(b, w)",
            "float[1,18,6] s, float[1,18,6] y",
        ),
        ("a = Gather<axis = 2>(z, zero) b = Gather<axis = 2>(z, one) y = Add(a, b)", "float[2,4] y"),
    ],
)
def test_what_is_left_alone(rewrite, body: str, outputs: str) -> None:
    _, result = rewrite(BatchProducts(), model(body, outputs), WEIGHTS)
    assert not result.modified
