"""`graphopt passes`: the passes and options of a pipeline; `graphopt passes NAME`: one of them."""

from __future__ import annotations

import inspect
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.report.document import Block, Report, Table

if TYPE_CHECKING:
    from graphopt.pipeline.pass_base import Pass

EXAMPLES = (
    "graphopt passes",
    "graphopt passes differentiate",
    "graphopt compile model.onnx --passes 'normalize,fuse,select-conv{max-error=1e-7}'",
)


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A pass, to show in full.", show_default=False)] = "",
) -> Report:
    """List the passes, their options, and the pipelines that `graphopt compile` uses by default; or show one pass."""
    from graphopt.passes import DEFAULT, DEFAULTS, PASSES
    from graphopt.pipeline.spelling import load_pass

    if name:
        return _one(name, load_pass(name))
    classes = {name: load_pass(name) for name in PASSES}
    document = {
        "default": DEFAULT,
        "defaults": dict(DEFAULTS),
        "passes": [_document(name, loaded) for name, loaded in classes.items()],
    }
    heads = tuple((name, _head(loaded)) for name, loaded in classes.items())
    blocks: list[Block] = [Table(("pass", "what it does"), heads)]
    blocks.append(_options(classes))
    blocks.append(f"Default pipeline: {DEFAULT}")
    blocks += [f"Default pipeline for {target}: {pipeline}" for target, pipeline in DEFAULTS.items()]
    return Report(document, blocks)


def _one(name: str, loaded: type[Pass]) -> Report:
    document = {**_document(name, loaded), "description": inspect.getdoc(loaded)}
    blocks: list[Block] = [inspect.getdoc(loaded) or ""]
    if loaded.options():
        blocks.append(_options({name: loaded}))
    if name == "differentiate":
        coverage, tables = _coverage()
        document |= coverage
        blocks += tables
    return Report(document, blocks)


def _coverage() -> tuple[dict[str, Any], list[Block]]:
    """The operators that have a gradient, and those whose gradient is zero."""
    from graphopt.passes.training.gradients.table import RULES, ZERO

    entries = [
        {
            "operator": operator,
            "rule": f"{entry.rule.__module__.rpartition('.')[2]}",
            "keeps": entry.keeps,
            "limits": entry.limits,
        }
        for operator, entry in sorted(RULES.items())
    ]
    rows = tuple(tuple(entry.values()) for entry in entries)
    table = Table(("operator", "rule", "keeps", "limits"), rows, f"Operators with a gradient: {len(rows)}")
    zero = textwrap.fill(", ".join(ZERO), 110)
    title = "Operators whose result does not change with small changes of their operands, so that nothing flows back"
    return {"operators": entries, "zero": list(ZERO)}, [table, f"{title}\n{zero}"]


def _head(loaded: type[Pass]) -> str:
    return (loaded.__doc__ or "").strip().splitlines()[0]


def _document(name: str, loaded: type[Pass]) -> dict[str, Any]:
    return {
        "name": name,
        "summary": _head(loaded),
        "options": [
            {"name": option.name, "kind": option.kind, "default": option.default, "help": option.help}
            for option in loaded.options()
        ],
    }


def _options(classes: dict[str, type[Pass]]) -> Table:
    rows = tuple(
        (name, option.name, option.kind, option.default, option.help)
        for name, loaded in classes.items()
        for option in loaded.options()
    )
    return Table(("pass", "option", "kind", "default", "meaning"), rows, "Options")
