"""Keeps constants out of expressions that TVM misreads: they stay tensors of one element.

TVM makes 0 of x * 0.0 and 0.0 / x, and x of x + 0.0, but NaN, infinities and -0.0 have other results. It takes integers
at the ends of their range for infinities, and folds comparisons with them to "not equal".
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, relax, topi
from tvm.ir import GenericConst


def _binary(name: str) -> Callable[[relax.BlockBuilder, relax.Call], relax.Expr]:
    """TVM's legalization, but operands that TVM misreads stay tensors instead of constants in the function."""

    def legalized(builder: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
        if any(map(_misread, call.args)):
            return builder.call_te(getattr(topi, name), *call.args)
        return ir.Op.get(f"relax.{name}").get_attr("FLegalize")(builder, call)

    return legalized


def _misread(value: relax.Expr) -> bool:
    """Whether an operand is one constant: a float zero, or an integer far from 0 for its type."""
    if not isinstance(value, GenericConst):
        return False
    array = value.value.numpy()
    if array.size != 1 or array.dtype.kind == "b":
        return False
    if array.dtype.kind in "iu":
        return bool(abs(int(array.reshape(()))) >= 1 << (array.dtype.itemsize * 8 - 2))
    return bool(array.reshape(()) == 0)


_NAMES = (
    *("add", "subtract", "multiply", "divide", "maximum", "minimum"),
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
)
LEGALIZED = {f"relax.{name}": _binary(name) for name in _NAMES}
"""The custom legalizations for `LegalizeOps`."""
