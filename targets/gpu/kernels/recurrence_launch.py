"""Recurrent layers, and how a step is launched on a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.gpu.devices import GpuSpec
from graphopt.targets.gpu.kernels.attention.launch import stride

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
"""Gates in ONNX's order: input, output, forget, cell; update, reset, hidden; the one of a plain RNN."""

VECTOR = 4
"""Elements of a load."""

SUMS = 32
"""Sums that a thread keeps in registers."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A recurrent layer.

    `activations` are in ONNX's order (f, g, h), direction after direction; `reset_after` is GRU's
    linear_before_reset. What goes into f and g is kept within +-`clip`, the cell state is not, as in ONNX Runtime. With
    `batch_first` (layout 1), states are [B, D, H] and Y is [B, T, D, H], else [D, B, H] and [T, D, B, H].
    """

    cell: str
    steps: int
    batch: int
    hidden: int
    directions: int
    dtype: str
    activations: tuple[str, ...]
    reverse: bool = False
    reset_after: bool = False
    clip: float | None = None
    batch_first: bool = False

    @property
    def gates(self) -> int:
        """Gates of the cell."""
        return GATES[self.cell]

    @property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """(first gate, gates) of the kernels of a step: a GRU that resets h before its product has two, in turn."""
        return ((0, 2), (2, 1)) if self.cell == "GRU" and not self.reset_after else ((0, self.gates),)

    @property
    def state(self) -> tuple[int, int, int]:
        """Shape of h and c."""
        d, b, h = self.directions, self.batch, self.hidden
        return (b, d, h) if self.batch_first else (d, b, h)

    @property
    def sequence(self) -> tuple[int, int, int, int]:
        """Shape of Y."""
        t, d, b, h = self.steps, self.directions, self.batch, self.hidden
        return (b, t, d, h) if self.batch_first else (t, d, b, h)


@dataclass(frozen=True, slots=True)
class LaunchConfig:
    """A block takes `units` hidden units and `rows` of the batch; `lanes` threads share each row of R."""

    units: int
    rows: int
    lanes: int

    @property
    def threads(self) -> int:
        """Threads per block."""
        return self.units * self.lanes

    def shared(self, gates: int, dtype: str) -> int:
        """Bytes of shared memory: the threads' parts of each sum, and the sums."""
        return ITEM_BYTES[dtype] * self.units * self.rows * gates * (stride(self.lanes) + 1)


STEP = 4e-6
"""Seconds from the start of a kernel to that of the next one, which waits for it, about."""


def seconds(layer: Layer, config: LaunchConfig, device: GpuSpec) -> float:
    """An estimate: every step waits for the one before, and reads R from the second-level cache, or else from memory.

    The cache is taken to give three times what memory does.
    """
    weights = layer.directions * layer.gates * layer.hidden**2 * ITEM_BYTES[layer.dtype]
    bandwidth = device.bandwidth * (3 if weights <= device.l2_bytes // 2 else 1)
    again = math.ceil(layer.batch / config.rows)
    return layer.steps * (len(layer.phases) * STEP + again * weights / bandwidth)


def launch_config(layer: Layer, device: GpuSpec) -> LaunchConfig:
    """The largest blocks that leave no multiprocessor idle."""
    gates = max(count for _, count in layer.phases)
    rows = min(layer.batch, 8, SUMS // gates)
    rows = math.ceil(layer.batch / math.ceil(layer.batch / rows))  # evenly filled
    lanes = 8
    while lanes < 64 and lanes * 4 * VECTOR < layer.hidden and 2 * lanes <= device.threads_per_block:
        lanes *= 2
    tasks = layer.directions * math.ceil(layer.batch / rows) * layer.hidden
    fitting = [
        config
        for units in (8, 4, 2, 1)
        for config in [LaunchConfig(units, rows, lanes)]
        if config.threads <= min(256, device.threads_per_block)
        and config.shared(gates, layer.dtype) <= min(device.shared_per_block, 48 << 10)
    ]
    return next((config for config in fitting if tasks >= config.units * device.multiprocessors), fitting[-1])
