"""Seeded weights that keep activations near unit scale through any depth, without a forward pass.

Everything is drawn uniformly: a uniform float is exact, so the weights do not depend on the vector units of the machine
that draws them, as normal draws do.
"""

from __future__ import annotations

import math
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)
RELU_GAIN = math.sqrt(2.0)


@runtime_checkable
class Drawable(Protocol):
    """A module with parameters of its own that draws them itself."""

    def draw(self, generator: torch.Generator) -> None:
        """Draw the module's own parameters from `generator`."""


def scaled(layer: Layer, gain: float) -> Layer:
    """Mark `layer` so that its weights are drawn with this gain; 1 keeps the scale of the activations as it is.

    Used for the last layer of a residual branch, so that the sum of many branches does not grow with their number.
    """
    setattr(layer, "gain", gain)  # noqa: B010 (Module's own type for attributes has no float)
    return layer


def uniform(tensor: torch.Tensor, generator: torch.Generator, deviation: float, mean: float = 0.0) -> None:
    """Fill `tensor` uniformly with this mean and standard deviation."""
    bound = deviation * math.sqrt(3.0)
    tensor.uniform_(mean - bound, mean + bound, generator=generator)


@torch.no_grad()
def draw(module: nn.Module, seed: int) -> None:
    """Draw all parameters and buffers of `module`, in the order of `module.modules()`.

    Convolutions and linear layers get the variance gain^2 / fan-in (He et al. 2015, arXiv:1502.01852, gain^2 = 2 unless
    `scaled` says otherwise), norms a scale around one and statistics that are near, but not at, zero and one: a fold of
    BatchNorm that forgot one of its four tensors changes the result.
    """
    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        gain = float(getattr(layer, "gain", 0.0))
        if isinstance(layer, Drawable):
            layer.draw(generator)
        elif isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            uniform(layer.weight, generator, (gain or RELU_GAIN) / math.sqrt(fan_in(layer)))
            if layer.bias is not None:
                uniform(layer.bias, generator, 0.05)
        elif isinstance(layer, nn.BatchNorm2d):
            uniform(layer.weight, generator, 0.1 * (gain or 1.0), mean=gain or 1.0)
            uniform(layer.bias, generator, 0.1)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            uniform(layer.running_mean, generator, 0.1)
            uniform(layer.running_var, generator, 0.2, mean=1.0)
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked.zero_()
        elif isinstance(layer, nn.LayerNorm):
            uniform(layer.weight, generator, 0.1, mean=1.0)
            uniform(layer.bias, generator, 0.05)
        elif isinstance(layer, nn.Embedding):
            uniform(layer.weight, generator, gain or 0.1)
        elif isinstance(layer, nn.LSTM):
            for name, parameter in layer.named_parameters():
                deviation = 0.05 if name.startswith("bias") else (gain or 1.0) / math.sqrt(parameter.shape[1])
                uniform(parameter, generator, deviation)
        elif next(layer.parameters(recurse=False), None) is not None:
            raise TypeError(f"no rule draws the parameters of {type(layer).__name__}")


def fan_in(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d) -> float:
    """How many products are summed into one output element."""
    if isinstance(layer, nn.ConvTranspose2d):
        return layer.weight[:, 0].numel() / math.prod(layer.stride)
    return layer.weight[0].numel()
