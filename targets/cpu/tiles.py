"""The tiles that a workload's kernel can use: a small generated space per kind of kernel, the best estimate first."""

from __future__ import annotations

import math
from collections.abc import Callable

from graphopt.cost.workload import Workload
from graphopt.program.program import ITEM_BYTES
from graphopt.targets.cpu.kernels import gemm
from graphopt.targets.cpu.kernels.conv import direct, winograd_fused
from graphopt.targets.cpu.machine import CpuMachine

Space = Callable[[Workload, CpuMachine], tuple[str, ...]]

DEFAULT = ("",)


def _direct(workload: Workload, machine: CpuMachine) -> tuple[str, ...]:
    """Tiles of `Conv2dBlocked`."""
    attributes = dict(workload.attributes)
    group = attributes.get("group", 1)
    co, _, kh, kw, _, _ = workload.operands[1].shape
    assert isinstance(group, int)
    n, _, rows, columns, _ = workload.shape
    flat = (kh, kw) == (1, 1) and attributes.get("strides", (1, 1)) == (1, 1)
    weight_bytes = math.prod(workload.operands[1].shape) * ITEM_BYTES[workload.operands[1].dtype]
    width = rows * columns if flat else columns
    return tuple(map(str, direct.tiles(width, co // group, machine, weight_bytes, flat, n)))


def _winograd(workload: Workload, machine: CpuMachine) -> tuple[str, ...]:
    """Tiles of `Conv2dWinograd` and `Conv2dWinogradAxis`."""
    m, out = _winograd_plane(workload)
    taps, co, ci, _, _ = workload.operands[1].shape
    itemsize = ITEM_BYTES[workload.operands[0].dtype]
    return tuple(map(str, winograd_fused.tiles(out, m, taps, ci, co, workload.shape[0], machine, itemsize)))


def _every_winograd(workload: Workload, machine: CpuMachine) -> tuple[str, ...]:
    m, out = _winograd_plane(workload)
    return tuple(map(str, winograd_fused.every_tile(out, m, workload.operands[1].shape[1], machine)))


def _winograd_plane(workload: Workload) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of an output tile, and of the output."""
    attributes = dict(workload.attributes)
    m, axis = attributes["m"], attributes.get("axis")
    assert isinstance(m, int)
    return (1 if axis == 3 else m, 1 if axis == 2 else m), (workload.shape[2], workload.shape[3])


def _extents(workload: Workload) -> tuple[int, int, int] | None:
    """(M, N, K) of the GEMM that the kernel of `workload` computes, per group and batch; None if it computes none.

    They rank the tiles; the kernel computes the same with any.
    """
    if workload.operands[0].dtype not in ("float16", "bfloat16", "float32", "float64"):
        return None
    attributes = dict(workload.attributes)
    x, w = workload.operands[0].shape, workload.operands[1].shape
    if 0 in (*x, *w, *workload.shape):
        return None
    if workload.op_type == "MatMul":
        if len(x) < 2 or len(w) < 2:
            return None
        if math.prod(w[:-2]) == 1:
            return math.prod(x[:-1]), w[-1], x[-1]
        return (x[-2], w[-1], x[-1]) if x[:-2] == w[:-2] else None
    if workload.op_type == "Gemm":
        m, k = reversed(x) if attributes.get("transA") else x
        return m, w[0] if attributes.get("transB") else w[1], k
    group = attributes.get("group", 1)
    assert isinstance(group, int)
    depth, positions, kernel = math.prod(w[1:]), math.prod(workload.shape[2:]), w[2:] or attributes.get("kernel_shape")
    if group == 1 and positions == 1 and kernel == x[2:]:
        return x[0], workload.shape[1], depth
    return workload.shape[1] // group, positions, depth


def _product(workload: Workload, machine: CpuMachine) -> tuple[str, ...]:
    """Tiles of operators that become GEMMs; the empty string is the kernel's own choice, the best estimate."""
    extents = _extents(workload)
    if extents is None:
        return DEFAULT
    return ("", *map(str, gemm.tiles(*extents, machine, _computed(workload))[1:]))


def _every_product(workload: Workload, machine: CpuMachine) -> tuple[str, ...]:
    extents = _extents(workload)
    if extents is None:
        return ()
    return ("", *map(str, gemm.every_tile(*extents[:2], machine, _computed(workload))))


def _computed(workload: Workload) -> str:
    """The dtype of the sums: fp16 and bf16 are computed in single precision."""
    dtype = workload.operands[0].dtype
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
"""Tile spaces by domain and operator."""

WIDE: dict[tuple[str, str], Space] = {
    ("graphopt", "Conv2dWinograd"): _every_winograd,
    ("graphopt", "Conv2dWinogradAxis"): _every_winograd,
    ("graphopt", "Conv2dIm2col"): _every_product,
    ("", "Conv"): _every_product,
    ("", "Gemm"): _every_product,
    ("", "MatMul"): _every_product,
}
"""Spaces of every tile that the kernel can be built with, by domain and operator."""


def tiles(workload: Workload, machine: CpuMachine) -> tuple[str, ...]:
    """Spellings of the tiles; a single empty one, the kernel's own choice, where there is nothing to choose."""
    space = SPACES.get((workload.domain, workload.op_type))
    return DEFAULT if space is None else space(workload, machine) or DEFAULT


def wide(workload: Workload, machine: CpuMachine) -> tuple[str, ...]:
    """Spellings of all tiles; none where there is nothing to choose."""
    space = WIDE.get((workload.domain, workload.op_type))
    return () if space is None else space(workload, machine)
