"""Takes expressions apart, and rebuilds them with some of their parts replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tvm import ir, tirx
from tvm.ir import Expr

_BINARY = (
    tirx.Add,
    tirx.Sub,
    tirx.Mul,
    tirx.Div,
    tirx.Mod,
    tirx.FloorDiv,
    tirx.FloorMod,
    tirx.Min,
    tirx.Max,
    tirx.EQ,
    tirx.NE,
    tirx.LT,
    tirx.LE,
    tirx.GT,
    tirx.GE,
    tirx.And,
    tirx.Or,
    tirx.LShift,
    tirx.RShift,
    tirx.BitwiseAnd,
    tirx.BitwiseOr,
    tirx.BitwiseXor,
)
_LEAVES = (tirx.Var, tirx.IntImm, tirx.FloatImm, ir.StringImm)


def children(expression: Expr) -> tuple[Expr, ...]:
    """The operands of an expression, in order.

    Raises:
        ValueError: a kind of expression that is not taken apart.
    """
    if isinstance(expression, _LEAVES):
        return ()
    if isinstance(expression, _BINARY):
        return expression.a, expression.b
    if isinstance(expression, tirx.Not | tirx.BitwiseNot):
        return (expression.a,)
    if isinstance(expression, tirx.Cast | tirx.Broadcast):
        return (expression.value,)
    if isinstance(expression, tirx.Ramp):
        return expression.base, expression.stride
    if isinstance(expression, tirx.Shuffle):
        return tuple(expression.vectors)
    if isinstance(expression, tirx.Select):
        return expression.condition, expression.true_value, expression.false_value
    if isinstance(expression, tirx.Let):
        return expression.value, expression.body
    if isinstance(expression, ir.TensorLoad):
        return tuple(expression.indices)
    if isinstance(expression, ir.Call):
        return tuple(expression.args)
    raise ValueError(f"it holds a {type(expression).__name__}")


def parts(expression: Expr) -> Iterator[Expr]:
    """`expression` and everything inside it.

    Raises:
        ValueError: a kind of expression that `children` does not take apart.
    """
    waiting = [expression]
    while waiting:
        part = waiting.pop()
        yield part
        waiting.extend(reversed(children(part)))


def rewritten(expression: Expr, swap: Callable[[Expr], Expr | None]) -> Expr:
    """`expression` with each part replaced for which `swap` returns a replacement; `swap` sees the outermost first.

    Raises:
        ValueError: a kind of expression that `children` does not take apart.
    """
    names = []  # a chain of these may be longer than Python's stack
    while (result := swap(expression)) is None and isinstance(expression, tirx.Let):
        names.append((expression, rewritten(expression.value, swap)))
        expression = expression.body
    if result is None:
        old = children(expression)
        new = [rewritten(part, swap) for part in old]
        same = all(a.same_as(b) for a, b in zip(old, new, strict=True))
        result = expression if same else rebuilt(expression, new)
    for let, value in reversed(names):
        kept = value.same_as(let.value) and result.same_as(let.body)
        result = let if kept else tirx.Let(let.var, value, result)
    return result


def rebuilt(expression: Expr, operands: list[Expr]) -> Expr:
    """`expression` with other operands, of the same types; nothing is simplified.

    Raises:
        ValueError: a kind of expression that `children` does not take apart.
    """
    if isinstance(expression, _LEAVES):
        return expression
    if isinstance(expression, _BINARY):
        return type(expression)(*operands)
    if isinstance(expression, tirx.Not | tirx.BitwiseNot):
        return type(expression)(*operands)
    if isinstance(expression, tirx.Cast):
        return tirx.Cast(str(expression.ty.dtype), *operands)
    if isinstance(expression, tirx.Broadcast):
        return tirx.Broadcast(*operands, expression.lanes)
    if isinstance(expression, tirx.Ramp):
        return tirx.Ramp(*operands, expression.lanes)
    if isinstance(expression, tirx.Shuffle):
        return tirx.Shuffle(operands, list(expression.indices))
    if isinstance(expression, tirx.Select):
        return tirx.Select(*operands)
    if isinstance(expression, tirx.Let):
        return tirx.Let(expression.var, *operands)
    if isinstance(expression, ir.TensorLoad):
        return expression.source[tuple(operands)]
    if isinstance(expression, ir.Call):
        return ir.Call(expression.op, operands, expression.attrs, expression.ty_args, ret_ty=expression.ty)
    raise ValueError(f"it holds a {type(expression).__name__}")


def substituted(expression: Expr, values: Mapping[tirx.Var, Expr | int]) -> Expr:
    """`expression` with variables replaced by expressions of their type, or by integers."""

    def swap(part: Expr) -> Expr | None:
        if not isinstance(part, tirx.Var):
            return None
        value = next((new for old, new in values.items() if old.same_as(part)), None)
        return None if value is None else _as(value, str(part.ty.dtype))

    return rewritten(expression, swap)


def _as(value: Expr | int, dtype: str) -> Expr:
    if isinstance(value, int):
        return tirx.IntImm(dtype, value)
    return value if str(value.ty.dtype) == dtype else value.astype(dtype)
