"""Reads functions of one reduction block and an elementwise epilogue, for kernel templates.

    total[a] = what the anchor computes    y[i] = epilogue(total[a(i)], ...)

A kernel template computes `total` in its own way and stores the epilogue's results: the elementwise functions that TVM
fused behind the anchor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import ir, s_tir, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import Block, blocks_of, inline_after
from graphopt.targets.common.tir.expressions import rewritten, substituted


@dataclass(frozen=True, slots=True)
class Anchored:
    """`value` is what the anchor sums or maximises, over `variables`: first those of an element, then the reduced."""

    function: tirx.PrimFunc
    sources: tuple[tirx.Buffer, ...]
    value: Expr
    combine: type[tirx.Add | tirx.Mul | tirx.Max | tirx.Min]
    dtype: str
    index: str
    variables: tuple[tirx.Var, ...]
    _total: tirx.Buffer
    _last: s_tir.SBlock | None

    @property
    def total_extents(self) -> tuple[int, ...]:
        """Extents of what the anchor computes."""
        return tuple(int(extent) for extent in self._total.shape)

    @property
    def extents(self) -> tuple[int, ...]:
        """Extents of the output."""
        return tuple(int(extent) for extent in (self._total.shape if self._last is None else _extents(self._last)))

    def element(self, places: Sequence[Expr]) -> Expr:
        """`value` at these places, which stand for `variables`."""
        return substituted(self.value, dict(zip(self.variables, places, strict=True)))

    def store(self, places: Sequence[Expr], total: Expr) -> tuple[tirx.Buffer, Expr, list[Expr]]:
        """(buffer, value, indices) of the output element at `places`, whose `total` that is."""
        if self._last is None:
            return self._total, total, list(places)
        values = dict(zip((iterator.var for iterator in self._last.iter_vars), places, strict=True))

        def swap(part: Expr) -> Expr | None:
            if isinstance(part, ir.TensorLoad) and part.source.same_as(self._total):
                return total
            return substituted(part, values) if isinstance(part, tirx.Var) else None

        body = self._last.body
        return body.buffer, rewritten(body.value, swap), [substituted(index, values) for index in body.indices]


def read(sch: s_tir.Schedule, anchor: Block) -> Anchored:
    """The function of `sch`, whose one reduction is `anchor`.

    Raises:
        ValueError: something else than the anchor and its epilogue is left when all the rest is inlined.
    """
    names = [block.name for block in blocks_of(sch)]
    for name in names[: names.index(anchor.name)]:
        sch.compute_inline(sch.get_sblock(name))
    if names[-1] != anchor.name:
        inline_after(sch, anchor)
    blocks = blocks_of(sch)
    if blocks[0].name != anchor.name or len(blocks) > 2 or blocks[-1].reduce and len(blocks) == 2:
        raise ValueError("its epilogue is not elementwise")
    block = sch.get(blocks[0].rv)
    last = sch.get(blocks[1].rv) if len(blocks) == 2 else None
    update = block.body.value
    if not isinstance(update, tirx.Add | tirx.Mul | tirx.Max | tirx.Min):
        raise ValueError("it is neither a sum, a product nor an extreme")
    total = block.writes[0].source
    if last is not None and math.prod(_extents(last)) > math.prod(int(extent) for extent in total.shape):
        raise ValueError("what follows it broadcasts its result")
    variables = tuple(iterator.var for iterator in block.iter_vars)
    return Anchored(
        sch.mod["main"],
        tuple(region.source for region in block.reads),
        update.b,
        type(update),
        str(total.dtype),
        str(variables[0].ty.dtype),
        variables,
        total,
        last,
    )


def _extents(block: s_tir.SBlock) -> list[int]:
    return [int(iterator.dom.extent) for iterator in block.iter_vars]
