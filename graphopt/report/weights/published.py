"""What Deep Compression reached, for the networks that it was tried on.

Han, Mao and Dally, Deep Compression: compressing deep neural networks with pruning, trained quantization and Huffman
coding, ICLR 2016: tables 4 (AlexNet) and 5 (VGG-16), the columns "weights %" and "compress rate (P+Q+H)". Their weights
are trained, and trained again after pruning and after sharing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from graphopt.storage.model import Layer


@dataclass(frozen=True, slots=True)
class Published:
    """A network of the paper: for each layer its density and what is left of its bytes, in percent."""

    name: str
    times: int
    layers: Mapping[str, tuple[float, float]]


ALEXNET = Published(
    "AlexNet",
    35,
    MappingProxyType(
        {
            "conv1": (84, 20.53), "conv2": (38, 9.43), "conv3": (35, 8.44), "conv4": (37, 9.11), "conv5": (37, 9.43),
            "fc6": (9, 2.39), "fc7": (9, 2.46), "fc8": (25, 5.85),
        }
    ),
)  # fmt: skip
VGG16 = Published(
    "VGG-16",
    49,
    MappingProxyType(
        {
            "conv1_1": (58, 29.97), "conv1_2": (22, 6.99), "conv2_1": (34, 8.91), "conv2_2": (36, 9.31),
            "conv3_1": (53, 11.15), "conv3_2": (24, 5.67), "conv3_3": (42, 8.96), "conv4_1": (32, 7.29),
            "conv4_2": (27, 5.93), "conv4_3": (34, 7.47), "conv5_1": (35, 8.00), "conv5_2": (29, 6.52),
            "conv5_3": (36, 7.79), "fc6": (4, 1.10), "fc7": (4, 1.25), "fc8": (23, 5.24),
        }
    ),
)  # fmt: skip

_KERNELS = {(11, 5, 3, 3, 3): (ALEXNET, 9216), (3,) * 13: (VGG16, 25088)}
"""Heights of the kernels of the convolutions -> the network, and the inputs of its first product."""


def published(layers: Sequence[Layer]) -> Published | None:
    """The network of the paper with these layers, in their order; its own or in a later form, as torchvision's."""
    kernels = tuple(layer.shape[2] for layer in layers if layer.operator == "Conv" and len(layer.shape) == 4)
    products = [sorted(layer.shape) for layer in layers if layer.operator != "Conv"]
    network, inputs = _KERNELS.get(kernels, (None, 0))
    if network is None or products != [[4096, inputs], [4096, 4096], [1000, 4096]]:
        return None
    return network
