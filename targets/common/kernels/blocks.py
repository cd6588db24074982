"""Moves that the schedule rules share: inlining an epilogue, choosing tiles, dealing out parallel work."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import tvm
from tvm import s_tir, te, tirx

RULE = "graphopt.rule"
"""Block annotation by which a compute definition names the schedule rule it wants."""

SCHEDULED = "graphopt.scheduled"
"""Attribute of a function whose loops are written by hand, as they are to run: it is taken as it is."""


@dataclass(frozen=True, slots=True)
class Block:
    """A block of a PrimFunc with what the rules ask about it."""

    rv: Any
    name: str
    spatial: tuple[int, ...]  # extents of the spatial iterators, in order
    reduce: tuple[int, ...]
    rule: str


def blocks_of(schedule: s_tir.Schedule) -> list[Block]:
    """The blocks below the root of the function being scheduled, in program order."""
    root = schedule.get_sblock("root")
    found = []
    for rv in schedule.get_child_blocks(root):
        block = schedule.get(rv)
        spatial: list[int] = []
        reduce: list[int] = []
        for iterator in block.iter_vars:
            extent = int(iterator.dom.extent)
            (reduce if iterator.iter_type == tirx.IterVar.CommReduce else spatial).append(extent)
        rule = str(block.annotations[RULE]) if RULE in block.annotations else ""
        found.append(Block(rv, str(block.name_hint), tuple(spatial), tuple(reduce), rule))
    return found


def inline_after(schedule: s_tir.Schedule, anchor: Block) -> Any:
    """Inline every block after `anchor` into the last one and return that last block (the fused epilogue)."""
    blocks = blocks_of(schedule)
    position = next(i for i, block in enumerate(blocks) if block.name == anchor.name)
    for block in blocks[position + 1 : -1]:
        schedule.compute_inline(block.rv)
    return blocks[-1].rv


def renumber(schedule: s_tir.Schedule, block: Any, index_map: Any) -> s_tir.Schedule:
    """A schedule of the same function in which the iterators of `block` are a bijective function of the old ones.

    Fusing loops alone would hide from `compute_at` that a tile of the fused loop reads a contiguous range. The indices
    are simplified with the iterators' ranges known, which the primitive itself does not do.
    """
    name = str(schedule.get(block).name_hint)
    iterators = schedule.get(block).iter_vars
    kind = str(iterators[0].var.ty.dtype)
    bound = tirx.IndexMap.from_func(index_map, ndim=len(iterators), index_dtype=kind)
    schedule.transform_block_layout(name, bound)
    return s_tir.Schedule(s_tir.transform.StmtSimplify()(schedule.mod))


def dtype_of(schedule: s_tir.Schedule, block: Any) -> str:
    """Dtype of the tensor that `block` writes."""
    return str(schedule.get(block).writes[0].source.dtype)


def largest_divisor(extent: int, limit: int) -> int:
    """The largest divisor of `extent` that is at most `limit`."""
    return max(d for d in range(1, max(1, min(extent, limit)) + 1) if extent % d == 0)


def several(extent: int, lanes: int) -> int:
    """Lanes of up to four vectors that divide `extent`, whose sums do not wait for each other."""
    return next((lanes * count for count in (4, 2) if extent % (lanes * count) == 0 and extent > lanes * count), lanes)


def padded_tile(extent: int, limit: int, waste: float = 0.08) -> int:
    """The widest tile up to `limit` whose rounding up wastes at most `waste` of `extent`, else the least wasteful."""
    best, best_key = 1, (math.inf, 0)
    for tile in range(1, min(extent, limit) + 1):
        padded = math.ceil(extent / tile) * tile
        loss = padded / extent - 1
        key = (0.0 if loss <= waste else loss, -tile)
        if key < best_key:
            best, best_key = tile, key
    return best


def round_up(extent: int, multiple: int) -> int:
    """`extent` rounded up to a multiple."""
    return -(-extent // multiple) * multiple


def extent_of(schedule: s_tir.Schedule, loop: Any) -> int:
    """Static extent of a loop."""
    return int(schedule.get(loop).extent)


def const(value: float, dtype: str) -> Any:
    """A typed scalar for compute definitions."""
    return tvm.tirx.const(value, dtype)


LONG_SUM = 64
"""Elements from which a sum in float32 loses more than ONNX Runtime's, which adds in parts."""


def summed_in(dtype: str, count: int) -> str:
    """The dtype in which a CPU keeps a sum of `count` elements of `dtype`."""
    return "float64" if dtype == "float32" and count > LONG_SUM else dtype


def dims(tensor: Any) -> list[int]:
    """Static shape of a TE tensor."""
    return [int(d) for d in tensor.shape]


def pad_input(x: Any, pads: tuple[int, int, int, int]) -> Any:
    """Zero-pad rows and columns of x[N, C, H, W, b] by (top, left, bottom, right)."""
    n, c, h, w, b = dims(x)
    top, left, bottom, right = pads

    def element(i: Any, j: Any, y: Any, z: Any, k: Any) -> Any:
        inside = tirx.all(y >= top, y < top + h, z >= left, z < left + w)
        return tirx.if_then_else(inside, x[i, j, y - top, z - left, k], const(0, x.dtype))

    return te.compute((n, c, h + top + bottom, w + left + right, b), element, name="pad")


def pad_locally(schedule: s_tir.Schedule, pad: Block, task: Any) -> None:
    """Let each iteration of the loop `task` pad what it reads, into a buffer of its own."""
    schedule.compute_at(pad.rv, task, preserve_unit_loops=True)
    schedule.set_scope(pad.rv, 0, "local")
    schedule.vectorize(schedule.get_loops(pad.rv)[-1])
