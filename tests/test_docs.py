"""The pages of docs/ are true: their commands and examples run, links lead somewhere, plots name their commands."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(arguments, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(arguments)}: {done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_examples_run(page: Path, tmp_path: Path) -> None:
    """In one folder, from the first to the last, as a reader would."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    assert {kind for kind, _ in blocks} == {"sh", "python"}
    for kind, text in blocks:
        if kind == "sh":
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "graphopt"
                _run([sys.executable, "-P", "-m", "graphopt", *arguments], tmp_path)
        else:
            (tmp_path / "example.py").write_text(text, encoding="utf-8")
            printed = _run([sys.executable, "-P", "example.py"], tmp_path)
            for line in re.findall(r"print\(.*\)  # (.*)", text):
                assert line in printed


def test_the_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 130
    assert {page.name for page in PAGES} == set(re.findall(r"\(docs/([\w-]+\.md)\)", readme))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_flags_exist() -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "graphopt" / "cli").glob("*.py"))
    torchrun = {"--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint"}
    for page in PAGES:
        for flag in set(re.findall(r"(?<![\w-])--[a-z][\w-]+", page.read_text(encoding="utf-8"))) - torchrun:
            assert f'"{flag}"' in sources, f"{page.name} names {flag}"


def test_every_plot_names_the_command_that_draws_it() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for image in sorted((ROOT / "docs" / "images").iterdir()):
        assert f"images/{image.name})" in text
        assert f"docs/images/{image.name}`" in text
