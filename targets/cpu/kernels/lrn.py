"""Local response normalization across the channels of a blocked tensor.

    y[c] = x[c] / (bias + alpha / size * sum of x[c']^2 over the size channels around c) ^ beta

The squares of one pixel's channels lie side by side in a small buffer with the window's margin of zeros, so that the
sum over the window is a handful of unaligned vector loads, whatever block a neighbour belongs to.
"""

from __future__ import annotations

from tvm import s_tir, te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import RULE, Block, const, dims
from graphopt.targets.cpu.machine import CpuMachine

NAME = "lrn"


def compute(x: te.Tensor, channels: int, size: int, alpha: float, beta: float, bias: float) -> te.Tensor:
    """x[N, CB, H, W, b] of which `channels` are real; ONNX's window reaches floor((size-1)/2) back, the rest ahead."""
    n, cb, h, w, b = dims(x)
    back = (size - 1) // 2

    def square(i: Expr, y: Expr, z: Expr, place: Expr) -> Expr:
        channel = place - back
        value = x[i, tirx.floordiv(channel, b), y, z, tirx.floormod(channel, b)]
        inside = tirx.all(channel >= 0, channel < channels)
        return tirx.if_then_else(inside, value * value, const(0, x.dtype))

    squares = te.compute((n, h, w, cb * b + size - 1), square, name="squares", attrs={RULE: NAME})

    def element(i: Expr, o: Expr, y: Expr, z: Expr, lane: Expr) -> Expr:
        total: Expr | te.TensorSlice = squares[i, y, z, o * b + lane]
        for offset in range(1, size):
            total = total + squares[i, y, z, o * b + lane + offset]
        base = total * const(alpha / size, x.dtype) + const(bias, x.dtype)
        return x[i, o, y, z, lane] / _power(base, beta, x.dtype)

    return te.compute((n, cb, h, w, b), element, name="lrn")


def _power(base: Expr, exponent: float, dtype: str) -> Expr:
    """base ** exponent for base > 0; quarters are square roots, which have a vector instruction."""
    if exponent == 0.75:
        root = tirx.sqrt(base)
        return root * tirx.sqrt(root)
    if exponent == 0.5:
        return tirx.sqrt(base)
    return tirx.pow(base, const(exponent, dtype))


def schedule(sch: s_tir.Schedule, anchor: Block, machine: CpuMachine) -> None:
    """One task per image row; per pixel first the squares, then every channel block."""
    last = sch.get_sblock("lrn")
    n, o, y, z, lane = sch.get_loops(last)
    sch.reorder(n, y, z, o, lane)
    row = sch.fuse(n, y)
    sch.compute_at(anchor.rv, z)
    sch.set_scope(anchor.rv, 0, "local")
    sch.parallel(row)
    sch.vectorize(lane)
