"""The handwritten digits beside the trained LeNet: the part of scikit-learn's set that training never saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TRAINED = Path(__file__).with_name("trained")
LEVELS = 16
"""The brightest pixel of the set; the network is fed pixels divided by this."""


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The test split: images [N, 1, 8, 8] float32 in 0..1, ready to be fed, and labels [N] int64 in 0..9."""
    import numpy as np
    from safetensors.numpy import load_file

    split = load_file(TRAINED / "lenet-digits.safetensors")
    images = split["images"].astype(np.float32)[:, np.newaxis] / np.float32(LEVELS)
    return images, split["labels"].astype(np.int64)
