"""Measure what BENCHMARKS.md shows: python benchmarks/measure.py [NAME...] runs the commands of the named tables.

Without a name it runs those of a CPU, with `gpu` all those of a GPU. Each answer is kept in benchmarks/cpu/NAME.json or
benchmarks/gpu/NAME.json with its command and date, and BENCHMARKS.md is written anew from all that are there. `--write`
only writes. On a GPU every model is kept as soon as it is measured, and `--resume` leaves out those that are kept. Keep
the machine quiet meanwhile, and bind the process to the cores that count: `taskset -c 0,1 python benchmarks/measure.py`
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphopt.bench import suite
from graphopt.report import benchmark, layers
from graphopt.report.document import Table, plain
from graphopt.report.weights import sparse_grid

HERE = Path(__file__).parent
PAGE = HERE.parent / "BENCHMARKS.md"


@dataclass(frozen=True)
class Entry:
    """A table of the page: the command that produces it, and the text above it."""

    title: str
    command: str
    text: str
    measure: Callable[[Entry, Any], Iterator[Any]]
    """Yields the results so far, whenever there are more; gets the results kept before, None for a fresh start."""
    show: Callable[[Any], str]


def bench(entry: Entry, _: Any = None) -> Iterator[Any]:
    """The document of a `graphopt bench` command."""
    yield graphopt(*entry.command.split()[1:])


def each_model(entry: Entry, before: Any) -> Iterator[Any]:
    """The same for a command on a GPU, one model at a time; models measured before on that GPU are skipped."""
    words = entry.command.split()[2:]
    suites = [words[at + 1] for at, word in enumerate(words) if word == "--suite"]
    models = [word for word in words if word.startswith("zoo:")]
    rest = [word for word in words if word not in models and word != "--suite" and word not in suites]
    document = before
    known = {row["model"] for row in before["models"] if row["error"] is None} if before else set()
    for model in [*models, *(name for chosen in suites for name in suite.suite(chosen, device=True))]:
        if model not in known:
            document = merged(document, graphopt("bench", model, *rest))
            yield document


def merged(document: Any, new: Any) -> Any:
    """A document with the models of a new one added, which replace rows that failed."""
    if document is None:
        return new
    gpus = [source["environment"]["device"]["name"] for source in (document, new)]
    if gpus[0] != gpus[1]:
        raise SystemExit(f"what is kept was measured on {gpus[0]} and this is {gpus[1]}: leave out --resume")
    names = {row["model"] for row in new["models"]}
    rows = [*(row for row in document["models"] if row["model"] not in names), *new["models"]]
    return {**new, "models": rows, "geometric_mean": suite.means(rows, list(new["geometric_mean"]))}


def table(document: Any) -> str:
    """The table as `graphopt bench` prints it."""
    return plain(benchmark.blocks(document))


def show_sparse(document: Any) -> str:
    """The grid that `graphopt bench --suite sparse` prints, and the lines below its rows."""
    grid, footer = sparse_grid.grid(document), benchmark.blocks(document)[-1]
    return plain([footer] if grid is None else [grid, footer])


def graphopt(*arguments: str, cache: Path | None = None) -> Any:
    """The JSON result of a command in a process of its own, optionally with its own cache."""
    sys.stderr.write(f"+ graphopt {' '.join(arguments)}\n")
    environment = dict(os.environ) if cache is None else {**os.environ, "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-P", "-m", "graphopt", *arguments, "--json"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if not done.stdout:  # a failed model among several is a result too
        done.check_returncode()
    return json.loads(done.stdout)


def selection(entry: Entry, _: Any = None) -> Iterator[Any]:
    """The solution statistics of each compilation, and the models with it, greedy and on one layout, interleaved."""
    names = [word for word in entry.command.split() if word.startswith("zoo:")]
    (document,) = bench(entry)
    with tempfile.TemporaryDirectory() as folder:
        for row, name in zip(document["models"], names, strict=True):
            compiled = graphopt("compile", name, "--threads", "2", "--explain", "-o", f"{folder}/model.gopt")
            row["selection"] = compiled["selection"]
    yield document


def show_selection(document: Any) -> str:
    """The table, followed by one sentence per model."""
    said = [f"{row['model']}: {sentence}" for row in document["models"] for sentence in row["selection"]]
    return table(document) + "\n\n" + "\n".join(said)


def compiling(_: Entry, __: Any = None) -> Iterator[list[dict[str, Any]]]:
    """Seconds of complete commands: no caches, costs kept, costs and code kept, and from artifact to result."""
    from graphopt import models

    file = str(models.build("resnet50"))
    timings = []

    def timed(what: str, cache: Path, *arguments: str) -> None:
        start = time.perf_counter()
        graphopt(*arguments, cache=cache)
        shown = " ".join(arguments).replace(file, "resnet50.onnx").replace(f"{folder}/", "")
        timings.append({"what": what, "command": f"graphopt {shown}", "seconds": time.perf_counter() - start})

    with tempfile.TemporaryDirectory() as folder:
        cache, first, again = Path(folder) / "cache", f"{folder}/a.gopt", f"{folder}/b.gopt"
        compile_it = ("compile", file, "--threads", "2", "-o")
        timed("cold: every cost measured, every kernel compiled", cache, *compile_it, first)
        timed("costs known, every kernel compiled", cache, *compile_it, again, "--no-cache")
        timed("costs known, kernels kept", cache, *compile_it, again)
        timed("from the choices of an artifact, kernels kept", cache, *compile_it, again, "--costs", first)
        same = Path(first).read_bytes() == Path(again).read_bytes()
        timings[-1]["what"] += ", the same bytes" if same else ", OTHER BYTES"
        for _ in range(3):
            timed("artifact to first result", cache, "run", first, "--random", "--threads", "2")
    yield timings


def show_compiling(rows: Any) -> str:
    """One line per command."""
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
    "sparse": Entry(
        "Sparse weights",
        "graphopt bench --suite sparse --threads 2 --runs 15",
        "One layer each, with blocks of random weights; `dense` is graphopt without sparse kernels. Times, not ratios.",
        bench,
        show_sparse,
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


def kernels(document: Any) -> str:
    """The table as `graphopt bench --layers` prints it."""
    return plain(layers.blocks(document))


def _on_gpu(title: str, arguments: str, text: str) -> Entry:
    """The table of a `graphopt bench` command that measures one model at a time."""
    return Entry(title, f"graphopt bench {arguments}", text, each_model, table)


ON_GPU = {
    "gpu-gemm": _on_gpu(
        "Matrix product, 4096 cubed",
        "--suite gemm --target cuda --peer torch",
        "PyTorch calls cuBLAS; in float32 without TF32.",
    ),
    "gpu-resnet50": _on_gpu(
        "ResNet-50 in float16",
        "zoo:resnet50 zoo:resnet50-b32 --target cuda --precision fp16",
        "Batches 1 and 32. PyTorch computes in channels_last on halves, with cuDNN's benchmark.",
    ),
    "gpu-vgg16": _on_gpu(
        "VGG-16 in float16",
        "zoo:vgg16 zoo:vgg16-b32 --target cuda --precision fp16",
        "Batches 1 and 32.",
    ),
    "gpu-bert": _on_gpu(
        "BERT-base, batch 8, in float16",
        "zoo:bert-base-b8 --target cuda --precision fp16",
        "At sequence length 128.",
    ),
    "gpu-zoo": _on_gpu(
        "The zoo in float32",
        "--suite zoo --target cuda",
        "Batch 1.",
    ),
    "gpu-zoo-fp16": _on_gpu(
        "The zoo in float16",
        "--suite zoo --target cuda --precision fp16",
        "Batch 1.",
    ),
    "gpu-seeded": _on_gpu(
        "Nine models of the onnx package with random weights",
        "--suite seeded --target cuda --peer torch",
        "Batch 1, float32.",
    ),
    "gpu-layers": _on_gpu(
        "The 3 x 3 convolutions of a residual network, in float32",
        "--suite layers --target cuda",
        "Batch 1.",
    ),
    "gpu-kernels": Entry(
        "The kernels of ResNet-50, batch 32, in float16",
        "graphopt bench zoo:resnet50-b32 --layers --target cuda --precision fp16",
        "Each beside what was predicted, and its share of the roofline.",
        bench,
        kernels,
    ),
}

COMPILED = "torch-compile"
GOALS = (
    ("fp32 product, 4096 cubed", "gpu-gemm", "zoo:layer/gemm-4096", "torch", 0.9),
    ("fp16 product, 4096 cubed", "gpu-gemm", "zoo:layer/gemm-4096-fp16", "torch", 0.6),
    ("ResNet-50, batch 1, fp16", "gpu-resnet50", "zoo:resnet50", COMPILED, 0.8),
    ("ResNet-50, batch 32, fp16", "gpu-resnet50", "zoo:resnet50-b32", COMPILED, 0.8),
    ("VGG-16, batch 1, fp16", "gpu-vgg16", "zoo:vgg16", COMPILED, 0.8),
    ("VGG-16, batch 32, fp16", "gpu-vgg16", "zoo:vgg16-b32", COMPILED, 0.8),
    ("BERT-base, batch 8, fp16", "gpu-bert", "zoo:bert-base-b8", COMPILED, 0.8),
)
"""Goal, its table and row, the peer, and the required minimum of graphopt's speed over the peer's."""
CHECKED = ("gpu-zoo", "gpu-zoo-fp16", "gpu-seeded")
"""Tables whose models must all agree with ONNX Runtime."""


def kept(name: str) -> Path:
    """The file that keeps the result of a table."""
    return HERE / "gpu" / f"{name.removeprefix('gpu-')}.json" if name in ON_GPU else HERE / "cpu" / f"{name}.json"


def goals() -> str:
    """The goals on a GPU, and the measurements."""
    documents = {name: json.loads(kept(name).read_text())["document"] for name in ON_GPU if kept(name).is_file()}
    table_rows = []
    for what, name, model, peer, wanted in GOALS:
        rows = {row["model"]: row for row in documents.get(name, {}).get("models", [])}
        beside = "cuBLAS" if peer == "torch" else "torch.compile"
        table_rows.append((what, f"at least {wanted} x {beside}", _speed(rows.get(model), peer)))
    for name in CHECKED:
        rows = documents.get(name, {}).get("models", [])
        right = sum(row["error"] is None and row["equal"] for row in rows)
        table_rows.append(
            (ON_GPU[name].title, "all agree", f"{right} of {len(rows)} agree" if rows else "not measured")
        )
    return plain([Table(("what", "wanted", "measured"), tuple(table_rows))])


def _speed(row: Any, peer: str) -> str:
    """Speed of graphopt relative to the peer: the peer's time over graphopt's."""
    if row is None:
        return "not measured"
    if row["error"] is not None or not row["equal"]:
        return "failed: not timed"
    if peer not in row["ratios"]:
        return f"{peer} failed"
    ratio = row["ratios"][peer]
    return f"{1 / ratio['value']:.2f} [{1 / ratio['high']:.2f}, {1 / ratio['low']:.2f}] x"


def main(arguments: list[str]) -> int:
    """Measure the named tables (those of a CPU by default), and write the page."""
    entries = TABLES | ON_GPU
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(f"{__doc__}\nTables: {', '.join(entries)}.\n")
        return 0
    flags = ("--write", "--resume")
    unknown = [name for name in arguments if name not in (*entries, *flags, "gpu")]
    if unknown:
        sys.stderr.write(f"there is no table {unknown[0]}; there are {', '.join(entries)}, and gpu for all on a GPU\n")
        return 2
    named = [name for name in arguments if name not in flags]
    wanted = [table_name for name in named or TABLES for table_name in (ON_GPU if name == "gpu" else [name])]
    for name in [] if "--write" in arguments else wanted:
        entry = entries[name]
        again = "--resume" in arguments and kept(name).is_file()
        before = json.loads(kept(name).read_text(encoding="utf-8"))["document"] if again else None
        try:
            for document in entry.measure(entry, before):
                keep(name, document)
        except subprocess.CalledProcessError as error:
            return int(error.returncode)  # the command printed the reason
    PAGE.write_text(page(), encoding="utf-8")
    return 0


def keep(name: str, document: Any) -> None:
    """Write the result of a table, and the page with it."""
    answer = {
        "command": (TABLES | ON_GPU)[name].command,
        "date": datetime.date.today().isoformat(),
        "document": document,
    }
    kept(name).parent.mkdir(exist_ok=True)
    kept(name).write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The text of BENCHMARKS.md, from the results that are kept."""
    parts = [
        "# Benchmarks\n",
        "Written by `python benchmarks/measure.py`, which runs the command above each table (with `--json`, kept in\n"
        "`benchmarks/cpu/` and `benchmarks/gpu/`). Every ratio is of medians, taken in turns in one process; below 1\n"
        "graphopt is faster. The CPU is a virtual machine's with AMD EPYC cores (AVX-512), shared with others;\n"
        "intervals can be wide.\n",
    ]
    for name, entry in TABLES.items():
        parts += _section(name, entry, "##")
    parts.append("## On a GPU\n")
    if not any(kept(name).is_file() for name in ON_GPU):
        parts.append(
            "Nothing here was measured: no GPU was at hand. `python benchmarks/measure.py gpu` on a machine with one\n"
            "measures all of it and writes this page again.\n"
        )
    parts.append(
        "graphopt replays a CUDA graph whose inputs are on the GPU, timed by its events, on memory that is not in its\n"
        "L2; so does PyTorch, eager and compiled with max-autotune. PyTorch gets the model with BatchNorm folded and\n"
        "attention as one function, and in half precision inputs as halves, which graphopt converts in its graph.\n"
        "A model that computes something else than ONNX Runtime is not timed.\n"
    )
    parts.append(f"```\n{goals().rstrip()}\n```\n")
    for name, entry in ON_GPU.items():
        parts += _section(name, entry, "###")
    return "\n".join(parts)


def _section(name: str, entry: Entry, heading: str) -> list[str]:
    parts = [f"{heading} {entry.title}\n"]
    if not kept(name).is_file():
        return [*parts, f"Not measured: `{entry.command}`\n"]
    answer = json.loads(kept(name).read_text(encoding="utf-8"))
    return [
        *parts,
        f"{entry.text}\n",
        f"```\n$ {answer['command']}\n{entry.show(answer['document']).rstrip()}\n```\n",
        f"Measured on {answer['date']}.\n",
    ]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
