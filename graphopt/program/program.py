"""The Program: for each rank a list of actions, fixed ahead of time, over values at planned offsets of one arena.

A `Program` is what the compiler hands to the runtime. It is plain data: it prints, parses back, is checked
(`graphopt.program.schedule`) and executed (`graphopt.runtime`) without any compiler in the process.

    stage    what one rank computes for one micro-batch: values, one arena, segments in order
    segment  a run of kernel calls (native), one ONNX model run by ONNX Runtime (fallback), or a choice between values
             (select); all may have a guard
    action   run a stage on a micro-batch, or send or receive the values that cross a stage boundary
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

ALIGNMENT = 64
"""Bytes: every value starts at a multiple of this (one AVX-512 vector, one cache line)."""

MAX_BYTES = 1 << 46
"""More than any machine has; a larger number means a damaged file."""

MAX_VIEWS = 64
"""Longest chain of views from a value to its bytes."""

ITEM_BYTES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "uint32": 4, "float32": 4, "int64": 8, "uint64": 8, "float64": 8,
}  # fmt: skip


class Place(StrEnum):
    """Where the bytes of a value live while a stage runs."""

    ARENA = "arena"  # at `offset` of the stage's arena; stage inputs and outputs are placed there too
    WEIGHT = "weight"  # constant: the tensor `name` of the stage's weights file
    STATE = "state"  # at `offset` of the stage's state, which lives from run to run and which a run may change
    VIEW = "view"  # bytes of value `of` from `offset` on, with its own shape
    HOST = "host"  # a run-time object between fallback segments: dynamic shape, string, sequence or optional


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor of a stage. `shape` is None only for HOST values; `dtype` is numpy's name ("float32", "bfloat16")."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    place: Place
    offset: int = 0  # bytes, a multiple of ALIGNMENT; in the arena (ARENA), the state, or the bytes of `of` (VIEW)
    of: str = ""  # VIEW only

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor; 0 for a HOST value."""
        return 0 if self.shape is None else math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Launch:
    """One kernel of a device function: `entry<<<grid, block, shared>>>(tensors at arguments)`.

    `arguments` are positions in the call's `(*inputs, *outputs, *scratch)`; `shared` is bytes of dynamic shared memory.
    """

    entry: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[int, ...]
    shared: int = 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One call of a compiled function: `symbol(*inputs, *outputs, *scratch)` on tensor views.

    `scratch` values are written and read only inside the call.
    `origin` names the ONNX nodes that the kernel computes, for reports.
    `launches` are the kernels that the function launches on a device, in order; empty on a CPU.
    `in_place` are positions (in `inputs`, in `outputs`) of operands that may share their bytes: the kernel reads an
    element of the input only to write the same element of the output.
    `recompute_of` is the first output of the earlier call that this one repeats on the same inputs; "" for any other.
    """

    symbol: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    scratch: tuple[str, ...] = ()
    origin: tuple[str, ...] = ()
    launches: tuple[Launch, ...] = ()
    in_place: tuple[tuple[int, int], ...] = ()
    recompute_of: str = ""


Guard = tuple[tuple[str, bool], ...]
"""(name of a bool value, required value) pairs: a run skips the segment at the first pair that does not hold."""


@dataclass(frozen=True, slots=True)
class NativeSegment:
    """Kernel calls in order."""

    calls: tuple[KernelCall, ...]
    guard: Guard = ()


@dataclass(frozen=True, slots=True)
class FallbackSegment:
    """An ONNX model (file `model` inside the artifact) that ONNX Runtime runs on `inputs`, giving `outputs`.

    The model's own input and output names equal the value names. `reasons` says, per node, why it is not native.
    `weights` are the initializers that the model leaves to the stage's weights file, which kernels may read too.
    `spin` lets its idle threads busy-wait, where hardly any kernel would suffer from it.
    """

    model: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    reasons: tuple[tuple[str, str], ...]
    weights: tuple[str, ...] = ()
    spin: bool = False
    guard: Guard = ()


@dataclass(frozen=True, slots=True)
class SelectSegment:
    """`outputs` become copies of `when_true` or of `when_false`, by the value `condition`, which is one bool.

    A value that shares its output's place in the arena is not copied, nor is an output that is a view of one side.
    """

    condition: str
    outputs: tuple[str, ...]
    when_true: tuple[str, ...]
    when_false: tuple[str, ...]
    origin: tuple[str, ...] = ()
    guard: Guard = ()


Segment = NativeSegment | FallbackSegment | SelectSegment


class Role(StrEnum):
    """What a state value is to training."""

    PARAMETER = "parameter"  # has a gradient; the trained model holds it
    STATISTIC = "statistic"  # a running mean or variance: no gradient, the trained model holds it
    OPTIMIZER = "optimizer"  # momentum and other state of the update
    GRADIENT = "gradient"  # a sum of the gradients of several micro-batches
    COUNTER = "counter"  # steps, the seed of random numbers, the loss scale


@dataclass(frozen=True, slots=True)
class State:
    """A value that lives from run to run: a weight that training changes, a momentum, a running mean, a counter.

    `value` names a STATE value, whose bytes have no other owner; `becomes` the view of it, all of its bytes, that a run
    writes and that the next run reads as `value` ("" if runs only read it). `role` is a `Role`.
    """

    value: str
    role: str
    becomes: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """What one rank computes for one micro-batch.

    `inputs` and `outputs` are value names: graph inputs and outputs of the model, and values that cross a boundary.
    `library` and `weights` are file names inside the artifact ("" when the stage needs none).
    `arena_lower_bound` is the largest sum of live bytes, `arena_bytes` what the plan needs.
    `states` lie in `state_bytes` bytes of their own; the file `initial` has what they hold before the first run.
    """

    index: int
    values: tuple[Value, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    segments: tuple[Segment, ...]
    arena_bytes: int
    arena_lower_bound: int
    library: str = ""
    weights: str = ""
    states: tuple[State, ...] = ()
    state_bytes: int = 0
    initial: str = ""


class Verb(StrEnum):
    """The kind of an action: run a stage, send, or receive."""

    RUN = "F"
    SEND = "SEND"
    RECV = "RECV"


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a rank. Its text parses back (`schedule.parse_action`): `1F0`, `0SEND0>1`, `1RECV0<0`.

    `stage` is the acting stage, `micro_batch` counts from 0, `peer` is the other stage of a SEND or RECV, and
    `values` are the names sent or received, in order.
    """

    verb: Verb
    stage: int
    micro_batch: int
    peer: int = -1
    values: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The text that `schedule.parse_action` reads, without `values`."""
        arrow = {Verb.RUN: "", Verb.SEND: f">{self.peer}", Verb.RECV: f"<{self.peer}"}[self.verb]
        return f"{self.stage}{self.verb.value}{self.micro_batch}{arrow}"


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of the program: per micro-batch dtype and shape (None where dynamic)."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Program:
    """Stages and, for each rank, its actions in order. Rank r owns stage r.

    With `micro_batches` m > 1 the caller feeds m times the per-micro-batch extent on axis 0 of every input, and gets
    the outputs concatenated on axis 0.
    """

    stages: tuple[Stage, ...]
    actions: tuple[tuple[Action, ...], ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    micro_batches: int = 1
