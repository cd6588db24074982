"""How a node reads and writes blocked tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Form:
    """A node with a blocked form: indices of its inputs and outputs [N, C, H, W], and of its constants to pack.

    Other outputs are what they are for planar tensors; `dropped` inputs the blocked operator has as attributes.
    """

    data: tuple[int, ...]
    constants: tuple[int, ...] = ()
    outputs: tuple[int, ...] = (0,)
    dropped: tuple[int, ...] = ()
