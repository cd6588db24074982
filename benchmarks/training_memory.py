"""Training steps within budgets, measured: `python benchmarks/training_memory.py [MODEL-bN[:LOSS] ...]`.

For each model of the zoo: what its step holds without a bound, then within a half and a third of that, and within the
least budget found. A row gives the arena as planned and its highest byte that a run wrote, the time that the plan
predicts and the time that was measured, interleaved with the step without a bound in one process. Losses of three steps
must be the same bits. Prints a table in Markdown. Kernels are measured for the plan; GRAPHOPT_COSTS chooses algorithms.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from graphopt.artifact import Artifact
from graphopt.bench import intervals, timing
from graphopt.bench.training import task as tasks
from graphopt.compiler import compile_model
from graphopt.lowering.memory.fit import seconds_of
from graphopt.lowering.memory.replan import BudgetError, persistent_bytes, replan
from graphopt.report.units import nbytes

MODELS = ("resnet50-b16", "googlenet-b32", "vgg16-b8", "mobilenetv2-b32", "unet-b4", "densenet121-b8", "bert-base-b4")
SHARES = (1 / 2, 1 / 3)
STEPS = 3
HEAD = (
    "model",
    "budget",
    "total",
    "arena",
    "highest byte",
    "calls again",
    "predicted",
    "measured",
    "gap",
    "planned in",
)


def total(artifact: Artifact) -> int:
    """Bytes that the one rank of an artifact holds."""
    (stage,) = artifact.program.stages
    return persistent_bytes(stage, artifact) + stage.arena_bytes


def losses(artifact: Artifact, feeds: dict[str, Any]) -> list[float]:
    """Losses of the first steps."""
    session = artifact.session()
    return [float(session.run(feeds)["loss"]) for _ in range(STEPS)]


def rows(name: str) -> Iterator[tuple[str, ...]]:
    """The rows of one model."""
    name, _, loss = name.partition(":")
    task = tasks.of(f"zoo:{name}")
    step = (tasks.Task(task.source, loss) if loss else task).step()
    feeds = tasks.feeds(step)
    plain = compile_model(step.model).artifact
    (stage,) = plain.program.stages
    yield (name, "none", nbytes(total(plain)), *_arena(plain, feeds), "", "", "", "", "")
    seconds, _ = seconds_of(plain, None, measured=True)
    expected = losses(plain, feeds)
    budgets: list[int] = [round(share * total(plain)) for share in SHARES]
    while budgets:
        budget = budgets.pop(0)
        start = time.perf_counter()
        try:
            small, (plan,) = replan(plain, budget, seconds)
        except BudgetError as error:
            yield (name, nbytes(budget), "too small", *[""] * 7)
            budgets = [error.least]  # what is smaller is too small as well, and this one works
            continue
        planned = time.perf_counter() - start
        assert losses(small, feeds) == expected, f"{name} within {budget} bytes computes something else"
        value, low, high = _ratio(plain, small, feeds)
        yield (
            name,
            nbytes(budget),
            nbytes(total(small)),
            *_arena(small, feeds),
            str(sum(bool(call.recompute_of) for part in plan.stage.segments for call in getattr(part, "calls", ()))),
            f"{plan.overhead:+.1%}",
            f"{value - 1:+.1%} ({low - 1:+.1%} to {high - 1:+.1%})",
            f"{plan.solution.gap:.1%}",
            f"{planned:.1f} s",
        )


def _arena(artifact: Artifact, feeds: dict[str, Any]) -> tuple[str, str]:
    """The arena as planned, and the highest byte that a run wrote."""
    (written,) = artifact.session().measure_arena(feeds)
    return nbytes(artifact.program.stages[0].arena_bytes), nbytes(written)


def _ratio(plain: Artifact, small: Artifact, feeds: dict[str, Any]) -> tuple[float, float, float]:
    """Seconds of the small step over those of the plain one, with its interval."""
    sessions = [plain.session(), small.session()]
    blocks = [timing.by_clock(lambda session=session: session.run(feeds)) for session in sessions]  # type: ignore[misc]
    estimate, _ = intervals.ratio(timing.interleave(blocks).rounds, 1, 0)
    return estimate.value, estimate.low, estimate.high


def main() -> None:
    """Print the table."""
    print("|", " | ".join(HEAD), "|")
    print("|", " | ".join(["---"] * len(HEAD)), "|", flush=True)
    for name in sys.argv[1:] or MODELS:
        for row in rows(name):
            print("|", " | ".join(row), "|", flush=True)


if __name__ == "__main__":
    main()
