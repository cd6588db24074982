"""Takes expressions apart, and rebuilds them with some of their parts replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tvm import ir, tirx
from tvm.ir import Expr

_LEAVES = (tirx.Var, tirx.IntImm, tirx.FloatImm, ir.StringImm)
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
_CHILDREN: dict[type[Expr], Callable[[Expr], tuple[Expr, ...]]] = {
    **dict.fromkeys(_LEAVES, lambda _: ()),
    **dict.fromkeys(_BINARY, lambda e: (e.a, e.b)),
    **dict.fromkeys((tirx.Not, tirx.BitwiseNot), lambda e: (e.a,)),
    **dict.fromkeys((tirx.Cast, tirx.Broadcast), lambda e: (e.value,)),
    tirx.Ramp: lambda e: (e.base, e.stride),
    tirx.Shuffle: lambda e: tuple(e.vectors),
    tirx.Select: lambda e: (e.condition, e.true_value, e.false_value),
    tirx.Let: lambda e: (e.value, e.body),
    ir.TensorLoad: lambda e: tuple(e.indices),
    ir.Call: lambda e: tuple(e.args),
}


def children(expression: Expr) -> tuple[Expr, ...]:
    """The operands of an expression, in order.

    Raises:
        ValueError: a kind of expression that is not taken apart.
    """
    operands = _CHILDREN.get(type(expression))
    if operands is None:
        raise ValueError(f"it holds a {type(expression).__name__}")
    return operands(expression)


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
    kind = type(expression)
    if kind in _LEAVES:
        return expression
    if kind in _BINARY or kind in (tirx.Not, tirx.BitwiseNot, tirx.Select):
        return kind(*operands)
    if kind is tirx.Cast:
        return tirx.Cast(str(expression.ty.dtype), *operands)
    if kind is tirx.Broadcast:
        return tirx.Broadcast(*operands, expression.lanes)
    if kind is tirx.Ramp:
        return tirx.Ramp(*operands, expression.lanes)
    if kind is tirx.Shuffle:
        return tirx.Shuffle(operands, list(expression.indices))
    if kind is tirx.Let:
        return tirx.Let(expression.var, *operands)
    if kind is ir.TensorLoad:
        return expression.source[tuple(operands)]
    if kind is ir.Call:
        return ir.Call(expression.op, operands, expression.attrs, expression.ty_args, ret_ty=expression.ty)
    raise ValueError(f"it holds a {kind.__name__}")


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
