"""Quotients and remainders of indices that fall, written by those of indices that rise.

    (63 - c) // 16  ->  3 - c // 16        (63 - c) % 16  ->  15 - c % 16

TVM's FlattenBuffer splits loop variables, and divides one with a negative factor by a negative divisor: it makes
`3 + c // -16` of the first, which is another number. A reversed slice of what was reshaped has such indices. Both
rewrites hold for all integers.
"""

from __future__ import annotations

import tvm
import tvm_ffi
from tvm import ir, tirx
from tvm.ir import Expr

Terms = list[tuple[Expr, int]]
"""Expressions and their factors."""


def rising() -> tvm.transform.Pass:
    """The pass that rewrites all indices of a function."""

    def quotient(old: tirx.FloorDiv, mutator: tvm_ffi.StructuralMutator) -> Expr:
        node = mutator.default_mutate(old)
        found = _falling(node.a, node.b)
        if found is None:
            return node
        whole, rest, falling, divisor = found
        return whole + (rest // divisor - tirx.floordiv(falling + (divisor - 1 - rest % divisor), node.b))

    def remainder(old: tirx.FloorMod, mutator: tvm_ffi.StructuralMutator) -> Expr:
        node = mutator.default_mutate(old)
        found = _falling(node.a, node.b)
        if found is None:
            return node
        _, rest, falling, divisor = found
        return divisor - 1 - tirx.floormod(falling + (divisor - 1 - rest % divisor), node.b)

    callbacks = [(tirx.FloorDiv, quotient), (tirx.FloorMod, remainder)]

    def transform(function: tirx.PrimFunc, _module: ir.IRModule, _context: tvm.transform.PassContext) -> tirx.PrimFunc:
        if not _any(function.body):
            return function
        return function.with_body(tvm_ffi.structural_mutate(function.body, callbacks))

    return tirx.transform.prim_func_pass(transform, opt_level=0)


def _any(body: tirx.Stmt) -> bool:
    """Whether an index in `body` falls."""

    def look(node: tirx.FloorDiv | tirx.FloorMod) -> tvm_ffi.VisitInterrupt | None:
        return None if _falling(node.a, node.b) is None else tvm_ffi.VisitInterrupt()

    walks = (tvm_ffi.structural_walk(body, (kind, look), order="pre") for kind in (tirx.FloorDiv, tirx.FloorMod))
    return any(walk is not None for walk in walks)


def _falling(index: Expr, divisor: Expr) -> tuple[Expr | int, int, Expr, int] | None:
    """(whole, rest, falling, divisor): index = whole * divisor + rest - falling, whose factors are not negative.

    None for another divisor than a positive number, and for an index that has no such form, or rises.
    """
    if not isinstance(divisor, tirx.IntImm) or int(divisor) < 1 or "x" in str(index.ty.dtype):
        return None
    terms: Terms = []
    rest, by = _collect(index, 1, terms), int(divisor)
    whole = [(term, factor // by) for term, factor in terms if factor % by == 0]
    others = [(term, factor) for term, factor in terms if factor % by]
    if not others or any(factor > 0 for _, factor in others):
        return None
    return _sum(whole), rest, _sum([(term, -factor) for term, factor in others]), by


def _collect(expression: Expr, factor: int, terms: Terms) -> int:
    """Add the terms of `expression` times `factor`; returns its constant part."""
    if isinstance(expression, tirx.IntImm):
        return factor * int(expression)
    if isinstance(expression, tirx.Add | tirx.Sub):
        sign = 1 if isinstance(expression, tirx.Add) else -1
        return _collect(expression.a, factor, terms) + _collect(expression.b, sign * factor, terms)
    if isinstance(expression, tirx.Mul):
        for number, other in ((expression.a, expression.b), (expression.b, expression.a)):
            if isinstance(number, tirx.IntImm):
                return _collect(other, factor * int(number), terms)
    terms.append((expression, factor))
    return 0


def _sum(terms: Terms) -> Expr | int:
    total: Expr | int = 0
    for term, factor in terms:
        total = term * factor + total
    return total
