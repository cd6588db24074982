"""Fine-tune a pruned network for 8 x 8 digits with its zeros kept, as whoever prunes a model does.

The training data, the shifts, the rate and the schedule are those of the first training (`train_lenet`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from graphopt.models.lenet import lenet_digits
from graphopt.models.mlp import mlp_digits
from graphopt.models.samples import LEVELS
from graphopt.models.train_lenet import SEED, TEST_SHARE, fit, repeatable

EPOCHS = 60
RATE = 3e-3
BUILDERS: dict[str, Callable[[], nn.Module]] = {"lenet-digits": lenet_digits, "mlp-digits": mlp_digits}


def training_split() -> tuple[torch.Tensor, torch.Tensor]:
    """Images [N, 1, 8, 8] in 0..1 and labels of the part that the test split leaves; needs scikit-learn."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    train_pixels, _, train_labels, _ = train_test_split(
        pixels, labels, test_size=TEST_SHARE, random_state=SEED, stratify=labels
    )
    return torch.from_numpy(train_pixels).float()[:, None] / LEVELS, torch.from_numpy(train_labels).long()


def retrain(
    name: str, weights: Mapping[str, NDArray[np.float32]], epochs: int = EPOCHS
) -> dict[str, NDArray[np.float32]]:
    """Fine-tune the network `name` of the zoo from `weights`; what is zero in a matrix stays zero.

    Returns the new weights by name; what `weights` holds besides is ignored.
    """
    module = BUILDERS[name]()
    module.load_state_dict({name: torch.from_numpy(weights[name].copy()) for name in module.state_dict()})
    masks = {name: value.detach() != 0 for name, value in module.named_parameters() if value.ndim > 1}

    def keep_zeros() -> None:
        with torch.no_grad():
            for name, value in module.named_parameters():
                if name in masks:
                    value.mul_(masks[name])

    with repeatable():
        fit(module, *training_split(), epochs, rate=RATE, after_step=keep_zeros)
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}
