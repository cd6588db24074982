"""What the compiler asks of a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost.roofline import Machine
from graphopt.cost.work import Plan, Timing, Work
from graphopt.program.program import KernelCall, Value


@dataclass(slots=True)
class Lowered:
    """Kernel calls over named values; nothing has an offset yet.

    `functions` maps a symbol to code the target can build; `constants` maps a WEIGHT value to its array.
    `notes` are sentences about kernels that got less than their best schedule; `plans` tell, for some targets, by
    symbol how a kernel computes.
    """

    calls: list[KernelCall] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)
    plans: dict[str, Plan] = field(default_factory=dict)


class Target(Protocol):
    """One kind of hardware. `extension` is that of the files that `library` gives."""

    separate: bool
    """Whether every operator is a kernel of its own: the way out where code generation fails on fused ones."""

    @property
    def extension(self) -> str:
        """Of file names, without the dot."""

    @property
    def skips(self) -> bool:
        """Whether a run can leave out kernels, by a condition that others compute."""

    @property
    def machine(self) -> Machine:
        """What the cost model sees."""

    def describe(self) -> dict[str, Any]:
        """The manifest's `target`: name, architecture and the features a processor must have."""

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
        """Kernel calls for nodes in topological order that are all supported."""

    def library(self, functions: Mapping[str, Any]) -> bytes:
        """All functions in one file, each under its symbol: a shared library, or kernels for a device."""

    def estimate(self, work: Work, units: str) -> float | None:
        """Seconds of `work`, as `graphopt.cost.model.Estimate` describes."""

    def tiles(self, work: Work) -> Sequence[str]:
        """The tiles that the kernel of `work` may use, the best by estimate first."""

    def wide_tiles(self, work: Work) -> Sequence[str]:
        """All tiles that the kernel of `work` could use, for tuning; none where there is nothing to tune."""

    def measure(
        self, groups: Sequence[Sequence[tuple[Work, str]]], progress: Callable[[str], None] | None = None
    ) -> Sequence[Sequence[Timing | None]]:
        """Seconds of every (work, tile) here, those of a group interleaved; None where it cannot be built."""

    def cannot_measure(self) -> str | None:
        """Why kernels for this target cannot be timed here, in a sentence; None if they can."""

    def cost_facts(self) -> dict[str, str]:
        """Everything that measured seconds depend on besides the work and its tile."""
