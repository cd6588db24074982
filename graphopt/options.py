"""All options of a compilation, in one place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from graphopt.errors import GraphoptError
from graphopt.modes import Precision, VerifyMode

if TYPE_CHECKING:
    from graphopt.pipeline.pipeline import Pipeline

Kind = TypeVar("Kind", bound=StrEnum)

MAX_COUNT = 4096
"""Maximum of ranks and of micro-batches: every rank's actions are listed one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a compilation.

    Attributes:
        target: a name in `graphopt.targets.TARGETS`.
        level: CPU level, GPU or its architecture to generate for; None takes this host's CPU, or an H100.
        shapes: static shapes of inputs that the model leaves open.
        example_inputs: inputs to export a torch.nn.Module with.
        passes: a pipeline or its spelling; None takes the default one for the target.
        precision: "fp32", or "fp16", "bf16" or "tf32" for matrix products and the nodes between them; the pass
            `precision`, after `fuse`, applies it.
        verify: "off", "ends" (the finished program against the original model, in ONNX Runtime), "passes" (the model
            after every pass, in ONNX Runtime, which needs no device) or "each" (both).
        dump: a folder that receives the model after every pass.
        ranks: pipeline stages, one for each rank.
        micro_batches: how many times the compiled batch a run takes, piece by piece.
        memory_budget: bytes that each rank may hold: its arena, weights and state. Kernels run again where their
            results are not kept, with the same bits; None sets no bound.
        fallback: whether nodes that are not native may run in ONNX Runtime.
        costs: source of the costs that algorithms are chosen by: "measured" on this machine (timings of earlier
            compilations are in the user's cost table), "roofline" for estimates, or the path of an artifact, whose
            costs are reused, so that the same model becomes the same code. None takes the environment variable
            GRAPHOPT_COSTS, else "measured".
        threads: threads that code for CPUs is generated and measured for; None takes the processors of this host.
        cache: reuse kernels that were compiled before from the user's cache, and keep new ones there.
        lossy_energy: the share of a layer's squared weights to keep where dropping the others makes denser blocks of
            sparse weights; the pass `drop-blocks`, before `cluster-sparse`, drops them. None drops nothing.
        keep_denormals: leave out the pass `flush-denormals`, which replaces weights below 2^-126 by zero.
        seed: seed of the random inputs that verification draws.
        inputs: arrays to verify with; missing ones are random. They fix open dimensions too.
        keep: return the artifact also if verification fails, with the finding as `failure`.

    Raises:
        GraphoptError: a value is unknown or out of range, or two options contradict each other.
    """

    target: str = "llvm"
    level: str | None = None
    shapes: Mapping[str, Sequence[int]] | None = None
    example_inputs: Any = None
    passes: str | Pipeline | None = None
    precision: str = Precision.FP32
    verify: str = VerifyMode.OFF
    dump: Path | str | None = None
    ranks: int = 1
    micro_batches: int = 1
    memory_budget: int | None = None
    fallback: bool = True
    costs: str | None = None
    threads: int | None = None
    cache: bool = True
    lossy_energy: float | None = None
    keep_denormals: bool = False
    seed: int = 0
    inputs: Mapping[str, Any] | None = None
    keep: bool = False

    def __post_init__(self) -> None:
        """Check all values.

        Raises:
            GraphoptError: a value is unknown or out of range, or two options contradict each other.
        """
        verify = _one_of(VerifyMode, "--verify", self.verify)
        precision = _one_of(Precision, "--precision", self.precision)
        object.__setattr__(self, "verify", verify)
        object.__setattr__(self, "precision", precision)
        for flag, count in (("--ranks", self.ranks), ("--micro-batches", self.micro_batches)):
            if not 1 <= count <= MAX_COUNT:
                raise GraphoptError(f"{flag} must be from 1 to {MAX_COUNT}, not {count}.")
        if self.memory_budget is not None and self.memory_budget < 1:
            raise GraphoptError(f"--memory-budget must be a number of bytes above 0, not {self.memory_budget}.")
        if precision is Precision.BF16 and verify.steps:
            raise GraphoptError(
                f"--verify {verify} cannot follow --precision bf16, since ONNX Runtime computes no bfloat16 here; "
                "--verify ends compares the finished program with the model in fp32"
            )
        if self.lossy_energy is not None:
            if not 0 < self.lossy_energy <= 1:
                raise GraphoptError(f"--lossy-energy must be above 0 and at most 1, not {self.lossy_energy:g}.")
            if verify is not VerifyMode.OFF:
                raise GraphoptError(
                    f"--verify {verify} cannot follow --lossy-energy, which changes results; --eval compares them on "
                    "data of your own"
                )
        if self.inputs and verify is VerifyMode.OFF:
            raise GraphoptError("inputs are for verification: give --verify too, or leave them out")


def _one_of(kind: type[Kind], flag: str, text: str) -> Kind:
    if text not in list(kind):
        raise GraphoptError(f"{flag} {text} is unknown; choose one of {', '.join(kind)}.")
    return kind(text)
