"""Options of every command that changes a model's numbers: what that does to the scores, and how much it may do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import options
from graphopt.errors import GraphoptError

if TYPE_CHECKING:
    from graphopt.report.document import Block
    from graphopt.verify.evaluate import Samples
    from graphopt.verify.oracle import Reference
    from graphopt.verify.quality import Quality

Eval = Annotated[
    Path | None,
    typer.Option(
        "--eval",
        metavar="FILE.npz",
        parser=options.path,
        help="Compare the scores of both models on these samples: arrays named as the inputs, and perhaps labels.",
    ),
]
EvalOutput = Annotated[
    str | None,
    typer.Option(
        "--eval-output",
        metavar="NAME",
        help="The output with the scores, classes on its last axis; default the first of floats.",
    ),
]
MaxKl = Annotated[
    float | None,
    typer.Option("--max-kl", metavar="NATS", help="Fail, and write nothing, if the mean KL divergence is larger."),
]
MaxFlip = Annotated[
    float | None,
    typer.Option("--max-flip", metavar="SHARE", help="Fail, and write nothing, if more best classes are others."),
]
Svg = Annotated[
    Path | None,
    typer.Option(
        "--svg",
        metavar="FILE",
        parser=options.file,
        help="Draw the distributions of both models' scores; needs --eval.",
    ),
]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What --eval and its companions ask for."""

    samples: Samples
    output: str | None
    max_kl: float | None
    max_flip: float | None
    svg: Path | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """The quality of a change, and the output that was compared."""

    quality: Quality
    output: str

    def document(self) -> dict[str, Any]:
        """The rows as JSON values."""
        from graphopt.report import quality as reporting

        return reporting.document(self.quality, self.output)

    def blocks(self, changed: str) -> list[Block]:
        """The table; `changed` is the word for the changed model."""
        from graphopt.report import quality as reporting

        return reporting.blocks(self.quality, self.output, changed)

    def draw(self, path: Path, title: str, changed: str) -> None:
        """Write the plot."""
        from graphopt.cli import drawing
        from graphopt.report import quality as reporting

        drawing.write(path, reporting.svg(title, self.quality, changed), "--svg")


def asked(
    samples: Path | None, output: str | None, max_kl: float | None, max_flip: float | None, svg: Path | None
) -> Evaluation | None:
    """The evaluation that the options ask for; the samples are read now. None without --eval.

    Raises:
        GraphoptError: an option needs --eval, a limit is out of range, or the file cannot be read.
    """
    for flag, value, most in (("--max-kl", max_kl, math.inf), ("--max-flip", max_flip, 1.0)):
        if value is not None and not 0 <= value <= most:
            within = "0 to 1" if most == 1.0 else "0 on"
            raise GraphoptError(f"{flag} is {value:g}; it must be a number from {within}")
    if samples is None:
        needs = {"--max-kl": max_kl, "--max-flip": max_flip, "--eval-output": output, "--svg": svg}
        given = [flag for flag, value in needs.items() if value is not None]
        if given:
            raise GraphoptError(f"{given[0]} needs samples to compare the models on; give --eval FILE.npz too")
        return None
    if svg is not None:
        options.check_output(svg, "--svg", options.is_drawing)
    from graphopt.verify.evaluate import read_samples

    return Evaluation(read_samples(samples), output, max_kl, max_flip, svg)


def judge(
    evaluation: Evaluation,
    dense: Reference,
    changed: Reference,
    energy: Mapping[str, float] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Judgement:
    """Run both models on the samples and compare their scores.

    Raises:
        GraphoptError: the samples do not fit the models, or a limit is exceeded.
    """
    from graphopt.verify.evaluate import score
    from graphopt.verify.quality import compare

    samples = evaluation.samples
    before = score(dense, samples, evaluation.output, progress)
    after = score(changed, samples, before.output, progress)
    softmax = True if before.softmax else None
    try:
        quality = compare(before.values, after.values, samples.labels, probabilities=softmax, energy=energy)
    except GraphoptError as error:
        raise GraphoptError(f"--eval {samples.path}: {error}") from error
    for flag, value, most, what in (
        ("--max-kl", quality.kl_mean, evaluation.max_kl, "the mean KL divergence is {:.4g} nats"),
        ("--max-flip", quality.flip_rate, evaluation.max_flip, "{:.2%} of the best classes are others"),
    ):
        if most is not None and value > most:
            raise GraphoptError(f"{what.format(value)}, above {flag} {most:g}: change less; nothing was written")
    return Judgement(quality, before.output)
