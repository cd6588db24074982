"""Elementary functions: their error in units in the last place, over the whole range of float32."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

FLOAT = np.finfo(np.float32)


def everything() -> Any:
    """Some hundred thousand floats: evenly over all exponents and signs, and denser where the functions bend."""
    bits = np.linspace(0, 0x7F7FFFFF, 100_003).astype(np.uint32).view(np.float32)
    near = np.linspace(-110, 110, 60_001).astype(np.float32)
    edges = np.array([0.0, FLOAT.tiny, FLOAT.smallest_subnormal, FLOAT.max, 88.72283, 88.72284, 103.97, 103.98, 0.625,
                      87.33654, 3.9257247, 1.0, 9.0], np.float32)  # fmt: skip
    return np.concatenate([bits, -bits, near, edges, -edges])


def apply(lab: Any, body: str, x: Any) -> Any:
    model = lab.model(body, {"x": x}, opset=20)
    return lab.execute(lab.lower(model), {"x": x})["y"]


def ulps(actual: Any, exact: Any) -> Any:
    """|actual - exact| in the distance of float32 numbers at `exact`, which below FLOAT.tiny is that at FLOAT.tiny."""
    spacing = np.spacing(np.maximum(np.abs(exact), FLOAT.tiny).astype(np.float32)).astype(np.float64)
    return np.abs(actual.astype(np.float64) - exact) / spacing


erf = np.vectorize(math.erf, otypes=[np.float64])


@pytest.mark.parametrize(
    ("op", "function", "bound"),
    [
        ("Exp", np.exp, 2),
        ("Sigmoid", lambda x: 1 / (1 + np.exp(-x)), 4),
        ("Tanh", np.tanh, 3),
        ("Erf", erf, 5),
    ],
)
def test_error_in_units_in_the_last_place(any_lab: Any, op: str, function: Callable[..., Any], bound: float) -> None:
    x = everything()
    with np.errstate(over="ignore", under="ignore"):
        exact = function(x.astype(np.float64))
    actual = apply(any_lab, f"y = {op}(x)", x)
    fits = np.abs(exact) <= FLOAT.max
    assert np.isinf(actual[~fits]).all()
    if op == "Sigmoid":  # e^-x overflows before 1 / e^-x vanishes
        fits &= (np.abs(exact) >= FLOAT.tiny) | (actual != 0)
    error = ulps(actual[fits], exact[fits])
    worst = int(error.argmax())
    assert error[worst] <= bound, f"{op}({x[fits][worst]!r}) = {actual[fits][worst]!r}, not {exact[fits][worst]!r}"


@pytest.mark.parametrize(
    ("op", "at_infinity", "at_minus_infinity"),
    [("Exp", np.inf, 0.0), ("Sigmoid", 1.0, 0.0), ("Tanh", 1.0, -1.0), ("Erf", 1.0, -1.0)],
)
def test_special_values(any_lab: Any, op: str, at_infinity: float, at_minus_infinity: float) -> None:
    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0] * 7, np.float32)  # vectors and a remainder
    y = apply(any_lab, f"y = {op}(x)", x).reshape(7, 5)
    middle = {"Exp": 1.0, "Sigmoid": 0.5}.get(op, 0.0)
    np.testing.assert_array_equal(y, np.tile([at_infinity, at_minus_infinity, np.nan, middle, middle], (7, 1)))


@pytest.mark.parametrize("op", ["Tanh", "Erf"])
def test_tiny_arguments_keep_their_sign_and_scale(any_lab: Any, op: str) -> None:
    x = np.array([1e-38, -1e-38, 1e-40, -1e-40, 3e-8, -3e-8], np.float32)
    y = apply(any_lab, f"y = {op}(x)", x)
    factor = 2 / math.sqrt(math.pi) if op == "Erf" else 1.0
    np.testing.assert_allclose(y, x.astype(np.float64) * factor, rtol=1e-6, atol=float(FLOAT.smallest_subnormal))


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(any_lab: Any, approximate: str) -> None:
    x = np.concatenate([np.linspace(-12, 12, 20_001), [0.0, -0.0, 1e-30, 1e30, -1e30]]).astype(np.float32)
    wide = x.astype(np.float64)
    if approximate == "none":
        exact = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
    else:
        exact = wide * 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * wide * (1 + 0.044715 * wide * wide)))
    y = apply(any_lab, f'y = Gelu<approximate="{approximate}">(x)', x)
    # 1 + erf cancels for negative arguments: the error is a few units of |x|, not of the result.
    assert (np.abs(y - exact) <= 4 * np.spacing(np.abs(x)).astype(np.float64)).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu_of_special_values(lab: Any, approximate: str) -> None:
    y = apply(lab, f'y = Gelu<approximate="{approximate}">(x)', np.array([np.inf, np.nan, 3e38], np.float32))
    np.testing.assert_array_equal(y, np.array([np.inf, np.nan, 3e38], np.float32))


@pytest.mark.parametrize(
    ("op", "function"), [("Exp", np.exp), ("Sigmoid", lambda v: 1 / (1 + np.exp(-v))), ("Tanh", np.tanh)]
)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-12), ("float16", 2e-3)])
def test_other_dtypes(lab: Any, op: str, function: Callable[..., Any], dtype: str, rtol: float) -> None:
    x = np.linspace(-4, 4, 37).astype(dtype)
    np.testing.assert_allclose(apply(lab, f"y = {op}(x)", x), function(x.astype(np.float64)), rtol=rtol, atol=rtol)
