"""Estimated seconds of convolutions and layout changes on a GPU, by which they are chosen without a device.

A GEMM takes what the kernel template that would be chosen for it estimates for its best tile, and no less than its
operands and results take at the memory's bandwidth. A convolution on planar tensors computes the address of every patch
element by itself, one on blocked tensors the address of 16 bytes at once: on tensor cores, where multiplying is cheap,
that decides. Every launch is counted. Nothing here was fitted to a device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

from graphopt.cost.workload import Workload
from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.converters.base import HALF_DTYPES
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels.gemm import simt, templates
from graphopt.targets.gpu.kernels.gemm.product import Gemm
from graphopt.targets.gpu.kernels.gemm.ragged import Ragged
from graphopt.targets.gpu.waves import CLOCK, INSTRUCTIONS, LAUNCH, REACHED_BANDWIDTH

ADDRESS_INSTRUCTIONS = 24
"""Instructions that compute the address of a patch element: its tap, its pixel, and whether that is in the image."""

_WITHOUT_KERNEL = ("CompressedColumnsMatMul", "Conv2dFft", "Conv2dIm2col", "Conv2dWinogradAxis")
VECTOR = 16
"""Bytes of the widest load."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A GEMM: extents of batch, m, n, k; the dtype of its operands, and whether a load takes 16 bytes of each.

    With `block`, (depth, width) of blocks of sparse weights, k are the inputs of all blocks.
    """

    batch: int
    m: int
    n: int
    k: int
    dtype: str
    wide: tuple[bool, bool]
    block: tuple[int, int] | None = None

    def product(self, kind: str | None) -> Gemm:
        """The GEMM of tensors that lie so; tensor cores may multiply factors of `kind`."""
        b, m, n, k = self.batch, self.m, self.n, self.k
        kept = "float32" if self.dtype in HALF_DTYPES else self.dtype
        # tensor cores read both operands along k
        turned = kind is not None and self.wide[1]
        left = tirx.decl_buffer((b, m, k * (1 if self.wide[0] else 2)), self.dtype)
        right = tirx.decl_buffer((b, n, k) if turned else (b, k, n * (1 if self.wide[1] else 2)), self.dtype)
        out = tirx.decl_buffer((b, m, n), kept)

        def rows(at: Expr, row: Expr, depth: Expr) -> Expr:
            return left[at, row, depth * (1 if self.wide[0] else 2)].astype(kept)

        def columns(at: Expr, depth: Expr, column: Expr) -> Expr:
            value = right[at, column, depth] if turned else right[at, depth, column * (1 if self.wide[1] else 2)]
            return value.astype(kept)

        ragged = None
        if self.block is not None:
            depth, width = self.block
            groups, n = -(-n // width), -(-n // width) * width
            ragged = Ragged(tirx.decl_buffer((2 * groups + 1,), "int32"), groups, width, depth)
        return Gemm(
            None,
            b,
            m,
            n,
            k,
            kept,
            "int32",
            rows,
            columns,
            lambda at, row, column, total: (out, total, [at, row, column]),
            kind,
            ragged=ragged,
            results=self.n,
        )


class Estimates:
    """Estimates for one device; every GEMM is estimated once."""

    def __init__(self, device: GpuSpec) -> None:
        """Args: device: that the kernels run on."""
        self.device = device
        self._known: dict[tuple[Shape, str | None], float] = {}

    def seconds(self, workload: Workload, units: str = "") -> float | None:
        """Seconds of `workload`, whose GEMMs may use `units`; infinity without a kernel, None if not known."""
        known = {
            "BlockSparseConv": self._sparse,
            "BlockSparseMatMul": self._sparse,
            "Conv": self._planar,
            "Conv2dBlocked": self._blocked,
            "Conv2dWinograd": self._winograd,
            "DepthwiseConv2dBlocked": self._depthwise,
            "Gemm": self._dense,
            "MatMul": self._dense,
        }
        if 0 in workload.shape or any(0 in operand.shape for operand in workload.operands):
            return LAUNCH
        if workload.op_type in ("ToBlocked", "FromBlocked"):
            return LAUNCH + self._moved(workload)
        if workload.op_type in _WITHOUT_KERNEL:
            return math.inf
        estimate = known.get(workload.op_type)
        return None if estimate is None else estimate(workload, units)

    def _moved(self, workload: Workload) -> float:
        """Seconds to read the operands and write the result once."""
        size = ITEM_BYTES[workload.operands[0].dtype]
        elements = math.prod(workload.shape) + sum(math.prod(operand.shape) for operand in workload.operands)
        return elements * size / (REACHED_BANDWIDTH * self.device.bandwidth)

    def _sparse(self, workload: Workload, units: str) -> float:
        """The blocks read once, and what the columns of a group sum over, which is as much for all of them."""
        x, (count, depth, width) = workload.operands[0], workload.operands[1].shape
        if depth % 8 or width % 32:
            return math.inf
        if workload.op_type == "BlockSparseMatMul":
            m, n = math.prod(workload.shape[:-1]), workload.shape[-1]
        else:
            images, blocks, *plane, lanes = workload.shape
            m, n = images * math.prod(plane), blocks * lanes
        shape = Shape(1, m, n, count * depth, x.dtype, (True, True), (depth, width))
        return LAUNCH + max(self._moved(workload), self._product(shape, units))

    def _dense(self, workload: Workload, units: str) -> float | None:
        """A product with a constant matrix."""
        matrices = [b for b in workload.operands[1:2] if b.constant and len(b.shape) == 2]
        if not matrices or dict(workload.attributes).get("transA"):
            return None
        a, b = workload.operands[0], matrices[0]
        n = workload.shape[-1]
        m, k, wide = math.prod(workload.shape[:-1]), math.prod(b.shape) // n, VECTOR // ITEM_BYTES[a.dtype]
        shape = Shape(1, m, n, k, a.dtype, (k % wide == 0, n % wide == 0))
        return LAUNCH + max(self._moved(workload), self._product(shape, units))

    def _threads(self, elements: float) -> float:
        """Seconds to compute the addresses of so many elements."""
        return elements * ADDRESS_INSTRUCTIONS / (self.device.multiprocessors * INSTRUCTIONS * CLOCK)

    def _planar(self, workload: Workload, units: str) -> float:
        attributes = dict(workload.attributes)
        groups, dtype = int(str(attributes["group"])), workload.operands[0].dtype
        deep, kernel = workload.operands[1].shape[1], workload.operands[1].shape[2:]
        images, channels, *out = workload.shape
        depth, positions, rows = deep * math.prod(kernel), math.prod(out), channels // groups
        if depth <= 64 and rows == 1:
            return LAUNCH + max(self._moved(workload), self._threads(math.prod(workload.shape) * depth))
        wide = VECTOR // ITEM_BYTES[dtype]
        flat = math.prod(kernel) == 1 and attributes["strides"] == (1,) * len(kernel) and not any(_pads(workload))
        loads = rows % wide == 0, flat and positions % wide == 0
        shape = Shape(images * groups, rows, positions, depth, dtype, loads)
        return LAUNCH + max(self._moved(workload), self._product(shape, units))

    def _blocked(self, workload: Workload, units: str) -> float:
        groups, dtype = int(str(dict(workload.attributes)["group"])), workload.operands[0].dtype
        blocks, deep, *kernel, lanes, b = workload.operands[1].shape
        images, _, height, width, _ = workload.shape
        pixels, depth = images * height * width, deep * math.prod(kernel) * lanes
        wide = lanes % (VECTOR // ITEM_BYTES[dtype]) == 0
        shape = Shape(groups, pixels, blocks // groups * b, depth, dtype, (wide, True))
        return LAUNCH + max(self._moved(workload), self._product(shape, units))

    def _winograd(self, workload: Workload, units: str) -> float:
        """Two transforms, which read and write, and a batched GEMM that loads 16 bytes of both operands at a time."""
        x, u = workload.operands[:2]
        taps, blocks, deep, lanes, b = u.shape
        images, _, height, width, _ = workload.shape
        m = math.isqrt(taps) - 2
        tiles = images * -(-height // m) * -(-width // m)
        size = ITEM_BYTES[x.dtype]
        read, written = taps * tiles * deep * lanes, taps * tiles * blocks * b
        speed = REACHED_BANDWIDTH * self.device.bandwidth
        transforms = (math.prod(x.shape) + read + written + math.prod(workload.shape)) * size / speed
        transforms = max(transforms, self._threads((read + written) / 8))  # some instructions for each of its values
        shape = Shape(taps, tiles, blocks * b, deep * lanes, x.dtype, (True, True))
        memory = (read + written + math.prod(u.shape)) * size / speed
        return 3 * LAUNCH + transforms + max(memory, self._product(shape, ""))

    def _depthwise(self, workload: Workload, units: str) -> float:
        taps = math.prod(workload.operands[1].shape[1:3])
        wide = VECTOR // ITEM_BYTES[workload.operands[0].dtype]
        return LAUNCH + max(self._moved(workload), self._threads(math.prod(workload.shape) * taps / wide))

    def _product(self, shape: Shape, units: str) -> float:
        """Seconds of the kernel template that the schedule will choose."""
        kind = shape.dtype if shape.dtype in HALF_DTYPES else "tf32" if units == "tf32" else None
        if (shape, kind) not in self._known:
            gemm = shape.product(kind)
            try:
                choice = templates.best(gemm, self.device)
            except ValueError:
                self._known[shape, kind] = math.inf
            else:
                seconds = choice.seconds + (0.0 if choice.units else self._address_seconds(gemm, shape))
                self._known[shape, kind] = seconds
        return self._known[shape, kind]

    def _address_seconds(self, gemm: Gemm, shape: Shape) -> float:
        """Seconds in which CUDA cores compute operands' addresses, which the estimate of `simt` leaves out."""
        tile = simt.tiles(gemm, self.device)[0]
        blocks = shape.batch * math.ceil(shape.m / tile.m) * math.ceil(gemm.n / tile.n)
        pairs = zip((tile.m, tile.n), shape.wide, strict=True)
        loads = sum(extent / (simt.VECTOR if wide else 1) for extent, wide in pairs)
        return self._threads(blocks * gemm.summed * loads)


def _pads(workload: Workload) -> tuple[int, ...]:
    pads = dict(workload.attributes)["pads"]
    return pads if isinstance(pads, tuple) else ()
