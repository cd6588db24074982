"""Measure what BENCHMARKS.md shows: python benchmarks/measure.py [NAME...] runs the commands of `TABLES`.

Each answer is kept in benchmarks/cpu/NAME.json with its command and date, and BENCHMARKS.md is written anew from all
that are there. `--write` only writes. Keep the machine quiet meanwhile, and bind the process to the cores that count:
`taskset -c 0,1 python benchmarks/measure.py`.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.report import benchmark
from graphopt.report.document import Table, plain

HERE = Path(__file__).parent
KEPT = HERE / "cpu"
PAGE = HERE.parent / "BENCHMARKS.md"


@dataclass(frozen=True)
class Entry:
    """A table of the page: the command that gives it, and what to say above it."""

    title: str
    command: str
    text: str
    measure: Callable[[Entry], Any]
    show: Callable[[Any], str]


def bench(entry: Entry) -> Any:
    """The document of a `graphopt bench` command."""
    return graphopt(*entry.command.split()[1:])


def table(document: Any) -> str:
    """As `graphopt bench` prints it."""
    return plain(benchmark.blocks(document))


def graphopt(*arguments: str, cache: Path | None = None) -> Any:
    """The JSON answer of a command in a process of its own, perhaps with an own cache."""
    sys.stderr.write(f"+ graphopt {' '.join(arguments)}\n")
    environment = dict(os.environ) if cache is None else {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-P", "-m", "graphopt", *arguments, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def selection(entry: Entry) -> Any:
    """What each compilation says of its solution, and the models with it, greedy and on one layout, interleaved."""
    names = [word for word in entry.command.split() if word.startswith("zoo:")]
    document = bench(entry)
    with tempfile.TemporaryDirectory() as folder:
        for row, name in zip(document["models"], names, strict=True):
            compiled = graphopt("compile", name, "--threads", "2", "--explain", "-o", f"{folder}/model.gopt")
            row["selection"] = compiled["selection"]
    return document


def show_selection(document: Any) -> str:
    """The table, and the sentence of each model below."""
    said = [f"{row['model']}: {sentence}" for row in document["models"] for sentence in row["selection"]]
    return table(document) + "\n\n" + "\n".join(said)


def compiling(_: Entry) -> list[dict[str, Any]]:
    """Seconds of a whole command each: nothing kept, costs kept, costs and code kept, and from artifact to result."""
    from graphopt import models

    file = str(models.build("resnet50"))
    found = []

    def timed(what: str, cache: Path, *arguments: str) -> None:
        start = time.perf_counter()
        graphopt(*arguments, cache=cache)
        shown = " ".join(arguments).replace(file, "resnet50.onnx").replace(f"{folder}/", "")
        found.append({"what": what, "command": f"graphopt {shown}", "seconds": time.perf_counter() - start})

    with tempfile.TemporaryDirectory() as folder:
        cache, first, again = Path(folder) / "cache", f"{folder}/a.gopt", f"{folder}/b.gopt"
        compile_it = ("compile", file, "--threads", "2", "-o")
        timed("cold: every cost measured, every kernel compiled", cache, *compile_it, first)
        timed("costs known, every kernel compiled", cache, *compile_it, again, "--no-cache")
        timed("costs known, kernels kept", cache, *compile_it, again)
        timed("from the choices of an artifact, kernels kept", cache, *compile_it, again, "--costs", first)
        same = Path(first).read_bytes() == Path(again).read_bytes()
        found[-1]["what"] += ", the same bytes" if same else ", OTHER BYTES"
        for _ in range(3):
            timed("artifact to first result", cache, "run", first, "--random", "--threads", "2")
    return found


def show_compiling(rows: Any) -> str:
    """A line per command."""
    cells = tuple((row["what"], f"{row['seconds']:.2f}", row["command"]) for row in rows)
    return plain([Table(("ResNet-50", "seconds", "command"), cells, right=("seconds",))])


TABLES = {
    "light": Entry(
        "Nine models of the onnx package",
        "graphopt bench --suite light --threads 2",
        "Their weights are constants, which costs the same time; correctness is tested on the same graphs with random"
        " weights (`seeded/`).",
        bench,
        table,
    ),
    "models": Entry(
        "Transformers, recurrent networks, MobileNet, MLP",
        "graphopt bench zoo:bert-base zoo:vit-b16 zoo:lstm zoo:bilstm zoo:mobilenetv2 zoo:mlp zoo:mlp-b128 --threads 2",
        "BERT-base at sequence length 128; LSTM: 5 layers of 512, 100 steps; MLP: 7 x 2048.",
        bench,
        table,
    ),
    "layers": Entry(
        "The 3 x 3 convolutions of a residual network",
        "graphopt bench --suite layers --threads 2",
        "Winograd, where ONNX Runtime computes directly; the error against float64 is what that costs.",
        bench,
        table,
    ),
    "gemm": Entry(
        "Matrix product, 1024 cubed",
        "graphopt bench --suite gemm --peer torch --peer onnxruntime --threads 2",
        "PyTorch calls MKL.",
        bench,
        table,
    ),
    "peers": Entry(
        "Other runtimes",
        "graphopt bench zoo:resnet50 --peer onnxruntime --peer torch --peer torch-compile --peer tvm --threads 2",
        "`tvm` is TVM's own ONNX importer and default pipeline, without tuning.",
        bench,
        table,
    ),
    "selection": Entry(
        "One problem, or one convolution at a time",
        "graphopt bench zoo:resnet50 zoo:googlenet zoo:densenet121 --peer greedy --peer single-layout --threads 2",
        "graphopt beside itself: with the greedy choice, and with the best single layout. Where the choices agree the"
        " code is the same and the ratio is noise.",
        selection,
        show_selection,
    ),
    "compile": Entry(
        "Compile and start-up time",
        "python benchmarks/measure.py compile",
        "Whole processes, with Python's start and imports, in an empty cache directory.",
        compiling,
        show_compiling,
    ),
}


def main(arguments: list[str]) -> int:
    """Measure the named tables (all, if none is named), and write the page."""
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(f"{__doc__}\nTables: {', '.join(TABLES)}.\n")
        return 0
    unknown = [name for name in arguments if name not in TABLES and name != "--write"]
    if unknown:
        sys.stderr.write(f"there is no table {unknown[0]}; there are {', '.join(TABLES)}\n")
        return 2
    for name in [] if "--write" in arguments else arguments or TABLES:
        entry = TABLES[name]
        document = entry.measure(entry)
        kept = {"command": entry.command, "date": datetime.date.today().isoformat(), "document": document}
        KEPT.mkdir(exist_ok=True)
        (KEPT / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    return 0


def page() -> str:
    """BENCHMARKS.md, from what is kept."""
    parts = [
        "# Benchmarks\n",
        "Written by `python benchmarks/measure.py`, which runs the command above each table (with `--json`, kept in\n"
        "`benchmarks/cpu/`). Every ratio is of medians, taken in turns in one process; below 1 graphopt is faster.\n"
        "The machine is a virtual one with AMD EPYC cores (AVX-512), shared with others; intervals can be wide.\n",
    ]
    for name, entry in TABLES.items():
        file = KEPT / f"{name}.json"
        parts.append(f"## {entry.title}\n")
        if not file.is_file():
            parts.append(f"Not measured: `{entry.command}`\n")
            continue
        kept = json.loads(file.read_text(encoding="utf-8"))
        parts.append(f"{entry.text}\n")
        parts.append(f"```\n$ {kept['command']}\n{entry.show(kept['document']).rstrip()}\n```\n")
        parts.append(f"Measured on {kept['date']}.\n")
    return "\n".join(parts)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
