"""Train the LeNet for 8 x 8 digits and rewrite the committed files: `python -m graphopt.models.train_lenet`.

The only program here that needs scikit-learn, for its digits; the committed files do not.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from graphopt.models.export import to_onnx
from graphopt.models.lenet import lenet_digits
from graphopt.models.samples import LEVELS, TRAINED
from graphopt.models.weights import draw

NAME = "lenet-digits"
SEED = 7
TEST_SHARE = 0.2
EPOCHS = 60
BATCH = 64


def train(builder: Callable[[], nn.Module], images: torch.Tensor, labels: torch.Tensor, epochs: int) -> nn.Module:
    """Draw a network and fit it."""
    module = builder()
    draw(module, SEED)
    return fit(module, images, labels, epochs)


def fit(
    module: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    epochs: int,
    rate: float = 3e-3,
    after_step: Callable[[], None] | None = None,
) -> nn.Module:
    """Fit a network with AdamW and a cosine schedule; each batch is shifted by up to one pixel.

    The last epoch's weights are the result: the test split chooses nothing. `after_step` is called after each batch.
    """
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    padded = functional.pad(images, (1, 1, 1, 1))
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            top, left = (int(torch.randint(3, (), generator=generator)) for _ in range(2))
            loss = functional.cross_entropy(
                module(padded[batch, :, top : top + 8, left : left + 8]), labels[batch], label_smoothing=0.05
            )
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            if after_step is not None:
                after_step()
        schedule.step()
    return module.eval()


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """One thread: the order of the sums, and so the last digits of the weights, depends on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def accuracy(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of images whose highest score is at their label."""
    with torch.no_grad():
        hits = module(images).argmax(1) == labels
    return float(hits.double().mean())


def write(folder: Path, epochs: int = EPOCHS) -> dict[str, object]:
    """Train; write `lenet-digits.onnx`, `.safetensors` (the test split) and `.json` to `folder`; return the record."""
    return write_network(folder, NAME, lenet_digits, epochs)


def write_network(
    folder: Path, name: str, builder: Callable[[], nn.Module], epochs: int = EPOCHS, *, split: bool = True
) -> dict[str, object]:
    """Train a network for the digits; write `NAME.onnx`, `NAME.json` and, with `split`, the test split."""
    import onnx_ir
    from safetensors.numpy import save
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pixels, labels = digits.images.astype(np.uint8), digits.target.astype(np.uint8)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels, labels, test_size=TEST_SHARE, random_state=SEED, stratify=labels
    )

    def tensors(pixels: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.from_numpy(pixels).float()[:, None] / LEVELS, torch.from_numpy(labels).long()

    with repeatable():
        module = train(builder, *tensors(train_pixels, train_labels), epochs)
    model = to_onnx(module, name, {"image": ("float32", (1, 1, 8, 8))}, ["logits"])
    files = {
        f"{name}.onnx": onnx_ir.to_proto(model).SerializeToString(deterministic=True),
    }
    if split:
        files[f"{name}.safetensors"] = save({"images": test_pixels, "labels": test_labels})
    record: dict[str, object] = {
        "name": name,
        "data": "scikit-learn load_digits: 1,797 images of 8 x 8 pixels, 0..16",
        "input": f"pixels / {LEVELS}, float32 [1, 1, 8, 8]",
        "test_accuracy": round(accuracy(module, *tensors(test_pixels, test_labels)), 6),
        "train_accuracy": round(accuracy(module, *tensors(train_pixels, train_labels)), 6),
        "test_images": len(test_labels),
        "train_images": len(train_labels),
        "test_share": TEST_SHARE,
        "split_seed": SEED,
        "training_seed": SEED,
        "epochs": epochs,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "versions": {
            package: importlib.metadata.version(package)
            for package in ("torch", "scikit-learn", "onnx-ir", "onnxscript")
        },
        "sha256": {file: hashlib.sha256(content).hexdigest() for file, content in files.items()},
    }
    files[f"{name}.json"] = (json.dumps(record, indent=2) + "\n").encode()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for file, content in files.items():
            draft = Path(scratch) / file
            draft.write_bytes(content)
            os.replace(draft, folder / file)
    return record


def main() -> int:
    """Rewrite the committed files and say what came out."""
    try:
        import sklearn  # noqa: F401
    except ImportError:
        sys.stderr.write("training needs scikit-learn for its digits; install it with `pip install graphopt[test]`.\n")
        return 1
    record = write(TRAINED)
    sys.stdout.write(f"{NAME}: test accuracy {record['test_accuracy']:.4%} on {record['test_images']} images\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
