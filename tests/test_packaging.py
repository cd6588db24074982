"""The wheel: it holds every module, each of which can be imported from it alone."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "graphopt": "graphopt",
    "passes": "graphopt/passes",
    "targets": "graphopt/targets",
    "models": "graphopt/models",
}

IMPORT_ALL = """
import importlib, json, sys
sys.path.insert(0, sys.argv[1])
names = json.loads(sys.stdin.read())
sys.argv[1:] = []
for name in names:
    module = importlib.import_module(name)
    assert module.__file__.startswith(sys.path[0]), f"{name} comes from {module.__file__}"
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the sources, by the build backend, without an index."""
    import shutil

    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-P", "-c", build, str(folder)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("graphopt-*.whl")
    return found


@pytest.fixture(scope="module")
def content(wheel: Path) -> list[str]:
    """The names of all files in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def _modules() -> dict[str, str]:
    """Module name -> file in the wheel, for every source file."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            file = f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
            found[file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")] = file
    return found


def test_every_source_file_is_in_the_wheel(content: list[str]) -> None:
    assert set(_modules().values()) - set(content) == set()


def test_the_wheel_holds_nothing_else(content: list[str]) -> None:
    others = {name for name in content if not name.endswith(".py") and ".dist-info/" not in name}
    data = {f"graphopt/models/trained/{path.name}" for path in (ROOT / "models/trained").iterdir()}
    assert others == {"graphopt/py.typed"} | data
    assert all(name.startswith(("graphopt/", "graphopt-")) for name in content)


def test_every_folder_with_modules_is_listed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {file.rpartition("/")[0].replace("/", ".") for file in _modules().values()}
    assert sorted(listed) == sorted(folders)


def test_metadata(wheel: Path, content: list[str]) -> None:
    (metadata,) = (name for name in content if name.endswith("/METADATA"))
    (entries,) = (name for name in content if name.endswith("/entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(metadata).decode()
        assert "graphopt = graphopt.cli:main" in archive.read(entries).decode()
    assert "License-Expression: Apache-2.0" in text
    assert "Requires-Dist: torch==2.13.*" in text
    assert any(name.endswith("/LICENSE") for name in content)


def test_every_module_can_be_imported_from_it(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    names = sorted(_modules())
    assert len(names) > 80
    # -P: neither this folder nor a script's may stand in for the installed package.
    done = subprocess.run(
        [sys.executable, "-P", "-c", IMPORT_ALL, str(tmp_path / "site")],
        input=json.dumps([name for name in names if name != "graphopt.__main__"]),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(("code", "status"), [("import graphopt", 0), ("import graphopt; graphopt.compile", 1)])
def test_a_checkout_that_hides_the_package_says_so(code: str, status: int) -> None:
    """What runs artifacts lies in the folder `graphopt` of a checkout; what compiles lies beside it."""
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == status
    assert ("is graphopt's source, not an installation" in done.stderr) == bool(status)


def test_the_version_is_that_of_the_package() -> None:
    from graphopt.version import VERSION

    assert tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"] == VERSION


def test_the_tests_see_the_installed_package_under_python_m_pytest() -> None:
    """Python puts the checkout first on the path, where `graphopt/` is without the folders beside it."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/pipeline/test_pipeline.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
