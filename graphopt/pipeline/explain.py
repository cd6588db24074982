"""The decisions of a pipeline as plain rows, without formatting.

for row in explain(result): print(row.step, row.node, row.decision, row.seconds, row.other, row.other_seconds)
"""

from __future__ import annotations

from dataclasses import dataclass

from graphopt.pipeline.pass_base import Alternative, Choice
from graphopt.pipeline.pipeline import PipelineResult


@dataclass(frozen=True, slots=True)
class Row:
    """One decision about one node, and the best alternative that was possible.

    `seconds` are measured or estimated, and None for a refusal, whose `decision` is "left alone". `reason` says why the
    alternative was not taken, or why the node was left alone. `impossible` lists the algorithms that the node cannot
    use, each with its reason; `tile` is the tile that its kernel was given, if any.
    """

    step: str
    node: str
    decision: str
    seconds: float | None
    other: str
    other_seconds: float | None
    reason: str
    impossible: tuple[tuple[str, str], ...] = ()
    tile: str = ""
    measured: bool = False


def explain(result: PipelineResult) -> list[Row]:
    """A row per choice and per refusal, in the order of the passes and of the graph."""
    rows: list[Row] = []
    for step in result.steps:
        rows += [_chosen(step.name, choice) for choice in step.choices]
        rows += [Row(step.name, r.node, "left alone", None, "", None, r.reason) for r in step.refusals]
    return rows


def _chosen(step: str, choice: Choice) -> Row:
    possible = [(other.seconds, other) for other in choice.alternatives if other.seconds is not None]
    impossible = tuple((other.algorithm, other.reason) for other in choice.alternatives if other.seconds is None)
    other_seconds, other = min(possible, key=lambda pair: pair[0], default=(None, Alternative("", None, "")))
    return Row(
        step,
        choice.node,
        choice.algorithm,
        choice.seconds,
        other.algorithm,
        other_seconds,
        other.reason,
        impossible,
        choice.tile,
        choice.measured,
    )
