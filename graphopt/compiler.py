"""The composition root: the only module that sees the front end, the passes, the solvers and the targets together.

load -> pipeline -> native or fallback per node -> stages -> lower -> memory plan -> Program -> Artifact
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.artifact import Artifact
from graphopt.cost.model import CostModel
from graphopt.cost.source import MEASURED, VARIABLE, open_costs, record
from graphopt.distributed.partition import partition
from graphopt.errors import GraphoptError, UnsupportedError, VerificationError
from graphopt.graph import analysis, guards
from graphopt.lowering.defects import Defects
from graphopt.lowering.islands import islands
from graphopt.lowering.stage import BuiltStage, build_stage
from graphopt.pipeline import verification
from graphopt.pipeline.observe import Check, Dump, Verify
from graphopt.pipeline.pipeline import Observer, Pipeline, PipelineResult
from graphopt.precisions import FP32, tolerances
from graphopt.program import schedule
from graphopt.program.program import Place, Port, Program, Stage
from graphopt.runtime.devices.forked import on_living_thread

if TYPE_CHECKING:
    import onnx_ir as ir

    from graphopt.targets.common.base import Target

Progress = Callable[[str], None]

MAX_COUNT = 4096
"""Ranks and micro-batches: every rank's actions are written out one by one."""

CODE_SPACE = 64 << 20
"""Bytes of temporary files, besides the weights, that generating code may need."""

_NUMBERS = ("flush-denormals",)
"""Passes that change constants: what they did is told without being asked for."""

VERIFY = ("off", "passes", "ends", "each")


@dataclass(frozen=True, slots=True)
class Compilation:
    """An artifact, and how it came about.

    `notes` are sentences of the front end and the target; `fallbacks` pairs of (node, reason); `seconds` by phase;
    `accuracy`, where another precision was verified, the largest error of each output over its largest value: of the
    finished program where it was run, else of the rewritten graph in ONNX Runtime. `failure` is what verification
    found, where it was asked to keep the artifact all the same.
    """

    artifact: Artifact
    notes: tuple[str, ...]
    pipeline: PipelineResult
    fallbacks: tuple[tuple[str, str], ...]
    seconds: Mapping[str, float]
    accuracy: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""


def compile(source: Any, **options: Any) -> Artifact:
    """Compile a model; see `compile_model` for the options, which also tells how it went."""
    return compile_model(source, **options).artifact


@on_living_thread
def compile_model(
    source: Any,
    *,
    target: str = "llvm",
    level: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    example_inputs: Any = None,
    passes: str | Pipeline | None = None,
    precision: str = FP32,
    verify: str = "off",
    dump: Path | str | None = None,
    ranks: int = 1,
    micro_batches: int = 1,
    fallback: bool = True,
    costs: str | None = None,
    threads: int | None = None,
    cache: bool = True,
    keep_denormals: bool = False,
    seed: int = 0,
    inputs: Mapping[str, Any] | None = None,
    keep: bool = False,
    progress: Progress | None = None,
) -> Compilation:
    """Compile a model into an artifact.

    Args:
        source: a path, `zoo:NAME`, an onnx.ModelProto, an onnx_ir.Model, or a torch.nn.Module with `example_inputs`.
        target: a name in `graphopt.targets.TARGETS`.
        level: CPU level, GPU or its architecture to generate for; None takes this host's CPU, or an H100.
        shapes: static shapes of inputs that the model leaves open.
        passes: a pipeline or its spelling; None takes the default one for the target.
        precision: "fp32", or "fp16", "bf16" or "tf32" for products and what lies between them; the pass `precision`
            does that, behind `fuse`.
        verify: "off", "ends" (the finished program against the model as given, in ONNX Runtime), "passes" (what every
            pass made, in ONNX Runtime, which needs no device) or "each" (both).
        dump: a folder that receives the model after every pass.
        ranks: pipeline stages, one for each rank.
        micro_batches: how many times the compiled batch a run takes, piece by piece.
        fallback: whether nodes that are not native may run in ONNX Runtime.
        costs: what algorithms are chosen by: "measured" on this machine (times that an earlier compilation measured are
            in the user's cost table), "roofline" for estimates, or the path of an artifact, whose costs are taken, so
            that the same model becomes the same code. None takes the environment variable GRAPHOPT_COSTS, else
            "measured".
        threads: how many the kernels will run on; None means all processors of this process.
        cache: take kernels that were compiled before from the user's cache, and keep new ones there.
        keep_denormals: leave out the pass `flush-denormals`, which takes weights below 2^-126 as zero.
        inputs: arrays to verify with; those that are not given are random. They settle open dimensions too.
        keep: give the artifact also if verification fails, with what it found as `failure`.
        progress: is told the name of each phase as it begins.

    Raises:
        GraphoptError: one of its subclasses, in a sentence that names the place.
    """
    _check_options(verify, ranks, micro_batches)
    if precision == "bf16" and verify in ("passes", "each"):
        raise GraphoptError(
            f"--verify {verify} cannot follow --precision bf16, since ONNX Runtime computes no bfloat16 here; "
            "--verify ends compares the finished program with the model in fp32"
        )
    if inputs and verify == "off":
        raise GraphoptError("inputs are for verification: give --verify too, or leave them out")
    clock = _Clock(progress)
    from graphopt.frontend.expand import expand_functions

    each = verify in ("passes", "each")
    verifier = Verify(seed=seed, each=each, tolerances=tolerances(precision), given=inputs or {}, keep=keep)
    observers: list[Any] = [Check()]
    if verify != "off":
        observers.append(verifier)
    if dump is not None:
        observers.append(Dump(Path(dump)))
    again = functools.partial(
        rewrite,
        source,
        target=target,
        level=level,
        shapes={**verification.given_shapes(source, inputs or {}), **(shapes or {})},
        example_inputs=example_inputs,
        passes=passes,
        precision=precision,
        costs=costs,
        threads=threads,
        cache=cache,
        keep_denormals=keep_denormals,
    )
    artifact: Artifact | None = None
    model: ir.Model | None = None
    accuracy: Mapping[str, float] = {}
    try:
        rewritten = again(observers=observers, clock=clock)
        model, backend, ports = rewritten.model, rewritten.backend, rewritten.ports
        if verify in ("ends", "each"):
            _require_device(backend)
        if verify == "passes" and precision == "fp16":  # of the others ONNX Runtime does not compute what they round
            accuracy = verification.errors_of(model, verifier)
        expand_functions(model, backend.supports)
        defects = Defects(model, backend)
        while artifact is None:
            clock.start("lower")
            try:
                built, fallbacks = _stages(model, backend, ranks, fallback, defects.nodes)
                clock.start("build")
                with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
                    _require_space(Path(folder), built)
                    artifact = _artifact(built, ports, micro_batches, rewritten, Path(folder))
            except RuntimeError as error:  # of TVM, where no code can be generated; our own mistakes are of other kinds
                defects.learn(error)
        if verify in ("ends", "each"):
            clock.start("verify")
            found = verification.verify_program(artifact, verifier, model)
            accuracy = {} if precision == FP32 else found
    except VerificationError as error:
        clock.stop()
        place = verification.whose_fault(verifier, lambda trail: again(observers=[trail]), artifact, model)
        raise VerificationError(f"{error}{place}") from error
    clock.stop()
    failure = verifier.failure
    if failure:
        failure += verification.whose_fault(verifier, lambda trail: again(observers=[trail]), artifact, model)
    changed = tuple(note for step in rewritten.result.steps if step.name in _NUMBERS for note in step.notes)
    told = (note for stage in built for note in stage.notes)
    notes = (*rewritten.notes, *defects.notes, *changed, *told, *verifier.notes)
    if precision == "tf32" and not any("tf32" in plan.precision for stage in built for plan in stage.plans.values()):
        notes = (*notes, "tf32 is a permission that no kernel took: products are computed in fp32")
    return Compilation(artifact, notes, rewritten.result, fallbacks, clock.seconds, accuracy, failure)


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A loaded model after the pipeline, with what it was rewritten for and by."""

    model: ir.Model
    backend: Target
    pipeline: Pipeline
    result: PipelineResult
    costs: CostModel
    ports: tuple[tuple[Port, ...], tuple[Port, ...]]
    notes: tuple[str, ...]
    constants: tuple[str, ...]


def rewrite(
    source: Any,
    *,
    target: str = "llvm",
    level: str | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    example_inputs: Any = None,
    passes: str | Pipeline | None = None,
    precision: str = FP32,
    costs: str | None = None,
    threads: int | None = None,
    cache: bool = True,
    keep_denormals: bool = False,
    observers: Sequence[Observer] = (),
    clock: _Clock | None = None,
) -> Rewritten:
    """Load a model and run the pipeline; the options are those of `compile_model`."""
    clock = clock or _Clock(None)
    clock.start("load")
    from graphopt.frontend.load import load
    from graphopt.targets import load_target

    backend = load_target(target, level, threads, cache)
    loaded = load(source, shapes=shapes, example_inputs=example_inputs)
    for observer in observers:
        if isinstance(observer, Verify):
            observer.reference = loaded.original
    clock.start("passes")
    notes = list(loaded.notes)
    weighed = open_costs(costs or os.environ.get(VARIABLE) or MEASURED, backend, notes.append, clock.progress)
    pipeline = _pipeline(passes, target, precision, weighed, keep_denormals)
    result = pipeline.run(loaded.model, observers)
    ports = _ports(loaded.model)  # by now more of their shapes are known; their names stay
    return Rewritten(loaded.model, backend, pipeline, result, weighed, ports, tuple(notes), loaded.constants)


def _check_options(verify: str, ranks: int, micro_batches: int) -> None:
    if verify not in VERIFY:
        raise GraphoptError(f"--verify {verify} is unknown; choose one of {', '.join(VERIFY)}.")
    for flag, count in (("--ranks", ranks), ("--micro-batches", micro_batches)):
        if not 1 <= count <= MAX_COUNT:
            raise GraphoptError(f"{flag} must be from 1 to {MAX_COUNT}, not {count}.")


def _require_space(folder: Path, built: Sequence[BuiltStage]) -> None:
    """Refuse before the code generator runs out of disk, which ends the whole process."""
    needed = CODE_SPACE + sum(array.nbytes for stage in built for array in stage.constants.values())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise GraphoptError(
            f"the temporary folder {folder.parent} has {free >> 20} MiB free "
            f"and compiling needs about {needed >> 20} MiB; make room, or set TMPDIR to another folder"
        )


def _pipeline(
    passes: str | Pipeline | None, target: str, precision: str, costs: CostModel, keep_denormals: bool = False
) -> Pipeline:
    """The pipeline with the costs given to the passes that choose by them."""
    from graphopt.passes import DEFAULT, DEFAULTS

    spelled = DEFAULTS.get(target, DEFAULT) if passes is None else passes
    pipeline = spelled if isinstance(spelled, Pipeline) else Pipeline.parse(spelled)
    if precision != FP32:
        chosen = Pipeline.parse(f"precision{{to={precision}}}").passes
        names = [each.name for each in pipeline.passes]
        place = names.index("fuse") + 1 if "fuse" in names else 0
        pipeline = Pipeline((*pipeline.passes[:place], *chosen, *pipeline.passes[place:]))
    if keep_denormals:
        pipeline = Pipeline(tuple(each for each in pipeline.passes if each.name != "flush-denormals"))
    return pipeline.on(costs)


def _ports(model: ir.Model) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """Inputs and outputs of the program, named as the user's model names them."""
    return tuple(map(_port, model.graph.inputs)), tuple(map(_port, model.graph.outputs))


def _port(value: ir.Value) -> Port:
    found = analysis.static_type(value)
    if found is not None:
        return Port(str(value.name), *found)
    dtype = str(value.dtype.name).lower() if value.dtype is not None else "object"
    return Port(str(value.name), dtype, None)


def _stages(
    model: ir.Model, backend: Target, ranks: int, fallback: bool, defects: Mapping[ir.Node, str]
) -> tuple[list[BuiltStage], tuple[tuple[str, str], ...]]:
    chosen = guards.selects(model.graph) if backend.skips else {}
    if chosen:
        guards.remove_dead(model.graph)
    nodes = list(model.graph)
    opsets = model.opset_imports
    reasons = {node: defects.get(node) or backend.supports(node, opsets) for node in nodes}
    whole = {node for node, select in chosen.items() if not select.guard}
    refusals = {node: reason for node, reason in reasons.items() if reason is not None and node not in whole}
    fallbacks = tuple((f"{node.name} ({node.op_type})", reason) for node, reason in refusals.items())
    if refusals and not fallback:
        listed = "; ".join(f"{name}: {reason}" for name, reason in fallbacks)
        raise UnsupportedError(
            f"{len(refusals)} of {len(nodes)} nodes have no native form, and --no-fallback forbids ONNX Runtime: "
            f"{listed}."
        )
    left = islands(nodes, refusals, backend.machine, chosen)
    refusals |= left
    fallbacks += tuple((f"{node.name} ({node.op_type})", reason) for node, reason in left.items())
    guarded = guards.guards(model.graph) if chosen else {}
    parts = partition(model, ranks, backend.machine, guarded)
    stages = [build_stage(index, model, part, refusals, backend, chosen) for index, part in enumerate(parts)]
    return stages, fallbacks


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


def _artifact(
    built: Sequence[BuiltStage],
    ports: tuple[tuple[Port, ...], tuple[Port, ...]],
    micro_batches: int,
    rewritten: Rewritten,
    folder: Path,
) -> Artifact:
    stages: tuple[Stage, ...] = tuple(stage.stage for stage in built)
    files: dict[str, bytes | Path] = {}
    for stage in built:
        files.update(stage.write(folder, rewritten.backend))
    inputs, outputs = ports[0], _outputs(ports[1], stages)
    actions = schedule.build(stages, [port.name for port in inputs], micro_batches)
    program = Program(stages, actions, inputs, outputs, micro_batches)
    manifest = {
        "target": rewritten.backend.describe(),
        "versions": {name: importlib.metadata.version(name) for name in ("apache-tvm", "onnx", "onnxruntime")},
        "pipeline": str(rewritten.pipeline),
        "choices": [
            {"node": choice.node, "algorithm": choice.algorithm, "tile": choice.tile}
            for step in rewritten.result.steps
            for choice in step.choices
        ],
        "kernels": {symbol: asdict(plan) for stage in built for symbol, plan in sorted(stage.plans.items())},
        "costs": record(rewritten.costs),
        "notes": list(rewritten.notes),
        "constants": list(rewritten.constants),
    }
    return Artifact.create(program, files, manifest)


def _outputs(ports: Sequence[Port], stages: Sequence[Stage]) -> tuple[Port, ...]:
    """The outputs of the program; of one on the host only the run tells the shape."""
    host = {value.name for stage in stages for value in stage.values if value.place is Place.HOST}
    return tuple(Port(port.name, port.dtype, None) if port.name in host else port for port in ports)


def _require_device(backend: Target) -> None:
    """Refuse before the work what cannot be run after it."""
    from graphopt.runtime.devices import device, opening

    described = {"target": backend.describe()}
    if device.needs_device(described):
        try:
            opening.open_device(described)
        except GraphoptError as error:
            raise GraphoptError(f"--verify runs what was compiled: {error}") from error
