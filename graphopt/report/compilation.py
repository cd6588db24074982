"""The report of a compilation: a summary, and the reasons of every choice and refusal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphopt.pipeline.explain import Row, explain
from graphopt.report import kernels
from graphopt.report.document import Block, Facts, Table
from graphopt.report.units import nbytes, seconds

if TYPE_CHECKING:
    from graphopt.artifact import Artifact
    from graphopt.compiler import Compilation
    from graphopt.pipeline.pass_base import Choice

SHOWN_NODES = 4
"""Nodes named per reason; further ones are only counted."""


def document(compilation: Compilation, file: Path | None) -> dict[str, Any]:
    """The compilation as JSON values."""
    artifact, steps = compilation.artifact, compilation.pipeline.steps
    return {
        "file": None if file is None else str(file),
        "bytes": sum(len(data) for data in artifact.files.values()) if file is None else _size(file),
        "target": dict(artifact.manifest["target"]),
        "pipeline": artifact.manifest["pipeline"],
        "nodes": {
            "native": _nodes(compilation) - len(compilation.fallbacks),
            "fallback": len(compilation.fallbacks),
        },
        "fallbacks": [{"node": node, "reason": reason} for node, reason in compilation.fallbacks],
        "algorithms": dict(algorithms(artifact)),
        "stages": len(artifact.program.stages),
        "memory": memory(artifact),
        "seconds": dict(compilation.seconds),
        "accuracy": dict(compilation.accuracy),
        "failure": compilation.failure,
        "notes": list(compilation.notes),
        "selection": [note for step in steps for note in step.notes],
        "choices": [_choice_document(choice) for step in steps for choice in step.choices],
        "kernels": kernels.rows(artifact, compilation.pipeline.model),
        "refusals": [
            {"pass": step.name, "node": refusal.node, "reason": refusal.reason}
            for step in steps
            for refusal in step.refusals
        ],
    }


def _size(file: Path) -> int:
    return sum(each.stat().st_size for each in (file.rglob("*") if file.is_dir() else (file,)) if each.is_file())


def summary(compilation: Compilation, source: str, file: Path | None, verified: str) -> list[Block]:
    """One line per fact; the reasons of fallback nodes, grouped; the notes."""
    artifact = compilation.artifact
    native = _nodes(compilation) - len(compilation.fallbacks)
    used = memory(artifact)
    pairs = [
        ("target", target(artifact)),
        ("nodes", f"{native} native, {len(compilation.fallbacks)} in ONNX Runtime"),
        ("algorithms", ", ".join(f"{number} {name}" for name, number in algorithms(artifact).items()) or "none chosen"),
        ("stages", str(len(artifact.program.stages))),
        ("arena", f"{nbytes(used['arena'])}, {ratio(used)} its lower bound"),
        ("weights", nbytes(used["weights"])),
        ("verified", verified),
        *([("accuracy", _accuracy(compilation.accuracy))] if compilation.accuracy else []),
        ("took", ", ".join(f"{phase} {seconds(taken)}" for phase, taken in compilation.seconds.items())),
    ]
    if file is not None:
        size = sum(len(data) for data in artifact.files.values())
        pairs.append(("written", f"{file} ({nbytes(size)})"))
    blocks: list[Block] = [Facts(tuple(pairs), source)]
    if compilation.fallbacks:
        blocks.append(grouped("Nodes that run in ONNX Runtime", compilation.fallbacks))
    if compilation.notes:
        blocks.append("\n".join(f"note: {note}" for note in compilation.notes))
    return blocks


def dropped(compilation: Compilation) -> list[Block]:
    """What the pass drop-blocks did to the weights, layer by layer."""
    lines = [note for step in compilation.pipeline.steps if step.name == "drop-blocks" for note in step.notes]
    return ["\n".join(lines) if lines else "No weights were dropped: --explain says why."]


def explanation(compilation: Compilation) -> list[Block]:
    """Every choice with its estimated cost and the best alternative's, and every refusal."""
    rows = explain(compilation.pipeline)
    chosen = tuple(_chosen(row) for row in rows if row.seconds is not None)
    refused = tuple((row.step, row.node, row.reason) for row in rows if row.seconds is None)
    blocks: list[Block] = []
    if chosen:
        columns = ("pass", "node", "chosen", "tile", "cost", "from", "instead of", "at", "because")
        blocks.append(Table(columns, chosen, "Choices", ("cost", "at")))
    if (table := kernels.table(compilation.artifact, compilation.pipeline.model)) is not None:
        blocks.append(table)
    blocks += [f"{step.name}: {note}" for step in compilation.pipeline.steps for note in step.notes]
    if refused:
        blocks.append(Table(("pass", "node", "reason"), refused, "Left alone"))
    return blocks or ["No pass had anything to choose or to refuse."]


def grouped(title: str, reasons: Iterable[tuple[str, str]]) -> Table:
    """One row per reason with its number of nodes, the most frequent first."""
    nodes: dict[str, list[str]] = {}
    for node, reason in reasons:
        nodes.setdefault(reason, []).append(node)
    rows = []
    for reason, names in sorted(nodes.items(), key=lambda item: -len(item[1])):
        more = f", ... ({len(names) - SHOWN_NODES} more)" if len(names) > SHOWN_NODES else ""
        rows.append((str(len(names)), reason, ", ".join(names[:SHOWN_NODES]) + more))
    return Table(("nodes", "reason", "which"), tuple(rows), title, ("nodes",))


def target(artifact: Artifact) -> str:
    """`llvm, x86_64, avx512`, or `cuda, sm_90, h100`."""
    described = artifact.manifest.get("target")
    if not isinstance(described, Mapping):
        return "unknown"
    return ", ".join(str(described[key]) for key in ("name", "arch", "level", "gpu", "device") if key in described)


def algorithms(artifact: Artifact) -> Counter[str]:
    """How often each algorithm was chosen, the most frequent first."""
    choices = artifact.manifest.get("choices", [])
    return Counter(dict(Counter(str(choice["algorithm"]) for choice in choices).most_common()))


def memory(artifact: Artifact) -> dict[str, int]:
    """Bytes of the arenas, of their lower bounds and of the weights, over all stages."""
    stages = artifact.program.stages
    return {
        "arena": sum(stage.arena_bytes for stage in stages),
        "lower_bound": sum(stage.arena_lower_bound for stage in stages),
        "weights": sum(len(artifact.files[stage.weights]) for stage in stages if stage.weights),
    }


def ratio(used: Mapping[str, int]) -> str:
    """`1.00x`: arena over lower bound."""
    return f"{used['arena'] / used['lower_bound']:.2f}x" if used["lower_bound"] else "1.00x"


def _accuracy(errors: Mapping[str, float]) -> str:
    """The errors of the outputs, the largest first."""
    worst = sorted(errors.items(), key=lambda item: -item[1])[:SHOWN_NODES]
    return ", ".join(f"{name} {error:.1e}" for name, error in worst) + " off fp32, of the largest value"


def _nodes(compilation: Compilation) -> int:
    return len(compilation.pipeline.model.graph)


def _choice_document(choice: Choice) -> dict[str, Any]:
    return {
        "node": choice.node,
        "algorithm": choice.algorithm,
        "tile": choice.tile,
        "seconds": choice.seconds,
        "measured": choice.measured,
        "alternatives": [
            {"algorithm": other.algorithm, "seconds": other.seconds, "reason": other.reason}
            for other in choice.alternatives
        ],
    }


def _chosen(row: Row) -> tuple[str, ...]:
    taken = "-" if row.seconds is None else seconds(row.seconds)
    source = "measured" if row.measured else "estimate"
    first = (row.step, row.node, row.decision, row.tile or "-", taken, source)
    if row.other_seconds is None:
        return *first, "-", "-", "nothing else is possible"
    return *first, row.other, seconds(row.other_seconds), row.reason
