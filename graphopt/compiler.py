"""The composition root: the only module that sees the front end, the passes, the solvers and the targets together.

load -> pipeline -> native or fallback per node -> stages -> lower -> memory plan -> Program -> Artifact
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.artifact import Artifact
from graphopt.cost.model import CostModel
from graphopt.cost.source import MEASURED, VARIABLE, open_costs, record
from graphopt.errors import CodegenError, GraphoptError, VerificationError
from graphopt.lowering import assemble
from graphopt.lowering.defects import Defects
from graphopt.lowering.memory.fit import fit
from graphopt.lowering.memory.replan import BudgetError
from graphopt.modes import Precision, VerifyMode
from graphopt.options import Options
from graphopt.pipeline import verification
from graphopt.pipeline.observe import Check, Dump, Verify
from graphopt.pipeline.pass_base import ByteSize
from graphopt.pipeline.pipeline import Observer, Pipeline, PipelineResult
from graphopt.runtime.devices.forked import on_living_thread
from graphopt.verify.precisions import tolerances

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.lowering.target import Target

Progress = Callable[[str], None]

_NUMBERS = ("flush-denormals", "prune")
"""Passes that change constants: their notes are always reported."""


@dataclass(frozen=True, slots=True)
class Compilation:
    """An artifact, and the record of its compilation.

    `notes` are sentences of the front end and the target; `fallbacks` pairs of (node, reason); `seconds` by phase;
    `accuracy`, where reduced precision was verified, the largest error of each output over its largest value: of the
    finished program if it was run, else of the rewritten graph in ONNX Runtime. `failure` is the finding of a failed
    verification, with the option `keep`.
    """

    artifact: Artifact
    notes: tuple[str, ...]
    pipeline: PipelineResult
    fallbacks: tuple[tuple[str, str], ...]
    seconds: Mapping[str, float]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


def compile(source: Any, options: Options | None = None, **named: Any) -> Artifact:
    """Compile a model into an artifact; `compile_model` also returns the record of the compilation."""
    return compile_model(source, options, **named).artifact


@on_living_thread
def compile_model(
    source: Any, options: Options | None = None, *, progress: Progress | None = None, **named: Any
) -> Compilation:
    """Compile a model into an artifact.

    Args:
        source: a path, `zoo:NAME`, an onnx.ModelProto, an onnx_ir.Model, or a torch.nn.Module with `example_inputs`.
        options: options of the compilation; None takes the defaults.
        progress: called with the name of each phase as it begins.
        named: fields of `Options` (`target="cuda"`, `verify="ends"`), instead of those of `options`.

    Raises:
        GraphoptError: one of its subclasses, with one sentence that names the place of the error.
        TypeError: `named` has an unknown option.
    """
    asked = replace(options or Options(), **named)
    try:
        return _compile(source, asked, progress)
    except BudgetError as error:
        least = error
        for narrower in _narrower(asked):  # the workspace of a convolution may be what does not fit
            try:
                return _compile(source, narrower, progress)
            except BudgetError as other:
                least = min(least, other, key=lambda each: each.least)
        raise least from None


def _narrower(asked: Options) -> Iterator[Options]:
    """The same options with less workspace for a convolution: an eighth of the budget, a sixty-fourth, none."""
    from graphopt.passes import SelectConv

    assert asked.memory_budget is not None
    pipeline = _spelled(asked)
    for limit in (asked.memory_budget // 8, asked.memory_budget // 64, 0):
        steps = [
            replace(step, max_workspace=ByteSize(limit)) if isinstance(step, SelectConv) else step
            for step in pipeline.passes
        ]
        yield replace(asked, passes=Pipeline(tuple(steps)))


def _compile(source: Any, asked: Options, progress: Progress | None) -> Compilation:
    if asked.inputs:
        shapes = {**verification.given_shapes(source, asked.inputs), **(asked.shapes or {})}
        asked = replace(asked, shapes=shapes)
    mode, clock = VerifyMode(asked.verify), _Clock(progress)
    from graphopt.frontend.expand import expand_functions

    verifier = Verify(
        seed=asked.seed,
        each=mode.steps,
        tolerances=tolerances(asked.precision),
        given=asked.inputs or {},
        keep=asked.keep,
    )
    observers: list[Any] = [Check()]
    if mode is not VerifyMode.OFF:
        observers.append(verifier)
    if asked.dump is not None:
        observers.append(Dump(Path(asked.dump)))
    again = functools.partial(rewrite, source, asked)
    artifact: Artifact | None = None
    model: ir.Model | None = None
    accuracy: Mapping[str, float] = {}
    try:
        rewritten = again(observers=observers, clock=clock)
        model, target = rewritten.model, rewritten.target
        if mode.program:
            _require_device(target)
        if mode is VerifyMode.PASSES and asked.precision == Precision.FP16:
            accuracy = verification.errors_of(model, verifier)  # ONNX Runtime does not round as the other precisions do
        expand_functions(model, target.supports)
        defects = Defects(model, target)
        while artifact is None:
            clock.start("lower")
            try:
                built, fallbacks = assemble.build_stages(model, target, rewritten.costs, asked, defects.nodes)
                clock.start("build")
                with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
                    assemble.require_space(Path(folder), built)
                    artifact = assemble.make_artifact(
                        built, rewritten.ports, asked.micro_batches, target, rewritten.record(), Path(folder)
                    )
            except CodegenError as error:
                defects.learn(error)
        if asked.memory_budget is not None or any(stage.states for stage in artifact.program.stages):
            clock.start("plan")
            measured = _costs_source(asked) == MEASURED and target.cannot_measure() is None
            artifact, _ = fit(artifact, asked.memory_budget, asked.threads, measured, clock.progress or _silent)
        if mode.program:
            clock.start("verify")
            errors = verification.verify_program(artifact, verifier, model)
            accuracy = {} if asked.precision == Precision.FP32 else errors
    except VerificationError as error:
        clock.stop()
        place = verification.whose_fault(verifier, lambda trail: again(observers=[trail]), artifact, model)
        raise VerificationError(f"{error}{place}") from error
    clock.stop()
    failure = verifier.failure
    if failure:
        failure += verification.whose_fault(verifier, lambda trail: again(observers=[trail]), artifact, model)
    changed = tuple(note for step in rewritten.result.steps if step.name in _NUMBERS for note in step.notes)
    lowered = (note for stage in built for note in stage.notes)
    notes = (*rewritten.notes, *defects.notes, *changed, *lowered, *verifier.notes)
    plans = [plan for stage in built for plan in stage.plans.values()]
    if asked.precision == Precision.TF32 and not any("tf32" in plan.precision for plan in plans):
        notes = (*notes, "tf32 is a permission that no kernel took: products are computed in fp32")
    return Compilation(artifact, notes, rewritten.result, fallbacks, clock.seconds, accuracy, failure)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A loaded model after the pipeline, with its target, its pipeline and the results of the passes."""

    model: ir.Model
    target: Target
    pipeline: Pipeline
    result: PipelineResult
    costs: CostModel
    ports: assemble.Ports
    notes: tuple[str, ...]
    constants: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """The manifest entries of the pipeline, as JSON values."""
        return {
            "pipeline": str(self.pipeline),
            "choices": [
                {"node": choice.node, "algorithm": choice.algorithm, "tile": choice.tile}
                for step in self.result.steps
                for choice in step.choices
            ],
            "costs": record(self.costs),
            "notes": list(self.notes),
            "constants": list(self.constants),
        }


def rewrite(
    source: Any, options: Options, *, observers: Sequence[Observer] = (), clock: _Clock | None = None
) -> Rewritten:
    """Load a model and run the pipeline on it."""
    clock = clock or _Clock(None)
    clock.start("load")
    from graphopt.frontend.load import load
    from graphopt.targets import load_target

    target = load_target(options.target, options.level, options.threads, options.cache)
    loaded = load(source, shapes=options.shapes, example_inputs=options.example_inputs)
    for observer in observers:
        if isinstance(observer, Verify):
            observer.reference = loaded.original
    clock.start("passes")
    notes = list(loaded.notes)
    costs = open_costs(_costs_source(options), target, notes.append, clock.progress)
    pipeline = _pipeline(options, costs)
    result = pipeline.run(loaded.model, observers)
    # after the passes more shapes of inputs and outputs are known; their names are unchanged
    ports = assemble.ports_of(loaded.model)
    return Rewritten(loaded.model, target, pipeline, result, costs, ports, tuple(notes), loaded.constants)


def _spelled(options: Options) -> Pipeline:
    from graphopt.passes import DEFAULT, DEFAULTS

    spelled = DEFAULTS.get(options.target, DEFAULT) if options.passes is None else options.passes
    return spelled if isinstance(spelled, Pipeline) else Pipeline.parse(spelled)


def _costs_source(options: Options) -> str:
    return options.costs or os.environ.get(VARIABLE) or MEASURED


def _silent(_: str) -> None:
    """No progress is shown."""


def _pipeline(options: Options, costs: CostModel) -> Pipeline:
    """The pipeline of `options`, with the cost model given to the passes that choose by it."""
    pipeline = _spelled(options)
    if options.lossy_energy is not None:
        names = [step.name for step in pipeline.passes]
        if "cluster-sparse" not in names:
            raise GraphoptError("--lossy-energy needs cluster-sparse in --passes; add it, or leave out --lossy-energy.")
        place = names.index("cluster-sparse")
        dropping = Pipeline.parse(f"drop-blocks{{energy={options.lossy_energy!r}}}").passes
        pipeline = Pipeline((*pipeline.passes[:place], *dropping, *pipeline.passes[place:]))
    if options.precision != Precision.FP32:
        chosen = Pipeline.parse(f"precision{{to={options.precision}}}").passes
        names = [step.name for step in pipeline.passes]
        place = names.index("fuse") + 1 if "fuse" in names else 0
        pipeline = Pipeline((*pipeline.passes[:place], *chosen, *pipeline.passes[place:]))
    if options.keep_denormals:
        pipeline = Pipeline(tuple(step for step in pipeline.passes if step.name != "flush-denormals"))
    return pipeline.on(costs)


class _Clock:
    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self.progress, self._phase, self._since = progress, "", 0.0

    def start(self, phase: str) -> None:
        self.stop()
        self._phase, self._since = phase, time.perf_counter()
        if self.progress is not None:
            self.progress(phase)

    def stop(self) -> None:
        if self._phase:
            self.seconds[self._phase] = time.perf_counter() - self._since


def _require_device(target: Target) -> None:
    """Open the device before compiling, so that a missing one fails early."""
    from graphopt.runtime.devices import device, opening

    described = {"target": target.describe()}
    if device.needs_device(described):
        try:
            opening.open_device(described)
        except GraphoptError as error:
            raise GraphoptError(f"--verify runs what was compiled: {error}") from error
