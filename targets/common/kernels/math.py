"""Elementary functions in float32 that compile to vector code, where the C library would be called per element.

Ranges and polynomials of exp and tanh follow the Cephes library (S. Moshier, `expf`, `tanhf`); erf is a rational
minimax approximation with numerator degree 9 and denominator degree 12 (the coefficients that Eigen publishes). The
tests bound the error of each in units of the last place. Other dtypes take the compiler's own intrinsic.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import tirx
from tvm.ir import Expr


def _poly(x: Expr, coefficients: tuple[float, ...]) -> Expr:
    value = tirx.const(coefficients[0], "float32")
    for c in coefficients[1:]:
        value = value * x + tirx.const(c, "float32")
    return value


def _dtype(x: Expr) -> str:
    return str(x.dtype if hasattr(x, "dtype") else x.ty.dtype)


def _f(value: float) -> Expr:
    return tirx.const(value, "float32")


def _let(name: str, value: Expr, body: Callable[[Expr], Expr]) -> Expr:
    """`body` over a name for `value`: an expression used twice would otherwise be written out, and computed, twice."""
    variable = tirx.Var(name, _dtype(value))
    return tirx.Let(variable, value, body(variable))


_BITS = {
    "float64": ("int64", 63, 0x7FF << 52),
    "float32": ("int32", 31, 0xFF << 23),
    "float16": ("int16", 15, 0x1F << 10),
}
"""Float type -> the integers of its size, the number of bits below its sign, and infinity."""


def is_nan(x: Expr, dtype: str | None = None) -> Expr:
    """Whether `x` is NaN, by its bits; TVM takes `isnan` of a vector apart, lane by lane.

    Args:
        dtype: of `x`, where the expression does not tell.
    """
    dtype = dtype or _dtype(x)
    if dtype not in _BITS:
        return tirx.isnan(x)
    kind, places, infinity = _BITS[dtype]
    magnitude = tirx.bitwise_and(tirx.reinterpret(kind, x), tirx.const((1 << places) - 1, kind))
    return magnitude > tirx.const(infinity, kind)


def exp(x: Expr) -> Expr:
    """e^x: x = n ln 2 + r, |r| <= ln 2 / 2, a polynomial for e^r and the exponent bits for 2^n.

    Infinite above 88.7 and zero below -104, as expf; NaN stays NaN. Results below 2^-126 may lose their last bits.
    """
    if _dtype(x) != "float32":
        return tirx.exp(x)

    def ranged(x: Expr) -> Expr:
        clipped = tirx.max(tirx.min(x, _f(88.72283)), _f(-103.98))
        return _let(
            "n",
            tirx.nearbyint(clipped * _f(1.44269504088896341)),
            lambda n: _let("r", clipped - n * _f(0.693359375) - n * _f(-2.12194440e-4), lambda r: scaled(x, n, r)),
        )

    def scaled(x: Expr, n: Expr, r: Expr) -> Expr:
        p = _poly(r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))
        # 2^n in two halves: n reaches 128 and -150, which no single exponent holds.
        k = tirx.Cast("int32", n)
        half = k >> 1
        low = tirx.reinterpret("float32", (half + 127) << 23)
        high = tirx.reinterpret("float32", (k - half + 127) << 23)
        result = (p * r * r + r + _f(1.0)) * low * high
        result = tirx.Select(x > _f(88.72283), tirx.const(float("inf"), "float32"), result)
        result = tirx.Select(x < _f(-103.98), _f(0.0), result)
        return tirx.Select(is_nan(x), x, result)

    return _let("x", x, ranged)


_LEAST_POWER = -87.33654
"""Where e^x reaches 2^-126."""


def exp_of_negative(x: Expr) -> Expr:
    """e^x for x <= 0; zero below -87.3, where the result would be less than 2^-126. NaN stays NaN.

    Two thirds of the work of `exp`: one exponent holds the power of two, and nothing overflows.
    """
    if _dtype(x) != "float32":
        return tirx.exp(x)

    def ranged(x: Expr) -> Expr:
        clipped = tirx.Select(x < _f(_LEAST_POWER), _f(_LEAST_POWER), x)
        return _let("c", clipped, lambda c: _let("n", tirx.nearbyint(c * _f(1.44269504088896341)), reduced(x, c)))

    def reduced(x: Expr, c: Expr) -> Callable[[Expr], Expr]:
        return lambda n: _let("r", c - n * _f(0.693359375) - n * _f(-2.12194440e-4), lambda r: scaled(x, n, r))

    def scaled(x: Expr, n: Expr, r: Expr) -> Expr:
        p = _poly(r, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5))
        power = tirx.reinterpret("float32", (tirx.Cast("int32", n) + 127) << 23)
        return tirx.Select(x < _f(_LEAST_POWER), _f(0.0), (p * r * r + r + _f(1.0)) * power)

    return _let("x", x, ranged)


def sigmoid(x: Expr) -> Expr:
    """1 / (1 + e^-x), by e^-|x|, which cannot overflow; zero below -87.3, where the result would be below 2^-126."""
    if _dtype(x) != "float32":
        return tirx.sigmoid(x)

    def joined(x: Expr) -> Expr:
        return _let("e", exp_of_negative(-tirx.abs(x)), lambda e: tirx.Select(x < _f(0.0), e, _f(1.0)) / (e + _f(1.0)))

    return _let("s", x, joined)


def tanh(x: Expr) -> Expr:
    """tanh: an odd polynomial below 0.625, (1 - e^-2|x|) / (1 + e^-2|x|) with the sign of x above."""
    if _dtype(x) == "float64":
        return _tanh_double(x)
    if _dtype(x) != "float32":
        return tirx.tanh(x)

    def joined(x: Expr) -> Expr:
        power = exp_of_negative(tirx.abs(x) * _f(-2.0))
        return _let("e", power, lambda e: _let("z", x * x, lambda z: chosen(x, z, (_f(1.0) - e) / (_f(1.0) + e))))

    def chosen(x: Expr, z: Expr, far: Expr) -> Expr:
        return tirx.Select(
            tirx.abs(x) < _f(0.625), near(x, z), _let("f", far, lambda f: tirx.Select(x < _f(0.0), -f, f))
        )

    def near(x: Expr, z: Expr) -> Expr:
        p = _poly(z, (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2, 1.33314422036e-1, -3.33332819422e-1))
        return p * z * x + x

    return _let("t", x, joined)


def _tanh_double(x: Expr) -> Expr:
    """The same with an odd rational function below 0.625 (Cephes, tanh.c)."""

    def const(value: float) -> Expr:
        return tirx.const(value, "float64")

    def joined(x: Expr, z: Expr) -> Expr:
        top = (const(-9.64399179425052238628e-1) * z + const(-9.92877231001918586564e1)) * z
        low = ((z + const(1.12811678491632931402e2)) * z + const(2.23548839060100448583e3)) * z
        near = x + x * z * ((top + const(-1.61468768441708447952e3)) / (low + const(4.84406305325125486048e3)))
        return _let("e", tirx.exp(const(-2.0) * tirx.abs(x)), lambda e: chosen(x, near, e))

    def chosen(x: Expr, near: Expr, e: Expr) -> Expr:
        far = (const(1.0) - e) / (const(1.0) + e)
        return tirx.Select(tirx.abs(x) < const(0.625), near, tirx.Select(x < const(0.0), -far, far))

    return _let("t", x, lambda x: _let("z", x * x, lambda z: joined(x, z)))


def atanh(x: Expr) -> Expr:
    """atanh: an odd polynomial below 0.5 (Cephes, atanhf.c), log((1 + x) / (1 - x)) / 2 above."""
    if _dtype(x) != "float32":
        return tirx.atanh(x)

    def joined(x: Expr, z: Expr) -> Expr:
        p = _poly(z, (1.81740078349e-1, 8.24370301058e-2, 1.46691431730e-1, 1.99782164500e-1, 3.33337300303e-1))
        far = _f(0.5) * tirx.log((_f(1.0) + x) / (_f(1.0) - x))
        return tirx.Select(tirx.abs(x) < _f(0.5), p * z * x + x, far)

    return _let("a", x, lambda x: _let("z", x * x, lambda z: joined(x, z)))


def erf(x: Expr) -> Expr:
    """erf: a rational function on [-3.925, 3.925], +-1 outside."""
    if _dtype(x) != "float32":
        return tirx.erf(x)
    limit = _f(3.925724783138660)

    def rational(c: Expr, z: Expr) -> Expr:
        p = _poly(
            z,
            (
                2.2905065861350646e-04, 3.4082910107109506e-03, 5.0955695062380861e-02, 1.8520832239976145e-01,
                1.1283791671725767e+00,
            ),
        )  # fmt: skip
        q = _poly(
            z,
            (
                -1.1791602954361697e-7, 2.3547966471313185e-05, 1.0179625278914885e-03, 1.4070470171167667e-02,
                1.1098505178285362e-01, 4.9746925110067538e-01, 1.0,
            ),
        )  # fmt: skip
        return _let("v", c * p / q, bounded)

    def bounded(v: Expr) -> Expr:  # the quotient may round to just above 1; comparisons let NaN through
        return tirx.Select(v > _f(1.0), _f(1.0), tirx.Select(v < _f(-1.0), _f(-1.0), v))

    # Comparisons, not a minimum and a maximum: they let NaN through.
    clipped = _let("e", x, lambda e: tirx.Select(e > limit, limit, tirx.Select(e < -limit, -limit, e)))
    return _let("c", clipped, lambda c: _let("z", c * c, lambda z: rational(c, z)))
