"""Sums and maxima over windows of blocked tensors: depthwise convolutions and pooling.

A thread takes some neighbouring channels of one pixel, as many as make a vector of 16 bytes, and goes over the window:
whether a tap is inside the image is one question for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm import s_tir, te, tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.script.ir_builder import tirx as T

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.kernels import anchored
from graphopt.targets.common.kernels.blocks import RULE, Block, const, dims
from graphopt.targets.common.kernels.guards import inside, when
from graphopt.targets.gpu.code import handwritten
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels.generic import THREADS

NAME = "gpu.window"
BYTES = 16
"""Bytes of the widest vector: of totals, because fp16 and bf16 are summed in fp32."""

LARGE, FEW = 256, 64
"""Taps of a window above which, and windows per multiprocessor below which, a thread per window is too slow."""

UNROLLED = 49
"""Taps up to which the loops over them are unrolled."""

RESIDENT = 4
"""Resident blocks on a multiprocessor: they leave a thread some 64 registers for its loads in flight."""


@dataclass(frozen=True, slots=True)
class Window:
    """Rows and columns of a window: extents, strides, dilations, and what is padded before the image."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    def at(
        self,
        place: tuple[Expr, Expr],
        tap: tuple[Expr | tirx.IterVar, Expr | tirx.IterVar],
        image: tuple[int, int],
        out: tuple[int, int],
    ) -> tuple[list[Expr], Expr | None]:
        """Where in the image output `place` finds `tap`, and whether that is inside; None if all of them are."""
        index, conditions = [], []
        for axis in range(2):
            here = place[axis] * self.strides[axis] + tap[axis] * self.dilations[axis] - self.pads[axis]
            last = (out[axis] - 1) * self.strides[axis] + (self.kernel[axis] - 1) * self.dilations[axis]
            if self.pads[axis] > 0:
                conditions.append(here >= 0)
            if last - self.pads[axis] >= image[axis]:
                conditions.append(here < image[axis])
            index.append(here)
        return index, tirx.all(*conditions) if conditions else None

    def count(self, axis: int, place: Expr, extent: int, pads: tuple[int, int]) -> Expr:
        """Taps of an output place that lie in the image or in `pads` around it, without dilation."""
        start = place * self.strides[axis] - self.pads[axis]
        return tirx.min(start + self.kernel[axis], extent + pads[1]) - tirx.max(start, -pads[0])


def reduced(
    x: te.Tensor,
    seen: Window,
    out: tuple[int, ...],
    reduce: Callable[..., Expr],
    neutral: float,
    dtype: str,
    of: Callable[..., Expr] | None = None,
) -> te.Tensor:
    """reduce over the window of x[N, CB, H, W, b] at every element of `out`, in `dtype`.

    Args:
        neutral: what lies outside the image.
        of: (value, block, tap row, tap column, lane) -> what is reduced; by default the value.
    """
    image = dims(x)[2], dims(x)[3]
    rows, columns = te.reduce_axis((0, seen.kernel[0]), "rows"), te.reduce_axis((0, seen.kernel[1]), "columns")

    def element(n: Expr, block: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
        (row, column), inside = seen.at((y, z), (rows, columns), image, (out[2], out[3]))
        value = x[n, block, row, column, lane].astype(dtype)
        if of is not None:
            value = of(value, block, rows, columns, lane)
        if inside is not None:
            value = tirx.if_then_else(inside, value, const(neutral, dtype))
        return reduce(value, axis=[rows, columns])

    return te.compute(out, element, name="window", attrs={RULE: NAME})


def emit(sch: s_tir.Schedule, anchor: Block, device: GpuSpec) -> tirx.PrimFunc:
    """The function in which neighbouring threads take neighbouring vectors of channels.

    Raises:
        ValueError: the windows are so few and large that the threads of a block should share one, or the function is
            not made of `reduced` and an epilogue.
    """
    if math.prod(anchor.reduce) > LARGE and math.prod(anchor.spatial) < device.multiprocessors * FEW:
        raise ValueError("its windows are few and large")
    reduction = anchored.read(sch, anchor)
    width = math.gcd(anchor.spatial[-1], BYTES // ITEM_BYTES[reduction.dtype])
    extents = (*anchor.spatial[:-1], anchor.spatial[-1] // width)
    vectors = math.prod(extents)
    threads = min(THREADS, device.threads_per_block, vectors)
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name("main")
            with (
                T.launch_thread("blockIdx.x", math.ceil(vectors / threads)) as block,
                T.launch_thread("threadIdx.x", threads) as thread,
            ):
                at = block * threads + thread
                total = T.alloc_buffer((width,), reduction.dtype, scope="local")
                with when(inside((at, vectors, threads))):
                    *outer, group = unflattened(at, extents)
                    with T.vectorized(0, width) as lane:
                        start = 0.0 if reduction.combine is tirx.Add else -math.inf
                        T.buffer_store(total, const(start, reduction.dtype), [lane])
                    loop = T.unroll if math.prod(anchor.reduce) <= UNROLLED else T.serial
                    rows, columns = anchor.reduce
                    with loop(0, rows) as row, loop(0, columns) as column, T.vectorized(0, width) as lane:
                        value = reduction.element([*outer, group * width + lane, row, column])
                        T.buffer_store(total, reduction.combine(total[lane], value), [lane])
                    with T.vectorized(0, width) as lane:
                        T.buffer_store(*reduction.store([*outer, group * width + lane], total[lane]))
        return handwritten(reduction.function, builder.get().body, RESIDENT)


def unflattened(place: Expr, extents: Sequence[int]) -> list[Expr]:
    """The index of an element by its place in memory."""
    index: list[Expr] = []
    for extent in reversed(extents[1:]):
        index.insert(0, place % extent)
        place = place // extent
    return [place, *index]
