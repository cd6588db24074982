"""Roofline costs of convolutions: seconds = max(arithmetic at an attainable rate, bytes over bandwidth).

The estimates rank algorithms; they do not predict latencies. Rates are the fractions of the peak that kernels of that
kind reach (the same for all machines; measured costs replace them where they exist).
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.ops.winograd import tile_of


@dataclass(frozen=True, slots=True)
class Machine:
    """The processor that the cost model assumes. `peak_flops` and `bandwidth` (bytes/s) are totals over all `cores`.

    `floats` are the dtypes, by numpy's names, for which it has operators on blocked tensors. `sparse_blocks` are the
    (inputs, outputs) of the blocks of sparse weights that its products take; its convolutions take `sparse_sides`
    square ones, or where there are none vectors of outputs in float32. `packs` says that it has kernels for weights
    that a run packs, and for gradients on blocked tensors.
    """

    vector_lanes: int = 16
    cores: int = 2
    peak_flops: float = 250e9
    bandwidth: float = 20e9
    floats: tuple[str, ...] = ("float32", "float64")
    sparse_blocks: tuple[tuple[int, int], ...] = ((1, 1), (1, 4), (1, 8), (1, 16), (16, 16), (32, 32))
    sparse_sides: tuple[int, ...] = ()
    packs: bool = True

    @property
    def squares(self) -> tuple[int, ...]:
        """Sides of the square blocks of products."""
        return tuple(depth for depth, width in self.sparse_blocks if depth == width > 1)

    @property
    def has_vectors(self) -> bool:
        """Whether a block may be one vector of outputs."""
        return any(depth == 1 < width for depth, width in self.sparse_blocks)

    @property
    def group(self) -> int:
        """Outputs that share the inputs of a block: those of a vector, or the side of the smallest square."""
        return self.vector_lanes if self.has_vectors else min(self.squares)


DIRECT_RATE = 0.75
WINOGRAD_PRODUCT_RATE = 0.7
WINOGRAD_TRANSFORM_RATE = 0.15
IM2COL_RATE = 0.6
DEPTHWISE_RATE = 0.25
PLANAR_RATE = 0.4
PLANAR_ROW_RATE = 0.03
SPARSE_RATE, SPARSE_LOADS, SPARSE_DEPTH = 0.6, 3.0, 0.2
"""Fractions of the peak: a GEMM on the patches of each group, and the share of one row of its register tile; blocks of
sparse weights, of which each waits for some loads, and the gain of blocks of several inputs."""

COLUMNS_RATE = 0.03
"""Of compressed columns, whose entries are decoded one after another."""


@dataclass(frozen=True, slots=True)
class ConvShape:
    """A 2-D convolution: x [n, c, h, w], w [o, c / group, kh, kw], y [n, o, oh, ow]."""

    n: int
    c: int
    h: int
    w: int
    o: int
    kh: int
    kw: int
    oh: int
    ow: int
    group: int = 1
    itemsize: int = 4

    @property
    def flops(self) -> int:
        """Two per multiply-add, padding lanes not counted."""
        return 2 * self.n * self.o * self.oh * self.ow * (self.c // self.group) * self.kh * self.kw


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def product(machine: Machine, m: int, n: int, k: int, itemsize: int = 4) -> float:
    """Seconds of a GEMM of M x K and K x N."""
    return _seconds(machine, 2 * m * n * k / DIRECT_RATE, m * k + k * n + m * n, itemsize)


def block_sparse(machine: Machine, m: int, n: int, k: int, blocks: tuple[int, int, int], itemsize: int = 4) -> float:
    """Seconds of `BlockSparseMatMul` with B blocks of depth x width: `blocks`.

    Every block reads an index, and a panel's line for each of its inputs, which narrow blocks and few rows share badly.
    """
    count, depth, width = blocks
    shared = min(width * -(-m // machine.vector_lanes), machine.vector_lanes)
    rate = SPARSE_RATE * shared / (shared + SPARSE_LOADS) * width / (width + 0.5) * (1 + SPARSE_DEPTH * (depth > 1))
    values = count * (depth * width + 1) + m * (k + n)
    rows = m if m == 1 else -(-m // machine.vector_lanes) * machine.vector_lanes
    return _seconds(machine, 2 * rows * count * depth * width / rate, values, itemsize)


def compressed_columns(machine: Machine, m: int, n: int, k: int, entries: int) -> float:
    """Seconds of `CompressedColumnsMatMul`, which reads 12 bits of each entry and adds to one output at a time."""
    values = (1.5 * entries + 4 * k) / 4 + m * (k + n)
    return _seconds(machine, 2 * m * entries / COLUMNS_RATE, values, 4)


def _seconds(machine: Machine, weighted_flops: float, values: float, itemsize: int) -> float:
    return max(weighted_flops / machine.peak_flops, values * itemsize / machine.bandwidth)


def blocked(machine: Machine, s: ConvShape, block: int, in_block: int) -> float:
    """Seconds of `Conv2dBlocked`, which computes the padding lanes too."""
    c, o = _round_up(s.c, in_block), _round_up(s.o, block)
    flops = s.flops * (c * o) / (s.c * s.o)
    values = s.n * (c * s.h * s.w + o * s.oh * s.ow) + o * c // s.group * s.kh * s.kw
    return _seconds(machine, flops / DIRECT_RATE, values, s.itemsize)


def depthwise(machine: Machine, s: ConvShape, block: int) -> float:
    """Seconds of `DepthwiseConv2dBlocked`."""
    c = _round_up(s.c, block)
    values = s.n * c * (s.h * s.w + s.oh * s.ow) + c * s.kh * s.kw
    return _seconds(machine, s.flops * c / s.c / DEPTHWISE_RATE, values, s.itemsize)


def winograd(machine: Machine, s: ConvShape, m: int, block: int) -> float:
    """Seconds of `Conv2dWinograd` or `Conv2dWinogradAxis`, with output tiles of m elements along the kernel's axes.

    One GEMM per tap, and the transforms at about half the operations of dense matrices; no transform along an axis on
    which the kernel has one element.
    """
    (rows, columns), (tile_rows, tile_columns) = winograd_taps(s, m), tile_of(m, (s.kh, s.kw))
    c, o = _round_up(s.c, block), _round_up(s.o, block)
    tiles = s.n * -(-s.oh // tile_rows) * -(-s.ow // tile_columns)
    products = 2 * rows * columns * tiles * c * o
    along_rows = (c * rows + o * tile_rows) * rows * columns if rows > 1 else 0
    along_columns = (c * rows * columns + o * tile_rows * tile_columns) * columns if columns > 1 else 0
    flops = products / WINOGRAD_PRODUCT_RATE + tiles * (along_rows + along_columns) / WINOGRAD_TRANSFORM_RATE
    values = s.n * (c * s.h * s.w + o * s.oh * s.ow) + rows * columns * c * o
    return _seconds(machine, flops, values, s.itemsize)


def winograd_taps(s: ConvShape, m: int) -> tuple[int, int]:
    """Elements of an input tile along rows and columns."""
    tile = tile_of(m, (s.kh, s.kw))
    return tile[0] + s.kh - 1, tile[1] + s.kw - 1


def fft_taps(n: int) -> int:
    """Real products per tile of n x n, input and output channel: n^2 / 2 - 2 complex of three each, and 4 real ones."""
    return 3 * (n * n // 2 - 2) + 4


def _fft_tile_count(s: ConvShape, n: int) -> int:
    return s.n * -(-s.oh // (n - s.kh + 1)) * -(-s.ow // (n - s.kw + 1))


def fft(machine: Machine, s: ConvShape, n: int, block: int) -> float:
    """Seconds of `Conv2dFft`: a GEMM per tap, and split-radix transforms of about 10 n^2 operations per channel."""
    c, o, tiles = _round_up(s.c, block), _round_up(s.o, block), _fft_tile_count(s, n)
    products = 2 * fft_taps(n) * tiles * c * o // s.group
    transforms = 10 * n * n * tiles * (c + o)
    values = fft_taps(n) * c * o // s.group + s.n * (c * s.h * s.w + o * s.oh * s.ow)
    flops = products / WINOGRAD_PRODUCT_RATE + transforms / WINOGRAD_TRANSFORM_RATE
    return _seconds(machine, flops, values, s.itemsize)


def fft_workspace(s: ConvShape, n: int, block: int) -> int:
    """Bytes of the transformed input and of the tap-wise products of all tiles."""
    return fft_taps(n) * _fft_tile_count(s, n) * (_round_up(s.c, block) + _round_up(s.o, block)) * s.itemsize


def im2col(machine: Machine, s: ConvShape) -> float:
    """Seconds of `Conv2dIm2col`: the patches are written and read once."""
    depth = s.c * s.kh * s.kw
    patches = 0 if s.kh == s.kw == 1 and (s.h, s.w) == (s.oh, s.ow) else 2 * s.n * depth * s.oh * s.ow
    values = s.n * (s.c * s.h * s.w + s.o * s.oh * s.ow) + s.o * depth
    product = _seconds(machine, s.flops / IM2COL_RATE, values, s.itemsize)
    return product + patches * s.itemsize / machine.bandwidth


def planar(machine: Machine, s: ConvShape) -> float:
    """Seconds of a standard NCHW `Conv`: one GEMM of patches and weights per group; a thin group fills no tile."""
    depth = s.c // s.group * s.kh * s.kw
    values = s.n * (s.c * s.h * s.w + s.o * s.oh * s.ow) + s.o * depth
    rate = min(PLANAR_RATE, PLANAR_ROW_RATE * (s.o // s.group))
    patches = 2 * s.n * s.group * depth * s.oh * s.ow
    return _seconds(machine, s.flops / rate, values, s.itemsize) + patches * s.itemsize / machine.bandwidth


def transform(machine: Machine, nbytes: int) -> float:
    """Seconds to change the layout of a tensor of `nbytes`: read once, written once."""
    return 2 * nbytes / machine.bandwidth


def winograd_workspace(s: ConvShape, m: int, block: int) -> int:
    """Bytes of the transformed input and of the tap-wise products of all tiles."""
    (rows, columns), tile = winograd_taps(s, m), tile_of(m, (s.kh, s.kw))
    tiles = s.n * -(-s.oh // tile[0]) * -(-s.ow // tile[1])
    return rows * columns * tiles * (_round_up(s.c, block) + _round_up(s.o, block)) * s.itemsize


def im2col_workspace(s: ConvShape) -> int:
    """Bytes of the patch matrix."""
    return s.n * s.c * s.kh * s.kw * s.oh * s.ow * s.itemsize
