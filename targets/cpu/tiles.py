"""The tiles that the kernel of a work may use: a small generated space per kind of kernel, the best estimate first."""

from __future__ import annotations

import math
from collections.abc import Callable

from graphopt.cost.work import Work
from graphopt.program.program import ITEM_BYTES
from graphopt.targets.cpu.kernels import gemm
from graphopt.targets.cpu.kernels.conv import direct, winograd_fused
from graphopt.targets.cpu.machine import CpuMachine

Space = Callable[[Work, CpuMachine], tuple[str, ...]]

DEFAULT = ("",)


def _direct(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    """Of `Conv2dBlocked`."""
    attributes = dict(work.attributes)
    group = attributes.get("group", 1)
    co, _, kh, kw, _, _ = work.operands[1].shape
    assert isinstance(group, int)
    n, _, rows, columns, _ = work.shape
    flat = (kh, kw) == (1, 1) and attributes.get("strides", (1, 1)) == (1, 1)
    weight_bytes = math.prod(work.operands[1].shape) * ITEM_BYTES[work.operands[1].dtype]
    width = rows * columns if flat else columns
    return tuple(map(str, direct.tiles(width, co // group, machine, weight_bytes, flat, n)))


def _winograd(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    """Of `Conv2dWinograd` and `Conv2dWinogradAxis`."""
    m, out = _winograd_plane(work)
    taps, co, ci, _, _ = work.operands[1].shape
    itemsize = ITEM_BYTES[work.operands[0].dtype]
    return tuple(map(str, winograd_fused.tiles(out, m, taps, ci, co, work.shape[0], machine, itemsize)))


def _every_winograd(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    m, out = _winograd_plane(work)
    return tuple(map(str, winograd_fused.every_tile(out, m, work.operands[1].shape[1], machine)))


def _winograd_plane(work: Work) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of an output tile, and of the output."""
    attributes = dict(work.attributes)
    m, axis = attributes["m"], attributes.get("axis")
    assert isinstance(m, int)
    return (1 if axis == 3 else m, 1 if axis == 2 else m), (work.shape[2], work.shape[3])


def _extents(work: Work) -> tuple[int, int, int] | None:
    """(M, N, K) of the product that the kernel of `work` computes (per group, per batch); None where it is no product.

    They rank the tiles; the kernel computes the same with any.
    """
    if work.operands[0].dtype not in ("float16", "bfloat16", "float32", "float64"):
        return None
    attributes = dict(work.attributes)
    x, w = work.operands[0].shape, work.operands[1].shape
    if 0 in (*x, *w, *work.shape):
        return None
    if work.op_type == "MatMul":
        if len(x) < 2 or len(w) < 2:
            return None
        if math.prod(w[:-2]) == 1:
            return math.prod(x[:-1]), w[-1], x[-1]
        return (x[-2], w[-1], x[-1]) if x[:-2] == w[:-2] else None
    if work.op_type == "Gemm":
        m, k = reversed(x) if attributes.get("transA") else x
        return m, w[0] if attributes.get("transB") else w[1], k
    group = attributes.get("group", 1)
    assert isinstance(group, int)
    depth, positions, kernel = math.prod(w[1:]), math.prod(work.shape[2:]), w[2:] or attributes.get("kernel_shape")
    if group == 1 and positions == 1 and kernel == x[2:]:
        return x[0], work.shape[1], depth
    return work.shape[1] // group, positions, depth


def _product(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    """Of what becomes a matrix product; the kernel's own choice, the best estimate, is spelled by nothing."""
    extents = _extents(work)
    if extents is None:
        return DEFAULT
    return ("", *map(str, gemm.tiles(*extents, machine, _computed(work))[1:]))


def _every_product(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    extents = _extents(work)
    if extents is None:
        return ()
    return ("", *map(str, gemm.every_tile(*extents[:2], machine, _computed(work))))


def _computed(work: Work) -> str:
    """The dtype that the sums have: halves are computed in single precision."""
    dtype = work.operands[0].dtype
    return "float32" if dtype in ("float16", "bfloat16") else dtype


SPACES: dict[tuple[str, str], Space] = {
    ("graphopt", "Conv2dBlocked"): _direct,
    ("graphopt", "Conv2dWinograd"): _winograd,
    ("graphopt", "Conv2dWinogradAxis"): _winograd,
    ("graphopt", "Conv2dIm2col"): _product,
    ("", "Conv"): _product,
    ("", "Gemm"): _product,
    ("", "MatMul"): _product,
}
"""By domain and operator."""

WIDE: dict[tuple[str, str], Space] = {
    ("graphopt", "Conv2dWinograd"): _every_winograd,
    ("graphopt", "Conv2dWinogradAxis"): _every_winograd,
    ("graphopt", "Conv2dIm2col"): _every_product,
    ("", "Conv"): _every_product,
    ("", "Gemm"): _every_product,
    ("", "MatMul"): _every_product,
}
"""The same, every tile that the kernel can be built with."""


def tiles(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    """Spellings of the tiles; a single empty one, the kernel's own choice, where there is nothing to choose."""
    space = SPACES.get((work.domain, work.op_type))
    return DEFAULT if space is None else space(work, machine) or DEFAULT


def wide(work: Work, machine: CpuMachine) -> tuple[str, ...]:
    """Spellings of all tiles; none where there is nothing to choose."""
    space = WIDE.get((work.domain, work.op_type))
    return () if space is None else space(work, machine)
