"""Helpers of the CPU schedule rules: tiles that divide or waste little, renumbered iterators, local padding."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.s_tir.schedule import LoopRV, SBlockRV

from graphopt.targets.common.kernels.blocks import Block, const, dims


def renumber(schedule: s_tir.Schedule, block: SBlockRV, index_map: Callable[..., list[Expr]]) -> s_tir.Schedule:
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


LONG_SUM = 64
"""Elements from which a sum in float32 loses more than ONNX Runtime's, which adds in parts."""


def summed_in(dtype: str, count: int) -> str:
    """The dtype in which a CPU keeps a sum of `count` elements of `dtype`."""
    return "float64" if dtype == "float32" and count > LONG_SUM else dtype


def pad_input(x: te.Tensor, pads: tuple[int, int, int, int]) -> te.Tensor:
    """Zero-pad rows and columns of x[N, C, H, W, b] by (top, left, bottom, right)."""
    n, c, h, w, b = dims(x)
    top, left, bottom, right = pads

    def element(i: Expr, j: Expr, y: Expr, z: Expr, k: Expr) -> Expr:
        inside = tirx.all(y >= top, y < top + h, z >= left, z < left + w)
        return tirx.if_then_else(inside, x[i, j, y - top, z - left, k], const(0, x.dtype))

    return te.compute((n, c, h + top + bottom, w + left + right, b), element, name="pad")


def pad_locally(schedule: s_tir.Schedule, pad: Block, task: LoopRV) -> None:
    """Let each iteration of the loop `task` pad its own input, in a local buffer."""
    schedule.compute_at(pad.rv, task, preserve_unit_loops=True)
    schedule.set_scope(pad.rv, 0, "local")
    schedule.vectorize(schedule.get_loops(pad.rv)[-1])
