"""Views: tensors whose elements lie moved in other tensors; kernels read and write those, and nothing is copied."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.ir import Expr

from graphopt.targets.gpu.kernels.gemm.access import AccessPattern

Index = Callable[[Sequence[Expr | int]], list[Expr | int]]


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of `shape` whose element at `place` is the one of another tensor at `index(place)`."""

    shape: tuple[int, ...]
    index: Index

    @staticmethod
    def whole(shape: Sequence[int]) -> View:
        """The tensor itself."""
        return View(tuple(int(extent) for extent in shape), list)

    def contiguous(self, shape: Sequence[int], width: int) -> bool:
        """Whether `width` neighbours of the last axis are an aligned load from the other tensor, of `shape`."""
        buffer = tirx.decl_buffer(tuple(shape), "float32", "source")
        inner = self.shape[-1]

        def element(outer: Expr, place: Expr, depth: Expr) -> Expr:
            lead: list[Expr] = []
            for extent in reversed(self.shape[:-2]):
                lead.insert(0, tirx.floormod(outer, extent))
                outer = tirx.floordiv(outer, extent)
            return buffer[tuple(self.index([*lead, place, depth]))]

        return AccessPattern(element, self.shape[-2], inner, "int32").contiguous(True, width)

    def permuted(self, axes: Sequence[int]) -> View:
        """Its axis i is axis axes[i] of this one."""
        before = self.index

        def index(place: Sequence[Expr | int]) -> list[Expr | int]:
            moved: list[Any] = [None] * len(axes)
            for axis, at in zip(axes, place, strict=True):
                moved[axis] = at
            return before(moved)

        return View(tuple(self.shape[axis] for axis in axes), index)

    def sliced(self, starts: Sequence[int], shape: Sequence[int]) -> View:
        """The part of `shape` that begins at `starts`."""
        before = self.index
        return View(tuple(shape), lambda place: before([at + start for at, start in zip(place, starts, strict=True)]))

    def reshaped(self, shape: Sequence[int]) -> View:
        """The same elements in the same order."""
        before, own, new = self.index, self.shape, tuple(shape)

        def index(place: Sequence[Expr | int]) -> list[Expr | int]:
            source: list[Expr | int] = []
            for old_axes, new_axes in groups(own, new):
                flat: Expr | int = 0
                for axis in new_axes:
                    flat = flat * new[axis] + place[axis]
                inner: list[Expr | int] = []
                for axis in reversed(old_axes):
                    first = axis == old_axes[0]
                    inner.insert(0, flat if first else tirx.floormod(flat, own[axis]))
                    flat = flat if first else tirx.floordiv(flat, own[axis])
                source += inner
            return before(source)

        return View(new, index)


def groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest runs of axes of both shapes that have as many elements: where a reshape splits and merges.

    groups((2, 5, 12), (2, 5, 3, 4))  ->  0 | 0, 1 | 1, 2 | 2 3
    """
    runs = []
    i = j = 0
    while i < len(old) and j < len(new):
        start, begin = i, j
        i, j = i + 1, j + 1
        while (left := math.prod(old[start:i])) != (right := math.prod(new[begin:j])):
            if left < right:
                i += 1
            else:
                j += 1
        runs.append((range(start, i), range(begin, j)))
    if runs:  # extents of 1 at the end belong to the last run
        (first, _), (second, _) = ((run.start, run.stop) for run in runs[-1])
        runs[-1] = range(first, len(old)), range(second, len(new))
    return runs


@dataclass(frozen=True, slots=True)
class Views:
    """How the operands q, k, v of attention and its result y lie in tensors; `result` is the shape of the latter's."""

    q: View
    k: View
    v: View
    y: View
    result: tuple[int, ...]

    @staticmethod
    def whole(q: Sequence[int], k: Sequence[int], v: Sequence[int]) -> Views:
        """Each lies in a tensor of its own shape."""
        result = (*q[:3], v[3])
        return Views(View.whole(q), View.whole(k), View.whole(v), View.whole(result), result)
