"""Products with square blocks of weights: the definition, and its normal form, a GEMM whose k is that of the blocks.

    y[m, n] = epilogue(sum over the blocks b of group n / width, i < depth of left(m, b, i) * blocks[b, i, n % width])

All blocks one after the other are k, of which a column sums over those of its group (`ragged`). What a block multiplies
lies where `left` finds it. Where that counts inputs in units of a block's depth, 16 bytes of them are copied at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import ir, s_tir, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import Block, const, dims
from graphopt.targets.common.tir.expressions import rewritten
from graphopt.targets.gpu.kernels.gemm import product
from graphopt.targets.gpu.kernels.gemm.access import uncast
from graphopt.targets.gpu.kernels.gemm.axes import Axes
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.ragged import Ragged

NAME = "gpu.sparse_product"
_SIDES = "graphopt.blocks"
"""Block annotation: groups of columns, and the width of each."""


def compute(
    left: Callable[[Expr, Expr, tirx.IterVar], Expr | te.TensorSlice],
    blocks: te.Tensor,
    order: te.Tensor,
    sizes: tuple[int, int, int, int],
    axes: Axes,
    dtype: str,
    bias: Callable[..., Expr | te.TensorSlice] | None = None,
    accumulate: str | None = None,
    tf32: bool = False,
    tile: str | None = None,
    turned: bool = False,
) -> te.Tensor:
    """The product, as a TE tensor of `axes`.

    Args:
        left: (m, block, i) -> what input i of a block multiplies.
        blocks: [B, depth, width]; with `turned` [B, width, depth], as tensor cores want them.
        order: `Ragged.order`.
        sizes: m, n, groups of columns, and at least as many blocks as the longest group has.
        axes: of the output, which they make of m and n.
        dtype: of the output; sums are kept in `accumulate`, by default the same.
        bias: what is added to the sum of an output index.
        tf32: factors in float32 may be rounded to 10 bits of their fraction.
        tile: the one that was chosen for it; None leaves it to the templates.
    """
    m, n, groups, longest = sizes
    _, depth, width = dims(blocks)
    if turned:
        depth, width = width, depth
    kept = accumulate or dtype
    j, i = te.reduce_axis((0, longest), "j"), te.reduce_axis((0, depth), "i")

    def element(_: Expr, row: Expr, column: Expr) -> Expr:
        group, lane = tirx.floordiv(column, width), tirx.floormod(column, width)
        block = order[group] + j
        weight = blocks[(block, lane, i) if turned else (block, i, lane)]
        value = left(row, block, i).astype(kept) * weight.astype(kept)
        return te.sum(tirx.if_then_else(block < order[group + 1], value, const(0, kept)), axis=[j, i])

    notes = product.notes_of(NAME, axes, tf32, tile) | {_SIDES: [groups, width]}
    sums = te.compute((1, m, n), element, name="product", attrs=notes)

    def finish(*index: Expr) -> Expr:
        value = sums[axes.flat(index)]
        return (value if bias is None else value + bias(*index).astype(kept)).astype(dtype)

    return te.compute(axes.shape, finish, name="finish")


def read(sch: s_tir.Schedule, anchor: Block) -> Gemm:
    """The normal form of a function whose one sum is `anchor`.

    Raises:
        ValueError: something in the function is neither computed for one operand element nor for one result.
    """
    (_, rows, results), (_, depth) = anchor.spatial, anchor.reduce
    groups, width = (int(each) for each in sch.get(anchor.rv).annotations[_SIDES])
    found = product.anchor_of(sch, anchor)
    value = found.added
    if not isinstance(value, ir.Call) or not isinstance(value.args[1], tirx.Mul):
        raise ValueError("it is no sum of products under a condition")
    (_, m, n, j, i), factors = found.variables, value.args[1]
    order, blocks = uncast(value.args[0].b).source, uncast(factors.b).source

    def at(part: Expr, places: dict[tirx.Var, Expr], k: Expr) -> Expr:
        """`part` at element k of all blocks."""

        def swap(each: Expr) -> Expr | None:
            if isinstance(each, tirx.Add) and each.b.same_as(j):  # the block
                return tirx.floordiv(k, depth).astype(found.index)
            if isinstance(each, tirx.Var):
                place = tirx.floormod(k, depth) if each.same_as(i) else places.get(each)
                return None if place is None else place.astype(found.index)
            return None

        return rewritten(part, swap)

    return Gemm(
        found.function,
        1,
        rows,
        groups * width,
        dims(blocks)[0] * depth,
        found.dtype,
        found.index,
        lambda _, row, k: at(factors.a, {m: row}, k),
        lambda _, k, column: at(factors.b, {n: column}, k),
        found.store,
        found.kind(factors.a, factors.b),
        found.tile,
        Ragged(order, groups, width, depth),
        results,
    )
