"""The interface between the compiler and a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost.source import Costed
from graphopt.cost.workload import KernelPlan, Workload
from graphopt.program.program import KernelCall, Value


@dataclass(slots=True)
class Lowered:
    """Kernel calls over named values, before memory planning.

    `functions` maps a symbol to code the target can build; `constants` maps a WEIGHT value to its array.
    `notes` are sentences about kernels that got less than their best schedule; `plans` describe, by symbol and for
    some targets only, how a kernel computes.
    """

    calls: list[KernelCall] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    plans: dict[str, KernelPlan] = field(default_factory=dict)


class Target(Costed, Protocol):
    """One kind of hardware: which nodes it supports, and how they are lowered and built."""

    separate: bool
    """Whether every operator gets a kernel of its own, because code generation failed on fused kernels."""

    @property
    def extension(self) -> str:
        """File extension of what `library` returns, without the dot."""

    @property
    def skips(self) -> bool:
        """Whether kernels can be skipped at run time by a condition that another segment computes."""

    def supports(self, node: ir.Node, opsets: Mapping[str, int]) -> str | None:
        """Why `node` cannot become native code, in a sentence; None if it can."""

    def defect(self, node: ir.Node, opsets: Mapping[str, int]) -> str | None:
        """Why no code can be generated for a supported `node`, found by building it alone; None if it can."""

    def lower(
        self,
        nodes: Sequence[ir.Node],
        inputs: Sequence[ir.Value],
        outputs: Sequence[ir.Value],
        opsets: Mapping[str, int],
        prefix: str,
    ) -> Lowered:
        """Lower supported nodes, in topological order, to kernel calls."""

    def copy(self, source: Value, result: Value, prefix: str) -> Lowered:
        """One call that copies `source` into `result`, of its type and shape; `prefix` starts every new name."""

    def library(self, functions: Mapping[str, Any]) -> bytes:
        """Build all functions into one file, each under its symbol: a shared library, or kernels for a device."""

    def wide_tiles(self, workload: Workload) -> Sequence[str]:
        """All tiles that the kernel of `workload` could use, for tuning; none where there is nothing to tune."""
