"""How the axes of a tensor are composed of the batch, the rows and the columns of a GEMM.

    y[n, g * M + m, h, w] of a grouped convolution    "b1 b2m8 n5 n5"        b = (n, g), n = (h, w)
    y[n, co, h, w, lane] on blocked channels          "m1 n4 m5 m5 n16"      m = (n, h, w), n = (co, lane)

Each axis is a list of factors, a letter and an extent, the outermost first. A letter's value is that of its factors,
over all axes in order, as digits of one number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

LETTERS = "bmn"


def blocked(lanes: int) -> str:
    """Name of the layout whose channels lie in blocks of `lanes`."""
    return f"NCHW{lanes}c"


Factor = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Axes:
    """The factors of every axis."""

    factors: tuple[tuple[Factor, ...], ...]

    @staticmethod
    def plain(shape: Sequence[int], parts: Sequence[int], rows: int, groups: int = 1) -> Axes:
        """The first `parts[0]` axes are the batch, the next `parts[1]` m, the last `parts[2]` n.

        With `groups`, the one axis of m holds `groups` times `rows`, group-major, and b counts the groups last.
        """
        letters = "".join(letter * count for letter, count in zip(LETTERS, parts, strict=True))
        factors: list[tuple[Factor, ...]] = [((letter, extent),) for letter, extent in zip(letters, shape, strict=True)]
        if groups > 1:
            factors[letters.index("m")] = (("b", groups), ("m", rows))
        return Axes(tuple(factors))

    @staticmethod
    def parse(text: str) -> Axes:
        """The inverse of `str`."""
        axes = (re.findall(r"([bmn])(\d+)", axis) for axis in text.split())
        return Axes(tuple(tuple((letter, int(extent)) for letter, extent in axis) for axis in axes))

    def __str__(self) -> str:
        """The factors of every axis, separated by spaces, such as "m1 n4 m5 m5 n16"."""
        return " ".join("".join(f"{letter}{extent}" for letter, extent in axis) for axis in self.factors)

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents of the axes."""
        return tuple(math.prod(extent for _, extent in axis) for axis in self.factors)

    @property
    def layout(self) -> str:
        """ "NCHW16c" where rows lie between the columns of blocks of 16, else "plain"."""
        letters = "".join(letter for axis in self.factors for letter, _ in axis)
        return blocked(self.factors[-1][-1][1]) if re.fullmatch("m*b?nm+n", letters) else "plain"

    def flat(self, index: Sequence[Expr]) -> tuple[Expr | int, Expr | int, Expr | int]:
        """(b, m, n) of an index."""
        values: dict[str, Expr | int] = dict.fromkeys(LETTERS, 0)
        for axis, place in zip(self.factors, index, strict=True):
            rest = math.prod(extent for _, extent in axis)
            for position, (letter, extent) in enumerate(axis):
                rest //= extent
                digit = place if rest == 1 else tirx.floordiv(place, rest)
                values[letter] = values[letter] * extent + (digit if position == 0 else tirx.floormod(digit, extent))
        return values["b"], values["m"], values["n"]

    def index(self, b: Expr, m: Expr, n: Expr) -> list[Expr]:
        """The inverse of `flat`."""
        rest = {"b": b, "m": m, "n": n}
        left = self._counts()
        places: list[Expr] = []
        for axis in reversed(self.factors):
            value: Expr | int = 0
            scale = 1
            for letter, extent in reversed(axis):
                left[letter] -= 1
                digit = rest[letter]
                if left[letter]:
                    digit, rest[letter] = tirx.floormod(digit, extent), tirx.floordiv(rest[letter], extent)
                value, scale = value + digit * scale, scale * extent
            places.insert(0, value)
        return places

    def _counts(self) -> dict[str, int]:
        return {letter: sum(factor == letter for axis in self.factors for factor, _ in axis) for letter in LETTERS}
