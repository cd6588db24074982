"""The contents of an artifact: tables and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.program import schedule
from graphopt.program.program import FallbackSegment, NativeSegment, Port, Stage
from graphopt.report import compilation, memory_plan
from graphopt.report.document import Block, Facts, Table
from graphopt.report.units import nbytes

if TYPE_CHECKING:
    from graphopt.artifact import Artifact


def document(artifact: Artifact) -> dict[str, Any]:
    """The artifact's contents as JSON values."""
    program = artifact.program
    manifest = {key: value for key, value in artifact.manifest.items() if key != "sha256"}
    return {
        **manifest,
        "inputs": [_port_document(port) for port in program.inputs],
        "outputs": [_port_document(port) for port in program.outputs],
        "micro_batches": program.micro_batches,
        "stages": [_stage_document(stage, artifact) for stage in program.stages],
        "grid": schedule.render(program.actions).splitlines(),
        "fallbacks": [{"node": node, "reason": reason} for node, reason in fallbacks(artifact)],
    }


def blocks(artifact: Artifact, full: str = "#", free: str = ".") -> list[Block]:
    """Tables and pictures; `full` and `free` are the characters of the memory plan."""
    program, manifest = artifact.program, artifact.manifest
    pairs = [
        ("target", compilation.target(artifact)),
        ("compiled by", f"graphopt {manifest.get('graphopt', '?')}"),
        ("pipeline", str(manifest.get("pipeline", "?"))),
        *(("input", _port(port)) for port in program.inputs),
        *(("output", _port(port)) for port in program.outputs),
        ("micro-batches", str(program.micro_batches)),
    ]
    parts: list[Block] = [Facts(tuple(pairs))]
    parts.append(_stages(artifact))
    chosen = [(str(choice["node"]), str(choice["algorithm"])) for choice in manifest.get("choices", [])]
    if chosen:
        table = compilation.grouped("Algorithms", chosen)
        parts.append(Table(("nodes", "algorithm", "which"), table.rows, table.title, table.right))
    if fallbacks(artifact):
        parts.append(compilation.grouped("Nodes that run in ONNX Runtime", fallbacks(artifact)))
    if len(program.stages) > 1:
        parts.append("Program, rank by step\n" + schedule.render(program.actions))
    parts += [memory_plan.text(memory_plan.plan(stage), full=full, free=free) for stage in program.stages]
    parts.append(_files(artifact))
    if manifest.get("notes"):
        parts.append("\n".join(f"note: {note}" for note in manifest["notes"]))
    return parts


def fallbacks(artifact: Artifact) -> list[tuple[str, str]]:
    """(node, reason) of every node that is not native."""
    segments = [segment for stage in artifact.program.stages for segment in stage.segments]
    return [pair for segment in segments if isinstance(segment, FallbackSegment) for pair in segment.reasons]


def _calls(stage: Stage) -> int:
    return sum(len(segment.calls) for segment in stage.segments if isinstance(segment, NativeSegment))


def _stages(artifact: Artifact) -> Table:
    rows = []
    for stage in artifact.program.stages:
        weights = len(artifact.files[stage.weights]) if stage.weights else 0
        bound = f"{stage.arena_bytes / stage.arena_lower_bound:.2f}x" if stage.arena_lower_bound else "1.00x"
        fallback = sum(isinstance(segment, FallbackSegment) for segment in stage.segments)
        rows.append(
            (
                str(stage.index),
                str(_calls(stage)),
                str(fallback),
                nbytes(stage.arena_bytes),
                nbytes(stage.arena_lower_bound),
                bound,
                nbytes(weights),
            )
        )
    columns = ("stage", "kernel calls", "fallback segments", "arena", "lower bound", "ratio", "weights")
    return Table(columns, tuple(rows), "Stages", columns)


def _files(artifact: Artifact) -> Table:
    rows = tuple(
        (name, nbytes(listed["bytes"]), str(listed["sha256"])[:16])
        for name, listed in artifact.manifest["files"].items()
    )
    return Table(("file", "size", "SHA-256"), rows, "Files", ("size",))


def _port(port: Port) -> str:
    shape = "any shape" if port.shape is None else "x".join(map(str, port.shape)) or "scalar"
    return f"{port.name}: {port.dtype}, {shape}"


def _port_document(port: Port) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": None if port.shape is None else list(port.shape)}


def _stage_document(stage: Stage, artifact: Artifact) -> dict[str, Any]:
    memory = memory_plan.plan(stage)
    return {
        "index": stage.index,
        "kernel_calls": _calls(stage),
        "arena": stage.arena_bytes,
        "lower_bound": stage.arena_lower_bound,
        "weights": len(artifact.files[stage.weights]) if stage.weights else 0,
        "steps": list(memory.steps),
        "plan": [
            {"value": r.name, "first": r.first, "last": r.last, "offset": r.offset, "bytes": r.size}
            for r in memory.rectangles
        ],
    }
