"""Compress AlexNet and VGG-16, pruned to the densities of Deep Compression, and print the sizes beside the published.

    python benchmarks/compression.py

Of each layer the largest weights stay, as many as in tables 4 and 5 of the paper; all weights are the zoo's, which are
random.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from graphopt.cli import main
from graphopt.frontend.load import read
from graphopt.report.weights.published import ALEXNET, VGG16, Published
from graphopt.storage import protos


def prune(source: str, network: Published, target: Path) -> None:
    """Write the model with the density of each layer that the paper gives."""
    model, folder = read(source)
    for weight, (percent, _) in zip(protos.weights(model), network.layers.values(), strict=True):
        values = protos.payload(weight.tensor, folder).view(np.float32).copy()
        dropped = int(values.size * (1 - percent / 100))
        values[np.argpartition(np.abs(values), dropped)[:dropped]] = 0
        protos.put(weight.tensor, values.tobytes())
    target.write_bytes(model.SerializeToString())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        for source, network in (("zoo:alexnet", ALEXNET), ("zoo:vgg16", VGG16)):
            pruned = Path(name) / f"{network.name}.onnx"
            prune(source, network, pruned)
            if status := main(["compress", str(pruned), "-o", f"{name}/m.gopz", "--bits", "5", *sys.argv[1:]]):
                sys.exit(status)
