"""`graphopt passes`: the passes and options of a pipeline."""

from __future__ import annotations

from graphopt.report.document import Block, Report, Table

EXAMPLES = ("graphopt passes", "graphopt compile model.onnx --passes 'normalize,fuse,select-conv{max-error=1e-7}'")


def command() -> Report:
    """List the passes, their options, and the pipelines that `graphopt compile` uses by default."""
    from graphopt.passes import DEFAULT, DEFAULTS, PASSES
    from graphopt.pipeline.spelling import load_pass

    classes = {name: load_pass(name) for name in PASSES}
    heads = {name: (loaded.__doc__ or "").strip().splitlines()[0] for name, loaded in classes.items()}
    document = {
        "default": DEFAULT,
        "defaults": dict(DEFAULTS),
        "passes": [
            {
                "name": name,
                "summary": heads[name],
                "options": [
                    {"name": option.name, "kind": option.kind, "default": option.default, "help": option.help}
                    for option in loaded.options()
                ],
            }
            for name, loaded in classes.items()
        ],
    }
    blocks: list[Block] = [Table(("pass", "what it does"), tuple(heads.items()))]
    rows = tuple(
        (name, option.name, option.kind, option.default, option.help)
        for name, loaded in classes.items()
        for option in loaded.options()
    )
    blocks.append(Table(("pass", "option", "kind", "default", "meaning"), rows, "Options"))
    blocks.append(f"Default pipeline: {DEFAULT}")
    blocks += [f"Default pipeline for {target}: {pipeline}" for target, pipeline in DEFAULTS.items()]
    return Report(document, blocks)
