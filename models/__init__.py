"""The model zoo: seeded builders of well-known networks, one trained LeNet, and the models that onnx ships.

Importing this package is light: torch is loaded when a model is built for the first time.
"""

from graphopt.models.samples import digits
from graphopt.models.zoo import ModelInfo, TensorInfo, build, describe, names

__all__ = ["ModelInfo", "TensorInfo", "build", "describe", "digits", "names"]
