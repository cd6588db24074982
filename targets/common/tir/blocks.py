"""The blocks of a PrimFunc as data: parsed in order, changed, and put back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import ir, s_tir, tirx
from tvm.ir import Expr

from graphopt.targets.common.tir.expressions import parts


@dataclass(frozen=True, slots=True)
class Stage:
    """Loops around one block that stores one value: what a TE definition becomes.

    `value` is what is stored at `indices` of `buffer`; `variables` are the iterators of the block.
    """

    nest: tirx.Stmt
    block: s_tir.SBlock
    buffer: tirx.Buffer
    indices: tuple[Expr, ...]
    value: Expr
    variables: tuple[tirx.Var, ...]

    @property
    def reduces(self) -> bool:
        """Whether the block is a reduction."""
        return self.block.init is not None

    @property
    def extents(self) -> tuple[int, ...]:
        """Extents of the iterators."""
        return tuple(int(iterator.dom.extent) for iterator in self.block.iter_vars)

    def storing(self, value: Expr) -> tirx.Stmt:
        """The loops with another value stored, which may read other tensors."""
        body = tirx.BufferStore(self.buffer, value, list(self.indices))
        old = self.block
        fields = old.iter_vars, _reads(value, self.buffer), old.writes, old.name_hint, body, old.init
        block = s_tir.SBlock(*fields, old.alloc_buffers, old.match_buffers, old.annotations)
        return _inside(self.nest, block)


def stages(function: tirx.PrimFunc) -> list[Stage] | None:
    """The stages of a function that was created from TE definitions; None for any other function."""
    root = function.body
    if not isinstance(root, s_tir.SBlockRealize):
        return None
    body = root.block.body
    parsed = [_stage(nest) for nest in (body if isinstance(body, tirx.SeqStmt) else [body])]
    return None if any(each is None for each in parsed) else [each for each in parsed if each is not None]


def replaced(function: tirx.PrimFunc, nests: Sequence[tirx.Stmt], keep: Callable[[tirx.Buffer], bool]) -> tirx.PrimFunc:
    """The function with these nests as its body, and with those of its own tensors that `keep` accepts."""
    old = function.body.block
    tensors = [buffer for buffer in old.alloc_buffers if keep(buffer)]
    body = nests[0] if len(nests) == 1 else tirx.SeqStmt(list(nests))
    block = s_tir.SBlock([], [], [], old.name_hint, body, old.init, tensors, old.match_buffers, old.annotations)
    return function.with_body(s_tir.SBlockRealize([], function.body.predicate, block))


def loads(expression: Expr) -> list[ir.TensorLoad]:
    """The loads in an expression."""
    return [part for part in parts(expression) if isinstance(part, ir.TensorLoad)]


def holds_bfloat16(stage: Stage) -> bool:
    """Whether the stage reads, writes or computes a bfloat16."""
    types = (str(part.ty.dtype) for part in parts(stage.value) if isinstance(part, ir.TensorLoad | tirx.Cast))
    return "bfloat16" in (str(stage.buffer.dtype), *types)


def _stage(nest: tirx.Stmt) -> Stage | None:
    inner = nest
    while isinstance(inner, tirx.For):
        inner = inner.body
    if not isinstance(inner, s_tir.SBlockRealize) or not isinstance(inner.block.body, tirx.BufferStore):
        return None
    block, store = inner.block, inner.block.body
    variables = tuple(iterator.var for iterator in block.iter_vars)
    return Stage(nest, block, store.buffer, tuple(store.indices), store.value, variables)


def _inside(nest: tirx.Stmt, block: s_tir.SBlock) -> tirx.Stmt:
    """The loops around another block."""
    if isinstance(nest, tirx.For):
        bounds = nest.loop_var, nest.min, nest.extent, nest.kind
        return tirx.For(*bounds, _inside(nest.body, block), nest.thread_binding, nest.annotations, nest.step)
    return s_tir.SBlockRealize(nest.iter_values, nest.predicate, block)


def _reads(value: Expr, own: tirx.Buffer) -> list[ir.TensorRegion]:
    """Regions of the tensors that a value reads, one for each place."""
    regions: dict[tuple[str, str], ir.TensorRegion] = {}
    for load in loads(value):
        if not load.source.same_as(own):
            key = str(load.source), str(list(load.indices))
            region = [ir.Range.from_min_extent(index, tirx.IntImm(str(index.ty.dtype), 1)) for index in load.indices]
            regions.setdefault(key, tirx.BufferRegion(load.source, region))
    return list(regions.values())
