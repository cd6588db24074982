"""Groups of the blocks of sparse weights: each adds to the outputs of one group."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def longest(order: NDArray[np.int32], groups: int) -> int:
    """The blocks of the longest group, or a few more: a power of two, since definitions name it.

    Args:
        order: begins with the pointers of the groups, and where the last one ends.
    """
    return 1 << int(np.diff(order[: groups + 1]).max(initial=1) - 1).bit_length()
