"""Small pictures for networks that take larger ones: every pixel becomes a block of equal ones.

[N, 1, 8, 8] -> [N, 3, 32, 32]     each pixel 4 x 4 times, the channel 3 times
[N, 1, 8, 8] -> [N, 64]            rows one after the other
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graphopt.errors import FeedError
from graphopt.training.data.dataset import Array, Transform


def resize(sample: Sequence[int], size: int) -> tuple[Transform, str]:
    """A function of a batch [N, 1, size, size] that gives [N, *sample], and a sentence on what it does.

    Pixels are chosen by nearest neighbour; where `size` divides the extents, all become blocks of one size.

    Args:
        sample: extents of one sample, [channels, height, width], [height, width] or [features].
        size: height and width of the pictures.

    Raises:
        FeedError: the network takes no pictures, or smaller ones.
    """
    if len(sample) == 3:
        channels, height, width = sample
    elif len(sample) == 2:
        channels, (height, width) = 1, sample
    else:
        channels, height = 1, math.isqrt(sample[0]) if len(sample) == 1 else 0
        width = height
    if height < size or width < size or math.prod(sample) != channels * height * width:
        raise FeedError(
            f"the digits are pictures of {size} x {size}, and the model takes samples of {list(sample)}; "
            "give data of your own with --data FILE.npz"
        )
    rows, columns = (np.arange(extent) * size // extent for extent in (height, width))

    def function(batch: Array) -> Array:
        large = batch if (height, width) == (size, size) else batch[:, :, rows[:, np.newaxis], columns]
        return np.broadcast_to(large, (len(batch), channels, height, width)).reshape(len(batch), *sample)

    if (height, width) == (size, size):
        return function, f"digits: {size} x {size} pixels in 0..1"
    scale = f", each pixel {height // size} x {width // size} times" if height % size == width % size == 0 else ""
    return function, f"digits: {size} x {size} pixels in 0..1, enlarged to {height} x {width}{scale}"
