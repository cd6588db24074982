"""How an operand of a GEMM lies in memory: which of its elements one load of 16 bytes may take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm_ffi
from tvm import ir, sym, tirx
from tvm.ir import Expr

Element = Callable[[Expr, Expr, Expr], Expr]
"""(batch, place, depth) -> the element, where place is a row of the left operand or a column of the right one."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements that begin at `source[indices]` and follow in memory; zeros where `condition` does not hold."""

    source: tirx.Buffer
    indices: tuple[Expr | int, ...]
    condition: Expr | None  # None: always

    @property
    def address(self) -> Expr:
        """The pointer to the first element."""
        return tirx.address_of(self.source[self.indices])

    @property
    def flat(self) -> Expr | int:
        """The first element's linear index in memory."""
        index: Expr | int = 0
        for at, extent in zip(self.indices, self.source.shape, strict=True):
            index = index * extent + at
        return index


class AccessPattern:
    """One operand: `size` places of `depth` elements."""

    def __init__(self, element: Element, size: int, depth: int, index: str) -> None:
        """Args: index: the dtype of its indices."""
        self.element, self.size, self.depth = element, size, depth
        self._symbols = [tirx.Var(name, index) for name in ("batch", "outer", "quads")]
        self._contiguous: dict[tuple[bool, int], bool] = {}  # the answers so far: each takes milliseconds

    def contiguous(self, along_depth: bool, width: int) -> bool:
        """Whether `width` neighbours, from each multiple of `width` on, are one aligned load under one condition."""
        asked = along_depth, width
        if asked not in self._contiguous:
            self._contiguous[asked] = self._is_contiguous(along_depth, width)
        return self._contiguous[asked]

    def _is_contiguous(self, along_depth: bool, width: int) -> bool:
        if (self.depth if along_depth else self.size) % width:
            return False
        first = self._lane(along_depth, width, 0)
        if first is None:
            return False
        analyzer = sym.Analyzer()
        start = analyzer.simplify(first.flat)
        known = analyzer.modular_set(start)
        return (
            known.coeff % width == 0
            and known.base % width == 0
            and all(self._follows(analyzer, first, along_depth, width, lane) for lane in range(1, width))
        )

    def neighbours(self, along_depth: bool) -> bool:
        """Whether the next element of this direction is mostly the next in memory."""
        first, following = (self._lane(along_depth, 4, lane) for lane in (0, 1))
        if first is None or following is None:
            return False
        return _is(sym.Analyzer().simplify(following.flat - first.flat), 1)

    def plain(self, dtype: str) -> bool:
        """Whether elements are loads from a tensor of `dtype`, with zeros for some of them, and nothing else."""
        value = uncast(self.element(*self._symbols))
        load = _load(value)
        return load is not None and str(load.source.dtype) == dtype and _direct(value)

    def chunk(self, batch: Expr, place: Expr, depth: Expr) -> Chunk | None:
        """The load that an element is, if it is one."""
        return _load(self.element(batch, place, depth))

    def _lane(self, along_depth: bool, width: int, lane: int) -> Chunk | None:
        batch, outer, quads = self._symbols
        moving = quads * width + lane
        return self.chunk(batch, outer, moving) if along_depth else self.chunk(batch, moving, outer)

    def _follows(self, analyzer: sym.Analyzer, first: Chunk, along_depth: bool, width: int, lane: int) -> bool:
        other = self._lane(along_depth, width, lane)
        if other is None or not _is(analyzer.simplify(other.flat - first.flat), lane):
            return False
        if first.condition is None or other.condition is None:
            return first.condition is other.condition
        same = (analyzer.simplify(chunk.condition) for chunk in (first, other))
        return bool(tvm_ffi.structural_equal(*same))


def uncast(value: Expr) -> Expr:
    """The value before casts."""
    while isinstance(value, tirx.Cast):
        value = value.value
    return value


def _load(value: Expr) -> Chunk | None:
    conditions: list[Expr] = []
    value = uncast(value)
    while _is_choice(value):
        conditions.append(value.args[0])
        value = uncast(value.args[1])
    if not isinstance(value, ir.TensorLoad):
        return None
    return Chunk(value.source, tuple(value.indices), tirx.all(*conditions) if conditions else None)


def _direct(value: Expr) -> bool:
    while _is_choice(value):
        value = value.args[1]
    return isinstance(value, ir.TensorLoad)


def _is_choice(value: Expr) -> bool:
    """Whether it is a value or else zero."""
    if not isinstance(value, ir.Call) or not str(getattr(value.op, "name", "")).endswith("if_then_else"):
        return False
    otherwise = uncast(value.args[2])
    return isinstance(otherwise, tirx.IntImm | tirx.FloatImm) and otherwise.value == 0


def _is(value: Expr, number: int) -> bool:
    return isinstance(value, tirx.IntImm) and int(value) == number
