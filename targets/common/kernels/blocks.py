"""Shared by definitions and schedule rules of every target: annotations, blocks of a function, typed constants."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import s_tir, te, tirx
from tvm.ir import Expr, PrimType
from tvm.s_tir.schedule import LoopRV, SBlockRV

RULE = "graphopt.rule"
"""Block annotation by which a compute definition names the schedule rule it wants."""

SCHEDULED = "graphopt.scheduled"
"""Attribute of a function whose loops are written by hand: no schedule is applied to it."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a PrimFunc with the properties that schedule rules use."""

    rv: SBlockRV
    name: str
    spatial: tuple[int, ...]  # extents of the spatial iterators, in order
    reduce: tuple[int, ...]
    rule: str


def blocks_of(schedule: s_tir.Schedule) -> list[Block]:
    """The blocks below the root of the function being scheduled, in program order."""
    root = schedule.get_sblock("root")
    blocks = []
    for rv in schedule.get_child_blocks(root):
        block = schedule.get(rv)
        spatial: list[int] = []
        reduce: list[int] = []
        for iterator in block.iter_vars:
            extent = int(iterator.dom.extent)
            (reduce if iterator.iter_type == tirx.IterVar.CommReduce else spatial).append(extent)
        rule = str(block.annotations[RULE]) if RULE in block.annotations else ""
        blocks.append(Block(rv, str(block.name_hint), tuple(spatial), tuple(reduce), rule))
    return blocks


def inline_after(schedule: s_tir.Schedule, anchor: Block) -> SBlockRV:
    """Inline every block after `anchor` into the last one and return that last block (the fused epilogue)."""
    blocks = blocks_of(schedule)
    position = next(i for i, block in enumerate(blocks) if block.name == anchor.name)
    for block in blocks[position + 1 : -1]:
        schedule.compute_inline(block.rv)
    return blocks[-1].rv


def dtype_of(schedule: s_tir.Schedule, block: SBlockRV) -> str:
    """Dtype of the tensor that `block` writes."""
    return str(schedule.get(block).writes[0].source.dtype)


def round_up(extent: int, multiple: int) -> int:
    """`extent` rounded up to a multiple."""
    return -(-extent // multiple) * multiple


def extent_of(schedule: s_tir.Schedule, loop: LoopRV) -> int:
    """Static extent of a loop."""
    return int(schedule.get(loop).extent)


def const(value: float, dtype: str | PrimType) -> Expr:
    """A typed scalar for compute definitions."""
    return tvm.tirx.const(value, dtype)


def dims(tensor: te.Tensor | tirx.Buffer) -> list[int]:
    """Static shape of a TE tensor."""
    return [int(d) for d in tensor.shape]
