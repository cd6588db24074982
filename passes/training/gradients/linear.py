"""Gradients of matrix products."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir

from graphopt.passes.training.gradients.context import Context, Gradients, Thunk, shape_of, transposed_from


def matmul(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Y = A B: dA = dY B^T, dB = A^T dY, summed over batch axes that an operand lacks.

    With a matrix B all leading axes of A are rows of one product: dB = Gemm(A, dY, transA).
    """
    (a, b), dy = node.inputs, dys[0]
    assert a is not None
    assert b is not None
    assert dy is not None
    left, right = shape_of(a), shape_of(b)
    if len(right) == 2 and len(left) >= 2:
        return _matrix(ctx, dy, a, b)
    # Vectors are matrices of one row or one column.
    wide_left = left if len(left) > 1 else (1, *left)
    wide_right = right if len(right) > 1 else (*right, 1)
    batch = tuple(_broadcast(wide_left[:-2], wide_right[:-2]))
    wide_dy = (*batch, wide_left[-2], wide_right[-1])

    def of_a() -> ir.Value:
        turned = _turned(ctx, ctx.reshape(b, wide_right))
        wide = _product(ctx, ctx.reshape(dy, wide_dy), turned)
        return ctx.reshape(_summed(ctx, wide, wide_left), left)

    def of_b() -> ir.Value:
        turned = _turned(ctx, ctx.reshape(a, wide_left))
        wide = _product(ctx, turned, ctx.reshape(dy, wide_dy))
        return ctx.reshape(_summed(ctx, wide, wide_right), right)

    return {0: of_a, 1: of_b}


def _matrix(ctx: Context, dy: ir.Value, a: ir.Value, b: ir.Value) -> Gradients:
    """B may be a transposed matrix W (of tied weights): W is read, and its gradient is not transposed."""
    left, (inner, columns) = shape_of(a), shape_of(b)
    rows = math.prod(left[:-1])
    source, order = transposed_from(b)
    turned = order == [1, 0]

    def of_a() -> ir.Value:
        flat = ctx.reshape(dy, (rows, columns))
        attributes = {} if turned else {"transB": 1}
        return ctx.reshape(ctx.result("Gemm", [flat, source], attributes, shape=(rows, inner)), left)

    def of_b() -> ir.Value:
        flat = [ctx.reshape(a, (rows, inner)), ctx.reshape(dy, (rows, columns))]
        if not turned:
            return ctx.result("Gemm", flat, {"transA": 1}, shape=(inner, columns))
        return ctx.transpose(ctx.result("Gemm", flat[::-1], {"transA": 1}, shape=(columns, inner)), (1, 0))

    return {0: of_a, 1: of_b}


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> list[int]:
    rank = max(len(a), len(b))
    wide = ((1,) * (rank - len(shape)) + shape for shape in (a, b))
    return [second if first == 1 else first for first, second in zip(*wide, strict=True)]


def _turned(ctx: Context, value: ir.Value) -> ir.Value:
    rank = len(shape_of(value))
    return ctx.transpose(value, [*range(rank - 2), rank - 1, rank - 2])


def _product(ctx: Context, a: ir.Value, b: ir.Value) -> ir.Value:
    left, right = shape_of(a), shape_of(b)
    shape = (*_broadcast(left[:-2], right[:-2]), left[-2], right[-1])
    return ctx.result("MatMul", [a, b], shape=shape)


def _summed(ctx: Context, value: ir.Value, target: tuple[int, ...]) -> ir.Value:
    """Sum over the batch axes that `target` lacks or has one element along."""
    shape = shape_of(value)
    lead = len(shape) - len(target)
    axes = [axis for axis in range(len(shape) - 2) if axis < lead or (target[axis - lead] == 1 and shape[axis] != 1)]
    return ctx.reshape(ctx.sum(value, axes), target)


def gemm(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """Y = alpha A' B' + beta C, where ' is a transposition or none."""
    dy = dys[0]
    a, b, c = ([*node.inputs, None])[:3]
    assert dy is not None
    assert a is not None
    assert b is not None
    alpha, beta = node.attributes.get_float("alpha", 1.0), node.attributes.get_float("beta", 1.0)
    turn_a, turn_b = node.attributes.get_int("transA", 0), node.attributes.get_int("transB", 0)

    def product(left: ir.Value, right: ir.Value, trans_left: bool, trans_right: bool, like: ir.Value) -> ir.Value:
        attributes: dict[str, float | int] = {"alpha": float(alpha or 0.0)} if alpha != 1.0 else {}
        attributes |= {"transA": 1} if trans_left else {}
        attributes |= {"transB": 1} if trans_right else {}
        return ctx.result("Gemm", [left, right], attributes, shape=shape_of(like))

    def of_a() -> ir.Value:
        return product(b, dy, bool(turn_b), True, a) if turn_a else product(dy, b, False, not turn_b, a)

    def of_b() -> ir.Value:
        return product(dy, a, True, bool(turn_a), b) if turn_b else product(a, dy, not turn_a, False, b)

    gradients: dict[int, Thunk] = {0: of_a, 1: of_b}
    if c is not None:
        gradients[2] = lambda: ctx.unbroadcast(dy if beta == 1.0 else ctx.op("Mul", dy, float(beta or 0.0)), c)
    return gradients


def einsum_check(node: ir.Node) -> str | None:
    """No ellipsis, and no letter twice in a term."""
    equation = node.attributes.get_string("equation", "") or ""
    terms = equation.replace(" ", "").replace("->", ",").split(",")
    if "." in equation:
        return "an equation with an ellipsis has no gradient here; write its axes as letters"
    if any(len(set(term)) != len(term) for term in terms):
        return "an equation that takes a diagonal has no gradient here"
    return None


def einsum(ctx: Context, node: ir.Node, dys: Sequence[ir.Value | None]) -> Gradients:
    """The operand's term becomes the result; letters that stand in no other term are repeated."""
    dy = dys[0]
    assert dy is not None
    equation = (node.attributes.get_string("equation", "") or "").replace(" ", "")
    left, arrow, out = equation.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = [letter for letter in left if letter != ","]
        out = "".join(sorted({letter for letter in letters if letters.count(letter) == 1}))

    def part(place: int) -> Thunk:
        def emit() -> ir.Value:
            value, term = node.inputs[place], terms[place]
            others = [(terms[other], node.inputs[other]) for other in range(len(terms)) if other != place]
            known = set(out).union(*(term for term, _ in others))
            kept = [letter for letter in term if letter in known]
            shape = shape_of(value)
            extents = dict(zip(term, shape, strict=True))
            spelling = ",".join([out, *(term for term, _ in others)]) + "->" + "".join(kept)
            summed = ctx.result(
                "Einsum",
                [dy, *(other for _, other in others)],
                {"equation": spelling},
                shape=[extents[letter] for letter in kept],
            )
            with_ones = [extents[letter] if letter in known else 1 for letter in term]
            return ctx.expand(ctx.reshape(summed, with_ones), shape)

        return emit

    return {place: part(place) for place in range(len(terms))}
