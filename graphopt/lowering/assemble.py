"""Lower a rewritten model to stages, and assemble built stages into the artifact."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.artifact import Artifact
from graphopt.cost.model import CostModel
from graphopt.distributed.partition import partition
from graphopt.errors import GraphoptError, UnsupportedError
from graphopt.graph import analysis, guards, state
from graphopt.lowering.islands import islands
from graphopt.lowering.stage import BuiltStage, build_stage
from graphopt.lowering.target import Target
from graphopt.options import Options
from graphopt.program import schedule
from graphopt.program.program import Place, Port, Program, Stage

Ports = tuple[tuple[Port, ...], tuple[Port, ...]]
"""Inputs and outputs of a program."""

CODE_SPACE = 64 << 20
"""Bytes of temporary files, besides the weights, that generating code may need."""


def ports_of(model: ir.Model) -> Ports:
    """Inputs and outputs of the program, named as the user's model names them; what replaces state is no output."""
    replaced = {state.next_value(value, model.graph) for value in state.states(model.graph)}
    outputs = [value for value in model.graph.outputs if value not in replaced]
    return tuple(map(_port, model.graph.inputs)), tuple(map(_port, outputs))


def _port(value: ir.Value) -> Port:
    tensor_type = analysis.static_type(value)
    if tensor_type is not None:
        return Port(str(value.name), *tensor_type)
    dtype = str(value.dtype.name).lower() if value.dtype is not None else "object"
    return Port(str(value.name), dtype, None)


def build_stages(
    model: ir.Model, target: Target, costs: CostModel, options: Options, defects: Mapping[ir.Node, str]
) -> tuple[list[BuiltStage], tuple[tuple[str, str], ...]]:
    """Build the stages of a rewritten model; returns them, and the name and reason of each fallback node.

    Args:
        defects: nodes for which no code can be generated, with the reason.

    Raises:
        UnsupportedError: a node has no native form, and the options forbid a fallback; or a model with state is to run
            on several ranks, or in micro-batches of the program's.
    """
    _refuse_parts_of_state(model, options)
    chosen = guards.selects(model.graph) if target.skips else {}
    if chosen:
        guards.remove_dead(model.graph)
    nodes = list(model.graph)
    opsets = model.opset_imports
    reasons = {node: defects.get(node) or target.supports(node, opsets) for node in nodes}
    native_selects = {node for node, select in chosen.items() if not select.guard}
    refusals = {node: reason for node, reason in reasons.items() if reason is not None and node not in native_selects}
    fallbacks = tuple((f"{node.name} ({node.op_type})", reason) for node, reason in refusals.items())
    if refusals and not options.fallback:
        listed = "; ".join(f"{name}: {reason}" for name, reason in fallbacks)
        raise UnsupportedError(
            f"{len(refusals)} of {len(nodes)} nodes have no native form, and --no-fallback forbids ONNX Runtime: "
            f"{listed}."
        )
    left = islands(nodes, refusals, target.machine, chosen)
    refusals |= left
    fallbacks += tuple((f"{node.name} ({node.op_type})", reason) for node, reason in left.items())
    guarded = guards.guards(model.graph) if chosen else {}
    parts = partition(model, options.ranks, costs, guarded)
    stages = [build_stage(index, model, part, refusals, target, chosen) for index, part in enumerate(parts)]
    return stages, fallbacks


def _refuse_parts_of_state(model: ir.Model, options: Options) -> None:
    """A state value has one owner and one successor in a run; stages and micro-batches would give it several."""
    first = next(state.states(model.graph), None)
    if first is None:
        return
    for flag, count, instead in (
        ("--ranks", options.ranks, "compile it for one rank"),
        ("--micro-batches", options.micro_batches, "the pass microbatch adds gradients up instead"),
    ):
        if count > 1:
            raise UnsupportedError(
                f"{flag} {count} would divide a run that replaces the state {first.name}; {instead}."
            )


def make_artifact(
    built: Sequence[BuiltStage],
    ports: Ports,
    micro_batches: int,
    target: Target,
    record: Mapping[str, Any],
    folder: Path,
) -> Artifact:
    """Assemble the artifact from built stages.

    Args:
        record: what the manifest records about the compilation.
        folder: temporary folder for large files.
    """
    stages: tuple[Stage, ...] = tuple(stage.stage for stage in built)
    files: dict[str, bytes | Path] = {}
    for stage in built:
        files.update(stage.write(folder, target))
    inputs, outputs = ports[0], _outputs(ports[1], stages)
    actions = schedule.build(stages, [port.name for port in inputs], micro_batches)
    program = Program(stages, actions, inputs, outputs, micro_batches)
    manifest = {
        "target": target.describe(),
        "versions": {name: importlib.metadata.version(name) for name in ("apache-tvm", "onnx", "onnxruntime")},
        "kernels": {symbol: asdict(plan) for stage in built for symbol, plan in sorted(stage.plans.items())},
        **record,
    }
    return Artifact.create(program, files, manifest)


def _outputs(ports: Sequence[Port], stages: Sequence[Stage]) -> tuple[Port, ...]:
    """Output ports of the program; the shape of an output on the host is known only at run time."""
    host = {value.name for stage in stages for value in stage.values if value.place is Place.HOST}
    return tuple(Port(port.name, port.dtype, None) if port.name in host else port for port in ports)


def require_space(folder: Path, built: Sequence[BuiltStage]) -> None:
    """Refuse before the code generator runs out of disk, which ends the whole process."""
    needed = CODE_SPACE + sum(array.nbytes for stage in built for array in stage.constants.values())
    if (free := shutil.disk_usage(folder).free) < needed:
        raise GraphoptError(
            f"the temporary folder {folder.parent} has {free >> 20} MiB free "
            f"and compiling needs about {needed >> 20} MiB; make room, or set TMPDIR to another folder"
        )
