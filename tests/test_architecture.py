"""ARCHITECTURE.md is true: its tree is that of the sources, and the places that it names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
TOPS = ("graphopt", "passes", "targets", "models")
BESIDE = {"benchmarks", "docs", "tests"}
"""Folders at the top that are no packages."""


def _tree() -> set[str]:
    """Paths of the folders in the tree, whose lines are indented by two spaces for each level."""
    block = TEXT[TEXT.index("```\ngraphopt/") :].split("```")[1]
    folders: set[str] = set()
    parents: list[str] = []
    for line in block.strip().splitlines():
        match = re.match(r"( *)(\w+)/ ", line)
        assert match is not None, f"{line!r} names no folder"
        depth = len(match[1]) // 2
        parents[depth:] = [match[2]]
        folders.add("/".join(parents))
    return folders


def test_the_tree_is_that_of_the_sources() -> None:
    packages = {
        str(path.parent.relative_to(ROOT)) for top in TOPS for path in (ROOT / top).rglob("__init__.py")
    } | BESIDE
    assert _tree() == packages


def test_every_place_exists() -> None:
    table = TEXT[TEXT.index("## Where to change what") : TEXT.index("## Two walks")]
    places = {place for place in re.findall(r"`([\w./-]+)`", table) if "/" in place}
    assert len(places) > 25
    assert {place for place in places if not (ROOT / place).exists()} == set()


def test_the_way_of_a_model_names_files_that_exist() -> None:
    way = TEXT.split("```")[1]
    named = re.findall(r"\s((?:graphopt|passes|targets|solve)/[\w./{},*]*)", way)
    assert len(named) > 10
    for name in named:
        name = f"graphopt/{name}" if name.startswith("solve/") else name.rstrip(",")
        match = re.fullmatch(r"(.*)\{(.*)\}(.*)", name)
        names = [f"{match[1]}{part}{match[3]}" for part in match[2].split(",")] if match else [name]
        for each in names:
            assert list(ROOT.glob(each)), each


def test_the_pipeline_is_the_default_one() -> None:
    from graphopt.passes import DEFAULT

    way = re.sub(r"\s*\|\s*|\s+graphopt/\S+|\s+passes/\S*", " ", TEXT.split("```")[1])
    assert ", ".join(DEFAULT.split(",")) in re.sub(r"\s+", " ", way)
