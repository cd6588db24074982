"""GEMMs, explicit and implicit (a convolution, for example): the definition, and its normal form for kernel templates.

    y[out(b, m, n)] = epilogue(sum over k of left(b, m, k) * right(b, k, n))

`left` and `right` are expressions, not tensors: a convolution's patches, a cast, a transpose or a mask are computed
where the operands are read, and never stored. `epilogue` is whatever elementwise functions TVM fused behind the sum.
The kernel templates (`simt`, `mma`, `wgmma`) decide how blocks and threads share the work; they see a GEMM in this
form alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import ir, s_tir, te, tirx
from tvm.ir import Expr

from graphopt.cost.workload import TILE
from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, inline_after
from graphopt.targets.common.kernels.guards import inside
from graphopt.targets.common.tir.expressions import rewritten, substituted
from graphopt.targets.gpu.kernels.gemm.axes import Axes
from graphopt.targets.gpu.kernels.gemm.ragged import Ragged

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

    sums = te.compute((batch, m, n), element, name="product", attrs=notes_of(NAME, axes, tf32, tile))

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
    `tile` is the one that was chosen, or empty. With `ragged`, columns sum over parts of k; only `results` of them are
    stored, the others are padding.
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
    ragged: Ragged | None = None
    results: int = 0

    @property
    def summed(self) -> int:
        """Elements of k that a column sums over, on average."""
        return self.k if self.ragged is None else math.ceil(self.k / self.ragged.groups)

    def fits(self, columns: int, depth: int, parts: int) -> bool:
        """Whether a kernel may cut it into tiles of so many columns, slices so deep, and k into so many parts."""
        return self.ragged is None or (parts == 1 and self.ragged.fits(columns, depth))

    def column(self, tile: Expr, columns: int) -> Expr:
        """The first column of a tile."""
        return tile * columns if self.ragged is None else self.ragged.column(tile, columns)

    def exists(self, row: Expr, column: Expr, tile: tuple[int, int]) -> Expr | None:
        """The condition that a result of a tile is stored; None where all of every tile are."""
        if self.ragged is None:
            return inside((row, self.m, tile[0]), (column, self.n, tile[1]))
        return inside((row, self.m, tile[0]), (column, self.results, self.n))


def layout(sch: s_tir.Schedule, anchor: Block) -> str:
    """`Axes.layout` of what `anchor` computes."""
    return Axes.parse(str(sch.get(anchor.rv).annotations[_AXES])).layout


@dataclass(frozen=True, slots=True)
class Anchor:
    """What a function with one sum of products computes, before it has a normal form.

    `added` is what is added to the sum, over `variables`; `store` is `Gemm.store`.
    """

    function: Any
    added: Expr
    variables: tuple[tirx.Var, ...]
    dtype: str
    store: Callable[[Expr, Expr, Expr, Expr], tuple[tirx.Buffer, Expr, list[Expr]]]
    tf32: bool
    tile: str

    @property
    def index(self) -> str:
        """The dtype of indices."""
        return str(self.variables[0].ty.dtype)

    def kind(self, left: Expr, right: Expr) -> str | None:
        """`Gemm.kind` of two factors."""
        if self.dtype != "float32":
            return None
        types = {str((value.value if isinstance(value, tirx.Cast) else value).ty.dtype) for value in (left, right)}
        if types == {"float32"}:
            return "tf32" if self.tf32 else None
        return types.pop() if types in ({"float16"}, {"bfloat16"}) else None


def notes_of(rule: str, axes: Axes, tf32: bool, tile: str | None) -> dict[str, Any]:
    """The annotations of a sum that `anchor` reads."""
    return {RULE: rule, _AXES: str(axes), _TF32: int(tf32)} | ({TILE: tile} if tile else {})


def anchor_of(sch: s_tir.Schedule, anchor: Block) -> Anchor:
    """What a function computes whose one sum of products is `anchor`.

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
    update = block.body.value  # sums[...] + left * right
    if not isinstance(update, tirx.Add):
        raise ValueError("it is no sum of products")
    axes = Axes.parse(str(block.annotations[_AXES]))
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

    return Anchor(
        sch.mod["main"],
        update.b,
        tuple(iterator.var for iterator in block.iter_vars),
        str(sums.dtype),
        finish,
        bool(int(block.annotations[_TF32])),
        str(block.annotations.get(TILE, "")),
    )


def read(sch: s_tir.Schedule, anchor: Block) -> Gemm:
    """The normal form of a function whose one GEMM is `anchor`.

    Raises:
        ValueError: something in the function is neither computed for one operand element nor for one result.
    """
    (batch, rows, columns), (depth,) = anchor.spatial, anchor.reduce
    found = anchor_of(sch, anchor)
    if not isinstance(found.added, tirx.Mul):
        raise ValueError("it is no sum of products")
    (b, m, n, k), left, right = found.variables, found.added.a, found.added.b
    return Gemm(
        found.function,
        batch,
        rows,
        columns,
        depth,
        found.dtype,
        found.index,
        lambda at, row, depth: substituted(left, {b: at, m: row, k: depth}),
        lambda at, depth, column: substituted(right, {b: at, n: column, k: depth}),
        found.store,
        found.kind(left, right),
        found.tile,
    )


def _with(value: Expr, variables: dict[tirx.Var, Expr], swap: Callable[[Expr], Expr | None]) -> Expr:
    """`value` with `variables` substituted and parts swapped; what is swapped in is left as it is."""
    return rewritten(
        value,
        lambda part: replacement if (replacement := swap(part)) is not None else _variable(part, variables),
    )


def _variable(part: Expr, variables: dict[tirx.Var, Expr]) -> Expr | None:
    return substituted(part, variables) if isinstance(part, tirx.Var) else None
