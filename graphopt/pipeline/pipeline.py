"""Pipelines: passes in order, run on a model and watched by observers.

pipeline = Pipeline.parse("normalize,fuse,select-conv{max-workspace=256MiB},layout")
result = pipeline.run(model, observers=[Check(), Dump(directory)])
str(pipeline)     # the spelling again, options at their defaults left out
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.cost.model import CostModel
from graphopt.errors import GraphoptError, PipelineError
from graphopt.pipeline.pass_base import Choice, Pass, Refusal
from graphopt.pipeline.spelling import load_pass, split


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass of a run did. `index` counts from 1; 0 is the input."""

    index: int
    name: str
    spelling: str
    modified: bool
    refusals: tuple[Refusal, ...]
    choices: tuple[Choice, ...]
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """What observers see: the model before the first pass (index 0, no step) and after every pass."""

    index: int
    name: str
    model: ir.Model
    step: Step | None


Observer = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """The model (the same object, rewritten) and what each pass did."""

    model: ir.Model
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; prints and parses its spelling."""

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        """Store any sequence of passes as a tuple."""
        object.__setattr__(self, "passes", tuple(self.passes))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read `name{option=value,...},name,...`; the empty text is the empty pipeline.

        Raises:
            PipelineError: bad spelling, unknown pass or option; close names are offered.
        """
        passes = []
        for name, texts in split(text):
            passes.append(load_pass(name).from_options(texts))
        return cls(tuple(passes))

    def __str__(self) -> str:
        """The spelling of the pipeline, which `parse` reads."""
        return ",".join(map(str, self.passes))

    def on(self, costs: CostModel) -> Pipeline:
        """The same passes with these costs."""
        return Pipeline(tuple(pass_.on(costs) for pass_ in self.passes))

    def run(self, model: ir.Model, observers: Sequence[Observer] = ()) -> PipelineResult:
        """Run every pass on `model`, in place, and call every observer before the first pass and after pass_.

        Raises:
            PipelineError: a pass failed on this model; the message names it.
            GraphoptError: what a pass or an observer raised.
        """
        _notify(observers, Event(0, "input", model, None))
        steps: list[Step] = []
        for index, pass_ in enumerate(self.passes, 1):
            start = time.perf_counter()
            result = _run_pass(pass_, model)
            seconds = time.perf_counter() - start
            refusals = getattr(result, "refusals", ())
            choices = getattr(result, "choices", ())
            notes = getattr(result, "notes", ())
            steps.append(Step(index, pass_.name, str(pass_), result.modified, refusals, choices, seconds, notes))
            _notify(observers, Event(index, pass_.name, model, steps[-1]))
        return PipelineResult(model, tuple(steps))


def _run_pass(pass_: Pass, model: ir.Model) -> ir.passes.PassResult:
    try:
        return pass_(model)
    except GraphoptError:
        raise
    except Exception as error:
        raise PipelineError(
            f"pass {pass_} failed on this model ({type(error).__name__}: {error}); leave it out of --passes"
        ) from error


def _notify(observers: Sequence[Observer], event: Event) -> None:
    for observer in observers:
        observer(event)
