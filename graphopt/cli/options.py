"""Options that several commands share, and the values they take."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from graphopt.errors import GraphoptError

COMPRESSED = ".gopz"
"""Ending of the names of compressed models that no name was given for."""

_BEGINNING = 64
"""Bytes at the beginning of a file that tell its kind."""


def path(text: str) -> Path:
    """A path of the command line; an empty one, which would mean the current folder, is a usage error."""
    return Path(filled(text))


def file(text: str) -> Path:
    """The path of a file to write."""
    if text.endswith("/"):
        raise typer.BadParameter(f"{text} is a folder; name a file")
    return path(text)


def filled(text: str) -> str:
    """`text`; an empty one is a usage error."""
    if not text:
        raise typer.BadParameter("the path is empty; name a file or folder")
    return text


def size(text: str) -> int:
    """Bytes, as `512MiB`, `1.5 GB` or `300000`; anything else is a usage error."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)(B?)\s*", text)
    if match is None or (match[3] and not match[2]):
        raise typer.BadParameter(f"{text!r} is no size; write bytes, as 512MiB, 1.5GB or 300000")
    power = " KMGT".index(match[2].upper() or " ")
    unit: int = (1024 if match[3] else 1000) ** power
    found = round(float(match[1]) * unit)
    if found < 1:
        raise typer.BadParameter(f"{text!r} is no memory at all; give some bytes, as 512MiB")
    return found


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        parser=filled,
        help="An ONNX file, what `graphopt compress` wrote, or zoo:NAME (see `graphopt models`).",
    ),
]
ArtifactPath = Annotated[Path, typer.Argument(metavar="ARTIFACT", parser=path, help="What `graphopt compile` wrote.")]
Shapes = Annotated[
    list[str] | None,
    typer.Option("--shapes", metavar="NAME:DxDxD", help="Static shape of an input; repeat, or separate with commas."),
]
Passes = Annotated[
    str | None, typer.Option("--passes", metavar="SPEC", help="The pipeline, as `graphopt passes` shows it.")
]
Target = Annotated[str, typer.Option("--target", metavar="NAME", help="Hardware to compile for.")]
Level = Annotated[
    str | None,
    typer.Option(
        "--level",
        metavar="NAME",
        help="What the code may use: a CPU level (avx512vnni, avx512, avx2vnni, avx2, x86-64), a GPU (a100, h100, "
        "h200, rtx4090) or its architecture (sm_80, sm_89, sm_90). Default: this CPU, or an H100.",
    ),
]
NoFallback = Annotated[bool, typer.Option("--no-fallback", help="Fail if a node would need ONNX Runtime.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Compile every kernel, and keep none for the next time.")]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="Threads of every kernel; default one per physical core."),
]
Costs = Annotated[
    str | None,
    typer.Option(
        "--costs",
        metavar="SOURCE",
        parser=filled,
        envvar="GRAPHOPT_COSTS",
        help="What algorithms are chosen by: measured (the default; on this machine, kept in a table), roofline, or an "
        "artifact, whose costs make the same choices again.",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input",
        metavar="NAME=FILE.npy",
        help="An input, as numpy.save wrote it, or FILE.npz with several; repeat for others.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed of the random inputs.")]
Ranks = Annotated[int, typer.Option("--ranks", metavar="N", min=1, help="Pipeline stages, one process each.")]


def parse_shapes(texts: list[str] | None) -> dict[str, tuple[int, ...]] | None:
    """The shapes of repeated `--shapes` options, None without any.

    Raises:
        GraphoptError: a text is not a shape.
    """
    if not texts:
        return None
    from graphopt.frontend.load import parse_shapes as parse

    return dict(parse(",".join(texts)))


def check_output(path: Path, flag: str, ours: Callable[[bytes], bool]) -> Path:
    """`path`, if it can be written and no file of the user's would be lost; checked before the long work begins.

    Args:
        ours: whether a file with this beginning was written by this command, and may be replaced.

    Raises:
        GraphoptError: the folder of `path` does not exist, or `path` is a folder, a device, or a file of another kind.
    """
    if path.is_dir():
        raise GraphoptError(f"{flag} {path} is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise GraphoptError(f"{flag} {path}: the folder {path.parent} does not exist; make it first")
    if path.exists():
        if not path.is_file():
            raise GraphoptError(f"{flag} {path} is no regular file; name one")
        with path.open("rb") as stream:
            beginning = stream.read(_BEGINNING)
        if beginning and not ours(beginning):
            raise GraphoptError(f"{flag} {path} is a file of another kind; name another, or remove it first")
    return path


def check_apart(path: Path, flag: str, other: Path | None, what: str) -> None:
    """Check that two paths are not one file, also over links: the second would be lost.

    Args:
        what: says what `other` is, as "is what --svg names too".

    Raises:
        GraphoptError: they are one file.
    """
    if other is None:
        return
    if path.resolve() == other.resolve() or (path.exists() and other.exists() and path.samefile(other)):
        raise GraphoptError(f"{flag} {path} {what}; name another file")


def is_drawing(beginning: bytes) -> bool:
    """Whether a file with this beginning is an SVG."""
    return beginning.startswith(b"<svg")


MemoryBudget = Annotated[
    int | None,
    typer.Option(
        "--memory-budget",
        metavar="SIZE",
        parser=size,
        help="Bytes that a rank may hold, as 512MiB: kernels run again where their results are not kept.",
    ),
]
