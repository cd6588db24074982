"""What compressing a model saved, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from graphopt.report.document import Block, Table
from graphopt.report.units import nbytes
from graphopt.report.weights.published import Published, published
from graphopt.storage.model import Compressed, Layer


def document(compressed: Compressed) -> Mapping[str, Any]:
    """The sizes as JSON values."""
    paper = published(compressed.layers)
    return {
        "original_bytes": compressed.original,
        "file_bytes": compressed.file,
        "ratio": compressed.original / compressed.file,
        "layers": [
            {**asdict(layer), "ratio": _times(layer), "published": _left(paper, at)}
            for at, layer in enumerate(compressed.layers)
        ],
        "other_tensors": dict(zip(("original_bytes", "bytes"), compressed.others, strict=True)),
        "graph": dict(zip(("original_bytes", "bytes"), compressed.graph, strict=True)),
        "published": None if paper is None else {"network": paper.name, "ratio": paper.times},
    }


def blocks(compressed: Compressed) -> list[Block]:
    """The table, and what its columns mean."""
    paper = published(compressed.layers)
    lossy = any(layer.error is not None for layer in compressed.layers)
    sizes = ("bytes", "no zeros", "codebook", "Huffman", "ratio")
    errors = ("max error", "RMS error") if lossy else ()
    paper_columns = () if paper is None else ("published",)
    rows = [_row(layer, at, lossy, paper) for at, layer in enumerate(compressed.layers)]
    pad = ("",) * (len(errors))
    for name, (before, after) in (("other tensors", compressed.others), ("graph", compressed.graph)):
        if before or after:
            ratio = f"{before / after:.1f}x" if after else "-"
            rows.append((name, "", "", "", nbytes(before), "", "", nbytes(after), ratio, *pad, *_blank(paper)))
    total = f"{compressed.original / compressed.file:.1f}x"
    last = () if paper is None else (f"{paper.times}x",)
    rest = compressed.others[0] + compressed.graph[1]
    pruned, shared = (
        nbytes(rest + sum(getattr(layer.stages, stage) for layer in compressed.layers))
        for stage in ("pruned", "shared")
    )
    whole = (nbytes(compressed.original), pruned, shared, nbytes(compressed.file))
    rows.append(("total", "", "", "", *whole, total, *pad, *last))
    columns = ("layer", "shape", "not zero", "stored as", *sizes, *errors, *paper_columns)
    right = ("not zero", *sizes, *errors, *paper_columns)
    meaning = (
        "no zeros, codebook, Huffman: bytes of the smallest form without zeros, also with codes of shared values where "
        "these are fewer, and also with Huffman codes, which is what is stored."
    )
    if lossy:
        meaning += " Errors of shared values: the largest, and their root mean square over that of the weights."
    if paper is not None:
        meaning += (
            f" published: what Deep Compression (Han, Mao, Dally 2016) reached on {paper.name}, whose weights were "
            "trained, pruned and trained again."
        )
    return [Table(columns, tuple(rows), right=right), meaning]


def _row(layer: Layer, at: int, lossy: bool, paper: Published | None) -> tuple[str, ...]:
    stages = layer.stages
    stored = f"{layer.layout}, {layer.values} values" if layer.values else layer.layout
    errors: tuple[str, ...] = ()
    if lossy:
        errors = (
            ("-", "-") if layer.error is None else (f"{layer.error.max_abs:.2g}", f"{layer.error.rms_relative:.2%}")
        )
    left = _left(paper, at)
    return (
        layer.node,
        "x".join(map(str, layer.shape)),
        f"{layer.density:.1%}",
        stored,
        *(nbytes(each) for each in (stages.original, stages.pruned, stages.shared, stages.final)),
        f"{_times(layer):.1f}x",
        *errors,
        *(() if paper is None else ("-" if left is None else f"{left:.1f}x",)),
    )


def _times(layer: Layer) -> float:
    return layer.stages.original / max(layer.stages.final, 1)


def _left(paper: Published | None, at: int) -> float | None:
    """How many times smaller the paper made a layer."""
    return None if paper is None else 100 / list(paper.layers.values())[at][1]


def _blank(paper: Published | None) -> tuple[str, ...]:
    return () if paper is None else ("",)
