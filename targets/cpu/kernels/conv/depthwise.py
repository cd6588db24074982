"""Depthwise convolution and pooling on the channel-blocked layout: a window reduced lane by lane.

Both read a small window per output and never mix channels, so they share one schedule: parallel over
(batch, channel block, band of rows), a tile of output columns in registers, one vector of channels in the lanes. Each
task pads its own rows into a buffer that stays in the first-level cache, so no padded map is ever stored.
"""

from __future__ import annotations

from tvm import s_tir, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import RULE, Block, blocks_of, const, dims, inline_after, round_up
from graphopt.targets.cpu.kernels.tiling import largest_divisor, pad_input, pad_locally, padded_tile, summed_in
from graphopt.targets.cpu.machine import CpuMachine

NAME = "window"


def depthwise(
    x: te.Tensor,
    w: te.Tensor,
    bias: te.Tensor,
    strides: tuple[int, int],
    dilations: tuple[int, int],
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> te.Tensor:
    """y[n, c, oh, ow, :] = bias[c, :] + sum over kh, kw of x[n, c, oh*s+kh, ow*s+kw, :] * w[c, kh, kw, :].

    Args:
        x: [N, CB, H, W, b].
        w: [CB, KH, KW, b].
        bias: [CB, b].
        pads: rows and columns of zeros: top, left, bottom, right.
    """
    x = pad_input(x, pads) if any(pads) else x
    n, cb, h, width, b = dims(x)
    _, kh, kw, _ = dims(w)
    out_h = (h - (kh - 1) * dilations[0] - 1) // strides[0] + 1
    out_w = (width - (kw - 1) * dilations[1] - 1) // strides[1] + 1
    rh, rw = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    computed = round_up(out_w, tile_columns(out_w))

    def product(i: Expr, c: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
        column = z * strides[1] + rw * dilations[1]
        if computed != out_w:
            column = tirx.min(column, width - 1)
        return te.sum(x[i, c, y * strides[0] + rh * dilations[0], column, lane] * w[c, rh, rw, lane], axis=[rh, rw])

    attributes = {RULE: NAME, "graphopt.halo": (kh - 1) * dilations[0], "graphopt.stride": strides[0]}
    sums = te.compute((n, cb, out_h, computed, b), product, name="depthwise", attrs=attributes)
    return te.compute(
        (n, cb, out_h, out_w, b), lambda i, c, y, z, lane: sums[i, c, y, z, lane] + bias[c, lane], name="bias"
    )


def pool(
    x: te.Tensor,
    mode: str,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
    out: tuple[int, int],
    count_include_pad: bool,
) -> te.Tensor:
    """Maximum or average over a window of x[N, CB, H, W, b]; `mode` is "max" or "average", `out` the output (OH, OW).

    An average divides by the elements inside the image, or inside image and explicit padding. An average of many
    elements is summed in double precision: the mean of a large flat plane would lose three digits.
    """
    n, cb, h, width, b = dims(x)
    rh, rw = te.reduce_axis((0, kernel[0]), "kh"), te.reduce_axis((0, kernel[1]), "kw")
    padded = any(pads) or (out[0] - 1) * strides[0] + (kernel[0] - 1) * dilations[0] >= h
    padded = padded or (out[1] - 1) * strides[1] + (kernel[1] - 1) * dilations[1] >= width
    dtype = str(x.dtype)
    kept = dtype if mode == "max" else summed_in(dtype, kernel[0] * kernel[1])
    neutral = tirx.min_value(x.dtype) if mode == "max" else const(0, dtype)
    computed = round_up(out[1], tile_columns(out[1]))

    def element(i: Expr, c: Expr, y: Expr, z: Expr, lane: Expr) -> Expr | te.TensorSlice:
        row = y * strides[0] + rh * dilations[0] - pads[0]
        column = z * strides[1] + rw * dilations[1] - pads[1]
        if not padded:
            if computed != out[1]:
                column = tirx.min(column, width - 1)
            return x[i, c, row, column, lane]
        inside = tirx.all(row >= 0, row < h, column >= 0, column < width)
        return tirx.if_then_else(inside, x[i, c, row, column, lane], neutral)

    reduce = te.max if mode == "max" else te.sum
    window = te.compute(
        (n, cb, out[0], computed, b),
        lambda i, c, y, z, lane: reduce(element(i, c, y, z, lane).astype(kept), axis=[rh, rw]),
        name="pool",
        attrs={RULE: NAME},
    )

    def finish(i: Expr, c: Expr, y: Expr, z: Expr, lane: Expr) -> Expr | te.TensorSlice:
        value = window[i, c, y, z, lane]
        if mode == "max":
            return value
        if not padded:
            return (value * const(1.0 / (kernel[0] * kernel[1]), kept)).astype(dtype)
        low, high = (0, 0) if not count_include_pad else (pads[0], pads[2])
        left, right = (0, 0) if not count_include_pad else (pads[1], pads[3])
        rows = _inside(y * strides[0] - pads[0], kernel[0], dilations[0], -low, h + high)
        columns = _inside(z * strides[1] - pads[1], kernel[1], dilations[1], -left, width + right)
        return (value / tirx.Cast(kept, tirx.max(rows * columns, 1))).astype(dtype)

    return te.compute((n, cb, out[0], out[1], b), finish, name="finish")


def _inside(start: Expr, size: int, dilation: int, low: int, high: int) -> Expr:
    """How many of `start, start + dilation, ...` (`size` of them) lie in [low, high)."""
    if dilation == 1:
        return tirx.min(start + size, high) - tirx.max(start, low)
    first = tirx.max(tirx.floordiv(low - start + dilation - 1, dilation), 0)
    last = tirx.min(tirx.floordiv(high - start - 1, dilation), size - 1)
    return last - first + 1


def tile_columns(out_width: int) -> int:
    """Output columns of a register tile."""
    return padded_tile(out_width, 8)


def _band(rows: int, row_bytes: int, halo: int, stride: int, machine: CpuMachine) -> int:
    """Output rows per task: the most that divide `rows` and whose padded input fits the first-level cache."""
    fit = (machine.l1_bytes // row_bytes - halo) // stride
    return largest_divisor(rows, max(1, min(fit, 16)))


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """A band of rows of tiles per task; the window is unrolled where it is small."""
    pad = next((block for block in blocks_of(sch) if block.name == "pad"), None)
    last = inline_after(sch, anchor)
    n, c, oh, ow, lane = sch.get_loops(last)
    ow_out, ow_in = sch.split(ow, [None, tile_columns(anchor.spatial[3])])
    if pad is None:
        task = sch.fuse(n, c, oh)
    else:
        halo, stride = (int(sch.get(anchor.rv).annotations[name]) for name in ("graphopt.halo", "graphopt.stride"))
        band = _band(anchor.spatial[2], 4 * pad.spatial[3] * pad.spatial[4], halo, stride, machine)
        oh_out, _ = sch.split(oh, [None, band])
        task = sch.fuse(n, c, oh_out)
    sch.compute_at(anchor.rv, ow_out, preserve_unit_loops=True)
    sch.set_scope(anchor.rv, 0, "local")
    if pad is not None:
        pad_locally(sch, pad, task)
    tile, tile_lane, kh, kw = sch.get_loops(anchor.rv)[-4:]
    sch.reorder(kh, kw, tile, tile_lane)
    sch.parallel(task)
    sch.unroll(tile)
    sch.unroll(ow_in)
    if anchor.reduce[1] <= 7:
        sch.unroll(kw)
    sch.vectorize(tile_lane)
    sch.vectorize(lane)
    start = sch.decompose_reduction(anchor.rv, kh)
    *_, zero, zero_lane = sch.get_loops(start)
    sch.unroll(zero)
    sch.vectorize(zero_lane)
