"""Workloads, the keys of costs: one operator on given shapes, independent of the model it is part of."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

AttributeValue = int | float | str | tuple[int, ...]

TILE = "graphopt.tile"
"""Metadata of an ONNX node: the tile for its kernel, as the kernel spells it ("14x2")."""

PRECISION = "graphopt.precision"
"""Metadata of an ONNX node: `tf32` where a float32 GEMM may round its operands to TF32 (10 bits)."""


SKIP_ZEROS = "graphopt.skip-zeros"
"""Metadata of an ONNX node: a product whose kernel leaves out weights of inputs that are zero in a run."""


@dataclass(frozen=True, slots=True)
class Operand:
    """An input: its static shape, numpy's name of its dtype, and whether it is a constant (weights, a bias).

    `pattern` is the digest of `indices`, the integers of a constant that decide how much is computed: where the blocks
    of sparse weights lie. They are not compared, for the digest is.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    constant: bool = False
    pattern: str = ""
    indices: NDArray[Any] | None = field(default=None, compare=False, repr=False)

    @staticmethod
    def of_indices(indices: NDArray[Any]) -> Operand:
        """The constant operand that holds `indices`."""
        digest = hashlib.sha256(np.ascontiguousarray(indices).tobytes()).hexdigest()[:32]
        return Operand(indices.shape, indices.dtype.name, True, digest, indices)


@dataclass(frozen=True, slots=True)
class Workload:
    """One node to compute: operator, inputs, attributes, and the shape of its output (in the first input's dtype).

    `units` are the units that its GEMMs may use instead of CUDA cores or scalar code ("tf32").
    """

    op_type: str
    operands: tuple[Operand, ...]
    shape: tuple[int, ...]
    attributes: tuple[tuple[str, AttributeValue], ...] = ()
    domain: str = "graphopt"
    units: str = ""

    @property
    def key(self) -> str:
        """A text that is equal for equal workloads, and for no others."""
        operands = [[list(o.shape), o.dtype, o.constant, *filter(None, [o.pattern])] for o in self.operands]
        attributes = {name: list(v) if isinstance(v, tuple) else v for name, v in sorted(self.attributes)}
        parts = [self.domain, self.op_type, operands, list(self.shape), attributes, *filter(None, [self.units])]
        return json.dumps(parts, separators=(",", ":"), sort_keys=True)


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of a workload with its best tile: the median and the quartiles of the measured rounds."""

    seconds: float
    low: float
    high: float
    tile: str = ""

    def scaled(self, factor: float) -> Timing:
        """The timing on a machine that takes `factor` times as long."""
        return replace(self, seconds=self.seconds * factor, low=self.low * factor, high=self.high * factor)


@dataclass(frozen=True, slots=True)
class KernelPlan:
    """How a kernel computes: algorithm, tile, and an estimate of its seconds, None if it is bound by memory bandwidth.

    `layout` is the layout of its tensors. `precision` names the units that compute sums ("fp16 mma"), empty for
    CUDA cores or scalar code.
    """

    algorithm: str
    tile: str = ""
    seconds: float | None = None
    layout: str = "plain"
    precision: str = ""
