"""The handwritten digits: 1,797 images of 8 x 8 pixels in 0..16, split once into training and test.

They are the test part of the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998,
doi:10.24432/C50P49, CC BY 4.0), as scikit-learn ships them. The split is stratified, with the seed of `train_lenet`:
the trained networks beside them never saw the test part.
"""

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
    """The test split: 360 images [N, 1, 8, 8] float32 in 0..1, ready to be fed, and labels [N] int64 in 0..9."""
    return _read("lenet-digits.safetensors")


def training_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The other 1,437 images and their labels, in the same form."""
    return _read("digits-train.safetensors")


def _read(file: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    import numpy as np
    from safetensors.numpy import load_file

    split = load_file(TRAINED / file)
    images = split["images"].astype(np.float32)[:, np.newaxis] / np.float32(LEVELS)
    return images, split["labels"].astype(np.int64)
