"""The algorithms for a convolution: layouts, costs and workload of each, and the reasons against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from graphopt.cost import roofline as costs
from graphopt.cost.model import CostModel
from graphopt.cost.roofline import ConvShape, Machine
from graphopt.cost.workload import AttributeValue, Operand, Workload
from graphopt.graph.edit import ints
from graphopt.ops.sparse import block_density, pack_sparse_conv_weight
from graphopt.passes.conv.conv_node import ConvNode
from graphopt.passes.conv.forms import winograd_form


class Algorithm(StrEnum):
    """How a convolution can be computed. `planar` keeps the standard Conv."""

    BLOCKED = "blocked"
    DEPTHWISE = "depthwise"
    WINOGRAD2 = "winograd2"
    WINOGRAD4 = "winograd4"
    WINOGRAD6 = "winograd6"
    FFT = "fft"
    SPARSE = "sparse"
    IM2COL = "im2col"
    PLANAR = "planar"


PLANES = 1
"""Input block size of a convolution over few channels: blocks of one channel are the planar layout itself."""

PLANAR_LAYOUT, BLOCKED_LAYOUT = 0, 1
TILE = {Algorithm.WINOGRAD2: 2, Algorithm.WINOGRAD4: 4, Algorithm.WINOGRAD6: 6}
RELATIVE_ERROR = {Algorithm.WINOGRAD2: 7.7e-8, Algorithm.WINOGRAD4: 3.3e-7, Algorithm.WINOGRAD6: 8.8e-7}
"""mean |error| / mean |value| of one 3x3 convolution of one channel in float32; see tests/ops/test_winograd.py."""
AXIS_ERROR = {
    (2, 3): 6e-8, (4, 3): 1.3e-7, (6, 3): 2.2e-7, (2, 5): 1.4e-7, (4, 5): 2.1e-7, (6, 5): 6.7e-7, (2, 7): 2.8e-7,
    (4, 7): 7.5e-7,
}  # fmt: skip
"""The same for F(m, r) along one axis, measured by tests/ops/test_winograd_axis.py; other m and r are not used."""
FFT_ERROR = 3.2e-7
"""The same for 16x16 transforms, measured by tests/ops/test_fft.py."""
FFT_TILES = (8, 12, 16, 18)
"""Tile edges of the FFTs; 18 divides feature maps that 16 does not."""
FFT_KERNEL = 5
"""Smallest kernel edge for the FFT; smaller kernels are left to Winograd."""
FULL = 4
"""Bytes of a float32. Half precision is summed in float32, but transformed tiles would be in half precision again."""
DIRECT_ERROR = 4.6e-8
MAX_DENSITY = 0.6
"""The largest share of vectors of outputs with a weight other than zero of which the others are worth skipping."""
CHANNELS = 7.0
"""Number of channels whose sequential sum adds as much error as one channel has (tests/ops/test_winograd.py)."""


def relative_error(algorithm: Algorithm, channels: int, kernel: tuple[int, int] = (3, 3)) -> float:
    """Expected mean |error| / mean |value| in float32: that of one channel, and a random walk over `channels` terms."""
    if algorithm is Algorithm.FFT:
        one = FFT_ERROR
    elif algorithm in TILE and 1 in kernel:
        one = AXIS_ERROR.get((TILE[algorithm], max(kernel)), math.inf)
    else:
        one = RELATIVE_ERROR.get(algorithm, DIRECT_ERROR)
    return one * math.sqrt(1 + channels / CHANNELS)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a convolution may use: channels per block, scratch bytes, relative rounding error."""

    block: int
    max_workspace: int
    max_error: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One algorithm on one pair of layouts: estimated seconds, what to measure, or why it is impossible."""

    algorithm: Algorithm
    reads: int
    writes: int
    seconds: float
    workload: Workload
    error: float
    """Relative rounding error."""
    packing: float = 0.0
    """Seconds to bring weights that are known at run time only into the form that the algorithm reads."""
    reason: str = ""
    tile: str = ""
    measured: bool = False

    @property
    def total(self) -> float:
        """Estimated or measured seconds of the algorithm, and of packing its weights in each run."""
        return self.seconds + self.packing

    @property
    def possible(self) -> bool:
        """Whether the node may use it."""
        return not self.reason


def candidates(conv: ConvNode, model: CostModel, limits: Limits, allowed: tuple[Algorithm, ...]) -> list[Candidate]:
    """Every algorithm with its cost or the reason against it; planar only where allowed, or as the last resort."""
    offered: list[Candidate] = []
    for algorithm in Algorithm:
        reason = _against(algorithm, conv, model.machine, limits, allowed)
        if algorithm is Algorithm.PLANAR and not any(candidate.possible for candidate in offered):
            reason = ""
        error = relative_error(algorithm, conv.shape.c // conv.shape.group, (conv.shape.kh, conv.shape.kw))
        for reads, writes, roofline, workload in _forms(algorithm, conv, model.machine, limits.block, not reason):
            seconds = math.inf if reason else model.estimated(workload, roofline, conv.units)
            workload = replace(workload, units=conv.units)
            why = reason or ("" if seconds < math.inf else "the target has no kernel for it")
            packing = _packing(workload, conv, model.machine) if not why and conv.weight is None else 0.0
            offered.append(Candidate(algorithm, reads, writes, seconds, workload, error, packing, why))
    return offered


def _packing(workload: Workload, conv: ConvNode, machine: Machine) -> float:
    """Seconds to pack weights in a run: each form that differs from the one before is read and written once."""
    if workload.domain == "":
        return 0.0  # the kernel packs them itself
    planar = math.prod(conv.weight_shape) * conv.shape.itemsize
    packed = math.prod(workload.operands[1].shape) * conv.shape.itemsize
    passes = 2 if conv.flip else 1
    if workload.op_type == "Conv2dWinograd":
        return (2 * passes * planar + planar + packed) / machine.bandwidth
    return 0.0 if workload.op_type == "Conv2dIm2col" else 2 * passes * packed / machine.bandwidth


def _against(
    algorithm: Algorithm, conv: ConvNode, machine: Machine, limits: Limits, allowed: tuple[Algorithm, ...]
) -> str:
    """Why `algorithm` is impossible here, in a sentence; "" if it is possible."""
    s = conv.shape
    if algorithm not in allowed:
        return "it is not among the allowed algorithms"
    if algorithm is Algorithm.PLANAR:
        return ""
    if conv.weight is None and (reason := _against_run_time(algorithm, conv, machine)):
        return reason
    is_depthwise = s.group > 1 and s.group == s.c == s.o
    if algorithm is Algorithm.DEPTHWISE:
        return "" if is_depthwise else "not one channel per group"
    if algorithm is Algorithm.BLOCKED:
        if is_depthwise:
            return "depthwise, one channel per group"
        filled = s.group == 1 or (s.c // s.group % limits.block == 0 and s.o // s.group % limits.block == 0)
        return "" if filled else f"the channels of a group are no multiple of {limits.block}"
    if algorithm is Algorithm.FFT:
        return _against_fft(conv, limits)
    if s.group > 1:
        return "the convolution has groups"
    if algorithm is Algorithm.SPARSE:
        return _against_density(conv, machine, limits)
    if algorithm is Algorithm.IM2COL:
        return _against_workspace(costs.im2col_workspace(s), limits)
    if s.itemsize < FULL:
        return "its transforms would round to half precision"
    if reason := _against_kernel(TILE[algorithm], conv):
        return reason
    if s.c < limits.block:
        return f"fewer than {limits.block} input channels"
    return _against_error(algorithm, s, limits) or _against_workspace(
        costs.winograd_workspace(s, TILE[algorithm], limits.block), limits
    )


def _against_run_time(algorithm: Algorithm, conv: ConvNode, machine: Machine) -> str:
    """Why weights that are known at run time only cannot be packed for `algorithm`."""
    if not machine.packs:
        return "its weights are known at run time only, and the target has no kernels that pack them"
    along_axis = algorithm in TILE and 1 in (conv.shape.kh, conv.shape.kw)
    turned = algorithm is Algorithm.IM2COL and conv.flip
    if along_axis or turned or algorithm in (Algorithm.FFT, Algorithm.SPARSE):
        return "its weights are known at run time only"
    return ""


def _against_kernel(m: int, conv: ConvNode) -> str:
    """Why there is no Winograd algorithm with tiles of m for this kernel."""
    kernel = (conv.shape.kh, conv.shape.kw)
    along = max(kernel) if 1 in kernel else 0
    one_axis = along in {r for _, r in AXIS_ERROR}
    if kernel != (3, 3) and not one_axis or conv.strides != (1, 1) or conv.dilations != (1, 1):
        return "not 3x3, or 3, 5 or 7 along one axis, with stride 1 and dilation 1"
    return f"no points for tiles of {m} and a kernel of {along}" if one_axis and (m, along) not in AXIS_ERROR else ""


def _against_fft(conv: ConvNode, limits: Limits) -> str:
    s = conv.shape
    if s.itemsize < FULL:
        return "its transforms would round to half precision"
    if min(s.kh, s.kw) < FFT_KERNEL or conv.strides != (1, 1) or conv.dilations != (1, 1):
        return f"not a kernel of {FFT_KERNEL} or more with stride 1 and dilation 1"
    if (
        s.c // s.group < limits.block
        or s.group > 1
        and (s.c // s.group % limits.block or s.o // s.group % limits.block)
    ):
        return f"the channels of a group do not fill blocks of {limits.block}"
    if not _fft_tiles(s):
        return f"the kernel is larger than a transform of {max(FFT_TILES)}"
    workspace = min(costs.fft_workspace(s, n, limits.block) for n in _fft_tiles(s))
    return _against_error(Algorithm.FFT, s, limits) or _against_workspace(workspace, limits)


def _against_density(conv: ConvNode, machine: Machine, limits: Limits) -> str:
    if not machine.sparse_sides and conv.dtype != "float32":
        return "its weights are not float32"
    assert conv.weight is not None
    shapes = _sparse_blocks(conv, machine, limits.block)
    if not shapes:
        return f"its channels are no multiple of {min(machine.sparse_sides)}"
    density, depth, width = min((block_density(conv.weight, *shape), *shape) for shape in shapes)
    if density > MAX_DENSITY:
        kind = f"vectors of {width} outputs" if depth == 1 else f"blocks of {width} outputs x {depth} channels"
        return f"{density:.0%} of its {kind} hold a weight other than zero"
    return ""


def _sparse_blocks(conv: ConvNode, machine: Machine, block: int) -> tuple[tuple[int, int], ...]:
    """(channels, outputs) of the blocks of sparse weights that a kernel multiplies."""
    if not machine.sparse_sides:
        return ((1, block),)
    return tuple((side, side) for side in machine.sparse_sides if conv.shape.c % side == 0)


def _against_error(algorithm: Algorithm, s: ConvShape, limits: Limits) -> str:
    error = relative_error(algorithm, s.c // s.group, (s.kh, s.kw))
    return f"its rounding error {error:.1e} is above {limits.max_error:.1e}" if error > limits.max_error else ""


def _fft_tiles(s: ConvShape) -> tuple[int, ...]:
    """Tile edges n with at least half as many outputs n - k + 1 as the kernel edge k, else all with n >= k."""
    largest = max(s.kh, s.kw)
    return tuple(n for n in FFT_TILES if n - largest + 1 >= largest // 2) or tuple(n for n in FFT_TILES if n >= largest)


def _against_workspace(nbytes: int, limits: Limits) -> str:
    if nbytes <= limits.max_workspace:
        return ""
    return f"its workspace of {nbytes / 2**20:.1f} MiB is above {limits.max_workspace}"


def _forms(
    algorithm: Algorithm, conv: ConvNode, machine: Machine, block: int, possible: bool
) -> Iterator[tuple[int, int, float, Workload]]:
    """(layout read, layout written, estimated seconds, workload) of the ways to compute `algorithm`."""
    s = conv.shape
    if algorithm is Algorithm.BLOCKED:
        if s.c < block and not conv.flip:  # flipped blocks are square
            yield (
                PLANAR_LAYOUT,
                BLOCKED_LAYOUT,
                costs.blocked(machine, s, block, PLANES),
                blocked_workload(conv, PLANES, block),
            )
        yield (
            BLOCKED_LAYOUT,
            BLOCKED_LAYOUT,
            costs.blocked(machine, s, block, block),
            blocked_workload(conv, block, block),
        )
    elif algorithm is Algorithm.DEPTHWISE:
        yield BLOCKED_LAYOUT, BLOCKED_LAYOUT, costs.depthwise(machine, s, block), depthwise_workload(conv, block)
    elif algorithm in TILE:
        m = TILE[algorithm]
        yield BLOCKED_LAYOUT, BLOCKED_LAYOUT, costs.winograd(machine, s, m, block), winograd_workload(conv, m, block)
    elif algorithm is Algorithm.FFT:
        for n in _fft_tiles(s):
            yield BLOCKED_LAYOUT, BLOCKED_LAYOUT, costs.fft(machine, s, n, block), fft_workload(conv, n, block)
    elif algorithm is Algorithm.SPARSE:
        if not possible:  # its pattern would be packed for nothing
            yield BLOCKED_LAYOUT, BLOCKED_LAYOUT, math.inf, blocked_workload(conv, block, block)
            return
        for depth, width in _sparse_blocks(conv, machine, block):
            workload = sparse_workload(conv, block, depth, width)
            shape = workload.operands[1].shape[0], depth, width
            positions, inputs = s.n * s.oh * s.ow, s.c * s.kh * s.kw
            seconds = costs.block_sparse(machine, positions, s.o, inputs, shape, s.itemsize)
            yield BLOCKED_LAYOUT, BLOCKED_LAYOUT, seconds, workload
    elif algorithm is Algorithm.IM2COL:
        yield PLANAR_LAYOUT, PLANAR_LAYOUT, costs.im2col(machine, s), im2col_workload(conv)
    else:
        yield PLANAR_LAYOUT, PLANAR_LAYOUT, costs.planar(machine, s), planar_workload(conv)


def _blocks(channels: int, block: int) -> int:
    return -(-channels // block)


def _window(conv: ConvNode) -> tuple[tuple[str, AttributeValue], ...]:
    return (("strides", conv.strides), ("pads", conv.pads), ("dilations", conv.dilations))


def _blocked_ends(conv: ConvNode, in_block: int, block: int) -> tuple[tuple[int, ...], Operand, tuple[int, ...]]:
    """(shape of the blocked input, bias operand, shape of the blocked output)."""
    s, dtype = conv.shape, conv.dtype
    blocks = _blocks(s.o, block)
    x = (s.n, _blocks(s.c, in_block), s.h, s.w, in_block)
    return x, Operand((blocks, block), dtype, True), (s.n, blocks, s.oh, s.ow, block)


def blocked_workload(conv: ConvNode, in_block: int, block: int) -> Workload:
    """Workload of `Conv2dBlocked` for this convolution."""
    s, dtype = conv.shape, conv.dtype
    x, bias, y = _blocked_ends(conv, in_block, block)
    w = Operand(
        (_blocks(s.o, block), _blocks(s.c // s.group, in_block), s.kh, s.kw, in_block, block), dtype, conv.is_constant
    )
    attributes = (*_window(conv), ("group", s.group))
    return Workload("Conv2dBlocked", (Operand(x, dtype), w, bias), y, attributes)


def depthwise_workload(conv: ConvNode, block: int) -> Workload:
    """Workload of `DepthwiseConv2dBlocked` for this convolution."""
    s, dtype = conv.shape, conv.dtype
    x, bias, y = _blocked_ends(conv, block, block)
    w = Operand((_blocks(s.c, block), s.kh, s.kw, block), dtype, conv.is_constant)
    return Workload("DepthwiseConv2dBlocked", (Operand(x, dtype), w, bias), y, _window(conv))


def winograd_workload(conv: ConvNode, m: int, block: int) -> Workload:
    """Workload of `Conv2dWinograd` or `Conv2dWinogradAxis` for this convolution."""
    s, dtype = conv.shape, conv.dtype
    x, bias, y = _blocked_ends(conv, block, block)
    taps = costs.winograd_taps(s, m)
    u = Operand((taps[0] * taps[1], _blocks(s.o, block), _blocks(s.c, block), block, block), dtype, conv.is_constant)
    op_type, attributes = winograd_form(conv, m)
    return Workload(op_type, (Operand(x, dtype), u, bias), y, tuple(attributes.items()))


def fft_workload(conv: ConvNode, n: int, block: int) -> Workload:
    """Workload of `Conv2dFft` with n x n transforms for this convolution."""
    s, dtype = conv.shape, conv.dtype
    x, bias, y = _blocked_ends(conv, block, block)
    blocks = (_blocks(s.o // s.group, block), _blocks(s.c // s.group, block))
    u = Operand((costs.fft_taps(n) * s.group, *blocks, block, block), dtype, True)
    attributes = (("tile", n), ("kernel_shape", (s.kh, s.kw)), ("pads", conv.pads), ("group", s.group))
    return Workload("Conv2dFft", (Operand(x, dtype), u, bias), y, attributes)


def sparse_workload(conv: ConvNode, block: int, depth: int, width: int) -> Workload:
    """Workload of `BlockSparseConv` with blocks of depth x width, with the pattern of the convolution's weights."""
    s, dtype = conv.shape, conv.dtype
    x, bias, y = _blocked_ends(conv, block, block)
    assert conv.weight is not None
    blocks, *indices = pack_sparse_conv_weight(conv.weight, width, depth)
    operands = Operand(x, dtype), Operand(blocks.shape, dtype, True), *map(Operand.of_indices, indices), bias
    attributes = (("outputs", (s.o,)), ("kernel_shape", (s.kh, s.kw)), *_window(conv))
    return Workload("BlockSparseConv", operands, y, attributes)


def im2col_workload(conv: ConvNode) -> Workload:
    """Workload of `Conv2dIm2col` for this convolution."""
    s, dtype = conv.shape, conv.dtype
    operands = (
        Operand((s.n, s.c, s.h, s.w), dtype),
        Operand((s.o, s.c * s.kh * s.kw), dtype, conv.is_constant),
        Operand((s.o,), dtype, True),
    )
    attributes = (*_window(conv), ("kernel_shape", (s.kh, s.kw)))
    return Workload("Conv2dIm2col", operands, (s.n, s.o, s.oh, s.ow), attributes)


def planar_workload(conv: ConvNode) -> Workload:
    """Workload of the standard `Conv`, or `ConvTranspose`, for this convolution."""
    s, dtype = conv.shape, conv.dtype
    operands = (
        Operand((s.n, s.c, s.h, s.w), dtype),
        Operand(conv.weight_shape, dtype, conv.is_constant),
        Operand((s.o,), dtype, True),
    )
    attributes = (*_window(conv), ("group", s.group))
    if conv.flip:
        window = {name: tuple(ints(conv.node, name, [])) for name in ("pads", "dilations", "output_padding")}
        attributes = (("group", s.group), *((name, value) for name, value in window.items() if value))
    return Workload(conv.node.op_type, operands, (s.n, s.o, s.oh, s.ow), attributes, domain="")
