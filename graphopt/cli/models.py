"""`graphopt models`: the zoo."""

from __future__ import annotations

from graphopt.report.document import Report, Table
from graphopt.report.units import count

EXAMPLES = ("graphopt models", "graphopt compile zoo:mobilenetv2")


def command() -> Report:
    """List the models of the zoo; `zoo:NAME` stands wherever a command takes a model."""
    from graphopt import models
    from graphopt.models.sizes import SIZES

    rows, documents = [], []
    for name in models.names():
        info = models.describe(name)
        size = SIZES[name]
        shapes = ", ".join(f"{port.name}:{'x'.join(map(str, port.shape))}" for port in info.inputs)
        rows.append((name, info.title, info.source, count(size.parameters), count(size.flops), shapes))
        documents.append(
            {
                "name": name,
                "title": info.title,
                "source": info.source,
                "parameters": size.parameters,
                "flops": size.flops,
                "inputs": [{"name": i.name, "dtype": i.dtype, "shape": list(i.shape)} for i in info.inputs],
                "outputs": list(info.outputs),
            }
        )
    columns = ("name", "model", "source", "parameters", "FLOPs", "inputs")
    table = Table(columns, tuple(rows), right=("parameters", "FLOPs"))
    return Report(
        {"models": documents},
        [
            table,
            "FLOPs of one run; a multiply-add counts as two. What is built here also comes as NAME-bN with batch N.",
        ],
    )
