"""Pools of the training step, planar x[N, C, *image] or blocked x[N, CB, H, W, b]: where the maximum lies, and back.

    a[.., o] = the first tap k whose x[.., o s + k d - p] is the maximum; NaN is larger than all numbers
    dx[.., i] = sum over the windows o that read i with tap k of  dy[.., o] where a[.., o] = k    (maximum)
                                                                  dy[.., o] / elements of o       (average)

An element of dx gathers what its windows give it, so no two tasks write the same place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr

from graphopt.targets.common.kernels.blocks import const, dims
from graphopt.targets.common.kernels.math import is_nan

SECOND, NONE = 256, 512
"""Keys of a tap that holds the largest number, after all that hold NaN, and of one outside the image."""


@dataclass(frozen=True, slots=True)
class Window:
    """A window over `image` that gives `out`; `begins` are the pads before each axis."""

    image: tuple[int, ...]
    out: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]


Element = Callable[[Sequence[Expr], Sequence[Expr], Sequence[Expr], Sequence[Expr]], Expr]
"""(image and channel, place, taps, lane) -> what is reduced."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """How a target computes windows: columns rounded up to `columns`(columns), blocks with `attributes`."""

    columns: Callable[[int], int] = lambda given: given
    attributes: Mapping[str, Any] = field(default_factory=dict)


PLAIN = Tiles()
"""As many columns as there are."""


def _reduced(
    shape: Sequence[int],
    rank: int,
    taps: Sequence[int],
    element: Element,
    reduce: Callable[..., Expr],
    name: str,
    tiles: Tiles,
) -> te.Tensor:
    """[*outer, *plane, *lanes] of `shape`, where the last tile of a plane's columns may reach too far."""
    axes = [te.reduce_axis((0, extent), f"k{axis}") for axis, extent in enumerate(taps)]
    computed, last = list(shape), 1 + rank
    computed[last] = tiles.columns(shape[last])

    def compute(*index: Expr) -> Expr:
        place = list(index[2 : 2 + rank])
        if computed[last] != shape[last]:
            place[-1] = tirx.min(place[-1], shape[last] - 1)
        return reduce(element(index[:2], place, axes, index[2 + rank :]), axis=axes)

    return te.compute(tuple(computed), compute, name=name, attrs=dict(tiles.attributes))


def largest(x: te.Tensor, window: Window) -> te.Tensor:
    """The maximum of each window of a planar tensor; a window of -inf alone gives the lowest number, as MaxPool."""
    start = tirx.min_value(x.dtype)

    def element(outer: Sequence[Expr], place: Sequence[Expr], taps: Sequence[Expr], lane: Sequence[Expr]) -> Expr:
        at, inside = _read(window, place, taps)
        value = x[(*outer, *at, *lane)]
        return tirx.if_then_else(tirx.all(*inside), value, start) if inside else value

    rank = len(window.out)
    return _reduced((*dims(x)[:2], *window.out), rank, window.kernel, element, te.max, "largest", PLAIN)


def argmax(x: te.Tensor, y: te.Tensor, window: Window, tiles: Tiles) -> te.Tensor:
    """The bytes a of x and its maxima y."""
    lowest = tirx.min_value(x.dtype)

    def element(outer: Sequence[Expr], place: Sequence[Expr], taps: Sequence[Expr], lane: Sequence[Expr]) -> Expr:
        at, inside = _read(window, place, taps)
        tap = _flat(taps, window.kernel).astype("int32")
        value, top = x[(*outer, *at, *lane)], y[(*outer, *place, *lane)]
        none, second = const(NONE, "int32"), tap + SECOND
        number = tirx.Select(value >= top, second, tirx.Select(top <= lowest, second, none))
        key = tirx.Select(is_nan(value, str(x.dtype)), tap, number)
        return tirx.if_then_else(tirx.all(*inside), key, const(NONE, "int32")) if inside else key

    keys = _reduced(dims(y), len(window.out), window.kernel, element, te.min, "keys", tiles)
    return te.compute(
        y.shape, lambda *i: tirx.bitwise_and(keys[i], const(SECOND - 1, "int32")).astype("uint8"), name="argmax"
    )


def _read(window: Window, place: Sequence[Expr], taps: Sequence[Expr]) -> tuple[list[Expr], list[Expr]]:
    """The element that each window reads with each tap, and what must hold for it to be in the image."""
    at, inside = [], []
    for axis, (o, k) in enumerate(zip(place, taps, strict=True)):
        begin, stride, dilation = window.begins[axis], window.strides[axis], window.dilations[axis]
        index = o * stride + k * dilation - begin
        last = (window.out[axis] - 1) * stride + (window.kernel[axis] - 1) * dilation - begin
        inside += [index >= 0] if begin else []
        inside += [index < window.image[axis]] if last >= window.image[axis] else []
        at.append(index)
    return at, inside


def _flat(taps: Sequence[Expr], kernel: Sequence[int]) -> Expr:
    """The number of a tap in its window."""
    flat = taps[0]
    for tap, extent in zip(taps[1:], kernel[1:], strict=True):
        flat = flat * extent + tap
    return flat


def _readers(window: Window, place: Sequence[Expr], turns: Sequence[Expr]) -> tuple[list[Expr], list[Expr], list[Expr]]:
    """(windows, taps, conditions) of the windows that read the element at `place`, the later ones first."""
    windows, taps, holds = [], [], []
    for axis, (i, j) in enumerate(zip(place, turns, strict=True)):
        stride, dilation = window.strides[axis], window.dilations[axis]
        reached = i + window.begins[axis]
        if dilation == 1:
            o = tirx.floordiv(reached, stride) - j
            k = reached - o * stride
            holds.append(k < window.kernel[axis])
        else:
            k = j
            o = tirx.floordiv(reached - k * dilation, stride)
            holds.append(o * stride == reached - k * dilation)
        holds += [o >= 0, o < window.out[axis]]
        windows.append(o)
        taps.append(k)
    return windows, taps, holds


def _gathered(dy: te.Tensor, window: Window, share: Callable[..., Expr], tiles: Tiles) -> te.Tensor:
    """dx, whose element adds `share`(indices of a window, its tap) of all its windows."""
    rank = len(window.out)
    turns = [
        math.ceil(k / s) if d == 1 else k
        for k, s, d in zip(window.kernel, window.strides, window.dilations, strict=True)
    ]

    def element(outer: Sequence[Expr], place: Sequence[Expr], turn: Sequence[Expr], lane: Sequence[Expr]) -> Expr:
        windows, taps, holds = _readers(window, place, turn)
        value = share((*outer, *windows, *lane), _flat(taps, window.kernel))
        return tirx.if_then_else(tirx.all(*holds), value, const(0, dy.dtype))

    shape = (*dims(dy)[:2], *window.image, *dims(dy)[2 + rank :])
    sums = _reduced(shape, rank, turns, element, te.sum, "gathered", tiles)
    return te.compute(shape, lambda *i: sums[i], name="dx")


def max_gradient(dy: te.Tensor, a: te.Tensor, window: Window, tiles: Tiles) -> te.Tensor:
    """dx of the maxima whose taps are `a`."""
    zero = const(0, dy.dtype)

    def share(at: Sequence[Expr], tap: Expr) -> Expr:
        return tirx.Select(a[at].astype("int32") == tap, dy[at], zero)

    return _gathered(dy, window, share, tiles)


def average_gradient(dy: te.Tensor, counts: te.Tensor, window: Window, tiles: Tiles) -> te.Tensor:
    """dx of averages; a window at `place` has the product of counts[axis, place[axis]] elements."""
    rank = len(window.out)

    def share(at: Sequence[Expr], _: Expr) -> Expr:
        cells = counts[0, at[2]]
        for axis in range(1, rank):
            cells = cells * counts[axis, at[2 + axis]]
        return dy[at] / cells

    return _gathered(dy, window, share, tiles)
