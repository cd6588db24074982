"""What is left out together: `element`, `row`, `column`, `kernel`, `channel`, `filter`, `block:16x1`, `2:4`.

Weights are seen as [outputs, inputs, taps], where taps are the places of a convolution's window (one for a product).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from graphopt.errors import GraphoptError

KINDS = {
    "element": "single weights",
    "row": "all weights of one output",
    "column": "all weights of one input, for a convolution of one input at one tap",
    "kernel": "the window of a convolution for one output and one input",
    "channel": "all weights of one input channel",
    "filter": "all weights of one output channel",
    "block:HxW": "H neighbouring outputs times W neighbouring inputs, at one tap",
    "N:M": "all but N of M neighbouring inputs, at one tap",
}
"""Spelling -> what is a group."""

OUTPUTS, INPUTS = frozenset(("row", "filter")), frozenset(("column", "channel"))
"""Granularities whose groups are whole outputs or inputs, which can be taken out of the model."""

Shape = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Granularity:
    """A parsed spelling; `height` x `width` of a block, or `keep` of every `among`."""

    kind: str
    height: int = 1
    width: int = 1
    keep: int = 0
    among: int = 0

    @staticmethod
    def parse(text: str) -> Granularity:
        """Raises GraphoptError for another spelling."""
        if match := re.fullmatch(r"block:([1-9]\d{0,5})x([1-9]\d{0,5})", text):
            return Granularity("block", int(match[1]), int(match[2]))
        if match := re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", text):
            keep, among = int(match[1]), int(match[2])
            if keep >= among:
                raise GraphoptError(f"the granularity {text} keeps {keep} of {among}; keep fewer, as 2:4 does")
            return Granularity("n:m", keep=keep, among=among)
        if text in KINDS and text.isalpha():
            return Granularity(text)
        raise GraphoptError(f"there is no granularity {text!r}; there are {', '.join(KINDS)}")

    def __str__(self) -> str:
        """The spelling."""
        if self.kind == "n:m":
            return f"{self.keep}:{self.among}"
        return f"block:{self.height}x{self.width}" if self.kind == "block" else self.kind

    @property
    def sparsity(self) -> float | None:
        """The share of zeros that N:M means; None for the others, which take any."""
        return 1 - self.keep / self.among if self.kind == "n:m" else None

    def misfit(self, shape: Shape, *, conv: bool) -> str:
        """Why weights of `shape` have no such groups, as the end of a sentence; "" where they have."""
        outputs, inputs, _ = shape
        if self.kind == "kernel" and not conv:
            return "is a product, which has no kernels"
        if self.kind == "n:m" and inputs % self.among:
            return f"has {inputs} inputs, which {self.among} does not divide"
        if self.kind == "block" and outputs % self.height:
            return f"has {outputs} outputs, which {self.height} does not divide"
        if self.kind == "block" and inputs % self.width:
            return f"has {inputs} inputs, which {self.width} does not divide"
        return ""

    def single(self, shape: Shape) -> bool:
        """Whether weights of `shape` are one group, all of which would go or none."""
        return self.kind != "n:m" and self.group(shape) == shape

    def group(self, shape: Shape) -> Shape:
        """Extents of a group; of N:M the neighbours that compete."""
        outputs, inputs, taps = shape
        return {
            "element": (1, 1, 1),
            "row": (1, inputs, taps),
            "filter": (1, inputs, taps),
            "column": (outputs, 1, 1),
            "channel": (outputs, 1, taps),
            "kernel": (1, 1, taps),
            "block": (self.height, self.width, 1),
            "n:m": (1, self.among, 1),
        }[self.kind]
