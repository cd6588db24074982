"""GEMMs, explicit and implicit (a convolution, for example): the definition, and its normal form for kernel templates.

    y[out(b, m, n)] = epilogue(sum over k of left(b, m, k) * right(b, k, n))

`left` and `right` are expressions, not tensors: a convolution's patches, a cast, a transpose or a mask are computed
where the operands are read, and never stored. `epilogue` is whatever elementwise functions TVM fused behind the sum.
The kernel templates (`simt`, `mma`, `wgmma`) decide how blocks and threads share the work; they see a GEMM in this
form alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import ir, s_tir, te, tirx
from tvm.ir import Expr

from graphopt.cost.workload import TILE
from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, inline_after
from graphopt.targets.common.tir.expressions import rewritten, substituted
from graphopt.targets.gpu.kernels.gemm.axes import Axes

NAME = "gpu.product"
_AXES = "graphopt.axes"
"""Block annotation: `Axes` of the output."""
_TF32 = "graphopt.tf32"
"""Block annotation: factors in float32 may be rounded to TF32."""

Operand = Callable[[Expr, Expr, Expr], Expr]
"""(b, m, k) or (b, k, n) -> the element, as a TE expression."""


def compute(
    left: Callable[[Expr, Expr, tirx.IterVar], Expr | te.TensorSlice],
    right: Callable[[Expr, tirx.IterVar, Expr], Expr | te.TensorSlice],
    sizes: tuple[int, int, int, int],
    axes: Axes,
    dtype: str,
    bias: Callable[..., Expr | te.TensorSlice] | None = None,
    accumulate: str | None = None,
    tf32: bool = False,
    tile: str | None = None,
) -> te.Tensor:
    """The GEMM, as a TE tensor of `axes`.

    Args:
        sizes: extents of b, m, n, k.
        axes: of the output, which they make of b, m and n.
        dtype: of the output; sums are kept in `accumulate`, by default the same.
        bias: what is added to the sum of an output index.
        tf32: factors in float32 may be rounded to 10 bits of their fraction.
        tile: the one that was chosen for it, as its kernel template spells it; None leaves it to the templates.
    """
    batch, m, n, k = sizes
    kept = accumulate or dtype
    r = te.reduce_axis((0, k), "k")

    def element(b: Expr, y: Expr, x: Expr) -> Expr:
        return te.sum(left(b, y, r).astype(kept) * right(b, r, x).astype(kept), axis=[r])

    notes = {RULE: NAME, _AXES: str(axes), _TF32: int(tf32)} | ({TILE: tile} if tile else {})
    sums = te.compute((batch, m, n), element, name="product", attrs=notes)

    def finish(*index: Expr) -> Expr:
        value = sums[axes.flat(index)]
        return (value if bias is None else value + bias(*index).astype(kept)).astype(dtype)

    return te.compute(axes.shape, finish, name="finish")


@dataclass(frozen=True, slots=True)
class Gemm:
    """The normal form of a GEMM. `left`, `right` and `store` take index expressions.

    `store(b, m, n, total)` gives what the finished sum becomes: (buffer, value, indices).
    `batch`, `m`, `n`, `k` are extents; `dtype` is that of the sums, `index` of the indices in `function`. `kind` is the
    type of both factors where tensor cores may multiply it: "float16", "bfloat16", or "tf32" where that was allowed.
    `tile` is the one that was chosen, or empty.
    """

    function: Any
    batch: int
    m: int
    n: int
    k: int
    dtype: str
    index: str
    left: Operand
    right: Operand
    store: Callable[[Expr, Expr, Expr, Expr], tuple[tirx.Buffer, Expr, list[Expr]]]
    kind: str | None = None
    tile: str = ""


def layout(sch: s_tir.Schedule, anchor: Block) -> str:
    """`Axes.layout` of what `anchor` computes."""
    return Axes.parse(str(sch.get(anchor.rv).annotations[_AXES])).layout


def read(sch: s_tir.Schedule, anchor: Block) -> Gemm:
    """The normal form of a function whose one GEMM is `anchor`.

    Raises:
        ValueError: something in the function is neither computed for one operand element nor for one result.
    """
    names = [block.name for block in blocks_of(sch)]
    for name in names[: names.index(anchor.name)]:
        sch.compute_inline(sch.get_sblock(name))
    inline_after(sch, anchor)
    blocks = blocks_of(sch)
    if len(blocks) != 2 or blocks[0].name != anchor.name or blocks[1].reduce:
        raise ValueError("its epilogue is not elementwise")
    block, last = sch.get(blocks[0].rv), sch.get(blocks[1].rv)
    sums = block.writes[0].source
    value = block.body.value  # sums[...] + left * right
    if not isinstance(value, tirx.Add) or not isinstance(value.b, tirx.Mul):
        raise ValueError("it is no sum of products")
    b, m, n, k = (iterator.var for iterator in block.iter_vars)
    left, right = value.b.a, value.b.b
    axes = Axes.parse(str(block.annotations[_AXES]))
    batch, rows, columns = anchor.spatial
    store = last.body
    if axes.shape != tuple(int(iterator.dom.extent) for iterator in last.iter_vars):
        raise ValueError("what follows it broadcasts its result")

    def finish(at: Expr, row: Expr, column: Expr, total: Expr) -> tuple[tirx.Buffer, Expr, list[Expr]]:
        index = axes.index(at, row, column)
        variables = [iterator.var for iterator in last.iter_vars]

        def swap(node: Expr) -> Expr | None:
            return total if isinstance(node, ir.TensorLoad) and node.source.same_as(sums) else None

        values = dict(zip(variables, index, strict=True))
        at_index = [substituted(place, values) for place in store.indices]
        return store.buffer, _with(store.value, values, swap), at_index

    return Gemm(
        sch.mod["main"],
        batch,
        rows,
        columns,
        anchor.reduce[0],
        str(sums.dtype),
        str(m.ty.dtype),
        lambda at, row, depth: substituted(left, {b: at, m: row, k: depth}),
        lambda at, depth, column: substituted(right, {b: at, n: column, k: depth}),
        finish,
        _kind(left, right, str(sums.dtype), bool(int(block.annotations[_TF32]))),
        str(block.annotations.get(TILE, "")),
    )


def _kind(left: Expr, right: Expr, summed: str, tf32: bool) -> str | None:
    """`Gemm.kind` of two factors whose products are summed in `summed`."""
    if summed != "float32":
        return None
    types = {str((value.value if isinstance(value, tirx.Cast) else value).ty.dtype) for value in (left, right)}
    if types == {"float32"}:
        return "tf32" if tf32 else None
    return types.pop() if types in ({"float16"}, {"bfloat16"}) else None


def _with(value: Expr, variables: dict[tirx.Var, Expr], swap: Callable[[Expr], Expr | None]) -> Expr:
    """`value` with `variables` substituted and parts swapped; what is swapped in is left as it is."""
    return rewritten(
        value,
        lambda part: replacement if (replacement := swap(part)) is not None else _variable(part, variables),
    )


def _variable(part: Expr, variables: dict[tirx.Var, Expr]) -> Expr | None:
    return substituted(part, variables) if isinstance(part, tirx.Var) else None
