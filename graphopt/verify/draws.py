"""Random inputs that a model can take: indices in range, divisors that are not zero, modes that it compares with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.errors import ModelError
from graphopt.graph.constness import is_input
from graphopt.verify.draw_demands import Demand, Model

Array = NDArray[Any]

_SPRINKLED = 0.25
"""Share of a tensor's elements that are replaced by numbers that the model compares with."""


def random_inputs(model: ir.Model, seed: int, given: Collection[str] = ()) -> dict[str, Array]:
    """One array per graph input that is not `given`, the same for the same model and seed.

    float     standard normal; where a logarithm, a root or a scale asks for it, positive
    bool      fair coin
    int       what all consumers accept (`draw_demands`); 0 or 1 where it is compared or cast to float or bool
              (a mask); the full range for 8 bits; otherwise within [1, 8), which divides safely
    string    "a" or "b"
    A single number that is compared with constants is one of them; among many numbers some are.

    Raises:
        ModelError: an input without a static shape, or of a type that has no random value.
    """
    generator = np.random.default_rng(seed)
    known = Model(model)
    inputs = (v for v in model.graph.inputs if is_input(v) and v.name not in given)
    return {str(value.name): random_array(value, known.demand(value), generator) for value in inputs}


def smaller(feeds: Mapping[str, Any], given: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """`feeds` with integers that more models accept: 0 and 1, only 0, only 1; nothing where all are `given`."""
    integers = {n: a for n, a in feeds.items() if n not in given and isinstance(a, np.ndarray) and a.dtype.kind in "iu"}
    if integers:
        yield {**feeds, **{name: array % 2 for name, array in integers.items()}}
        yield {**feeds, **{name: np.zeros_like(array) for name, array in integers.items()}}
        yield {**feeds, **{name: np.ones_like(array) for name, array in integers.items()}}


def random_array(value: ir.Value, demand: Demand, generator: np.random.Generator) -> Array:
    """Random numbers for one value of static shape; raises ModelError where there are none (`random_inputs`)."""
    shape = value.shape
    if isinstance(value.type, ir.SequenceType | ir.OptionalType):
        raise ModelError(f"input {value.name} is no tensor, so no random one can be made; give it with --input")
    if shape is None or shape.is_dynamic():
        raise ModelError(f"input {value.name} has no static shape; fix it with --shapes {value.name}:DxDxD")
    dims, dtype = shape.numpy(), value.dtype
    if dtype is None:
        raise ModelError(f"input {value.name} has no tensor type; random inputs need one")
    if dtype.name == "STRING":
        return generator.choice(np.array(["a", "b"], dtype=object), dims)
    numpy_dtype = dtype.numpy()
    if demand.exact is not None and dtype.name != "BOOL":
        return demand.exact.astype(numpy_dtype)
    if dtype.name == "BOOL":
        return generator.integers(0, 2, dims).astype(np.bool_)
    if dtype.name.startswith("COMPLEX"):
        parts = generator.standard_normal((2, *dims))
        return np.asarray(parts[0] + 1j * parts[1]).astype(numpy_dtype)
    if dtype.is_floating_point():
        return _sprinkle(np.asarray(_floats(demand, dims, generator)), demand, generator).astype(numpy_dtype)
    low, high = _range(demand, dtype)
    return _sprinkle(np.asarray(generator.integers(low, high, dims)), demand, generator).astype(numpy_dtype)


def _floats(demand: Demand, dims: tuple[int, ...], generator: np.random.Generator) -> Array:
    numbers = np.asarray(generator.standard_normal(dims))
    if demand.above_one:
        return np.abs(numbers) + 1
    if demand.unit:
        return np.abs(np.tanh(numbers)) if demand.positive else np.tanh(numbers)
    return np.abs(numbers) + 0.01 if demand.positive else numbers


def _range(demand: Demand, dtype: ir.DataType) -> tuple[int, int]:
    """[low, high) of the integers."""
    if demand.high is not None:
        low = demand.low or 0
        return low, max(demand.high, low + 1)
    if demand.low is not None:
        return max(demand.low, 1), max(demand.low, 1) + 7
    if demand.mask:
        return 0, 2
    return {"UINT8": (0, 256), "INT8": (-128, 128)}.get(dtype.name, (1, 8))


def _sprinkle(numbers: Array, demand: Demand, generator: np.random.Generator) -> Array:
    """`numbers` with some, or a single one, replaced by numbers that the model compares with and that are in range."""
    fitting = [
        number
        for number in demand.choices
        if (demand.low is None or number >= demand.low) and (demand.high is None or number < demand.high)
    ]
    if not fitting:
        return numbers
    chosen = generator.choice(np.array(fitting), numbers.shape)
    if numbers.size == 1:
        return np.asarray(chosen)
    return np.where(generator.random(numbers.shape) < _SPRINKLED, chosen, numbers)
