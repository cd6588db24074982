"""The import rules of the layout, read from the sources with `ast`.

An import counts wherever it stands, inside functions too, and so does `importlib.import_module("...")`; only those
under `if TYPE_CHECKING:` do not, because nothing is loaded for them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "graphopt": "graphopt",
    "passes": "graphopt.passes",
    "targets": "graphopt.targets",
    "models": "graphopt.models",
}
OWN = tuple(
    f"graphopt.{name}" for name in ("passes", "targets", "models", "compiler", "cli", "bench", "report", "backend")
)

COMPOSITION = (
    "graphopt.compiler",
    "graphopt.backend",
    "graphopt.cli",
    "graphopt.bench",
    "graphopt.report",
    "graphopt.__main__",
)
"""The parts of graphopt/ that may see everything."""

RUNNING = (
    "graphopt.runtime",
    "graphopt.program.program",
    "graphopt.program.schedule",
    "graphopt.artifact",
    "graphopt.program.weights",
)
"""What executes an artifact; nothing that it imports, directly or not, may need a compiler."""


def _modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *parts])
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = _modules()


def _type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt) and _type_checking(child):
            continue
        yield child
        yield from _walk(child)


def _imports(name: str) -> set[str]:
    """Full names that a module imports: `from a import b` counts as `a` and, if it is a module of ours, as `a.b`."""
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in _walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            base = node.module or ""
            below = {f"{base}.{alias.name}" for alias in node.names}
            submodules = {each for each in below if each in MODULES}
            found |= submodules or {base}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return found


IMPORTS = {name: _imports(name) for name in MODULES}


def _below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _violations(subjects: Iterator[str] | list[str], *forbidden: str) -> list[str]:
    return sorted(f"{name} imports {each}" for name in subjects for each in IMPORTS[name] if _below(each, *forbidden))


def _core() -> list[str]:
    return [name for name in MODULES if not _below(name, *COMPOSITION, *list(FOLDERS.values())[1:])]


def test_every_folder_is_seen() -> None:
    for package in FOLDERS.values():
        assert sum(_below(name, package) for name in MODULES) > 5


def test_only_targets_import_the_compiler_of_tvm() -> None:
    assert _violations([name for name in MODULES if not _below(name, "graphopt.targets")], "tvm") == []


def test_the_runtime_of_tvm_has_one_door() -> None:
    doors = ("graphopt.targets", "graphopt.runtime.devices.library")
    assert _violations([name for name in MODULES if not _below(name, *doors)], "tvm_ffi") == []


def test_passes_see_neither_targets_nor_runtime() -> None:
    passes = [name for name in MODULES if _below(name, "graphopt.passes")]
    outside = tuple(each for each in OWN if each != "graphopt.passes")
    assert _violations(passes, "tvm", "tvm_ffi", "torch", "onnxruntime", "graphopt.runtime", *outside) == []


def test_targets_see_neither_passes_nor_runtime() -> None:
    targets = [name for name in MODULES if _below(name, "graphopt.targets")]
    outside = tuple(each for each in OWN if each != "graphopt.targets")
    assert _violations(targets, "torch", "onnxruntime", *outside) == []


def test_models_import_libraries_and_errors_only() -> None:
    models = [name for name in MODULES if _below(name, "graphopt.models")]
    wrong = [
        f"{name} imports {each}"
        for name in models
        for each in IMPORTS[name]
        if _below(each, "graphopt") and not _below(each, "graphopt.models", "graphopt.errors")
    ]
    assert wrong == []


def test_core_sees_neither_passes_nor_targets() -> None:
    # The pipeline loads the table of passes by name, when a spelling is parsed.
    core = [name for name in _core() if name != "graphopt.pipeline.pipeline"]
    assert _violations(core, "graphopt.passes", "graphopt.targets", *COMPOSITION[1:]) == []
    assert _violations(["graphopt.pipeline.pipeline"], "graphopt.targets", *COMPOSITION) == []


def test_core_reaches_the_zoo_through_the_front_end_only() -> None:
    core = [name for name in _core() if name != "graphopt.frontend.load"]
    assert _violations(core, "graphopt.models") == []


def test_nothing_that_runs_an_artifact_needs_a_compiler() -> None:
    pending = [name for name in MODULES if _below(name, *RUNNING)]
    reached: set[str] = set()
    while pending:
        name = pending.pop()
        if name in reached:
            continue
        reached.add(name)
        pending += [each for each in IMPORTS[name] if each in MODULES]
    assert "graphopt.runtime.session" in reached
    forbidden = ("onnx", "onnx_ir", "onnxscript", "tvm", "networkx", "highspy", *OWN)
    assert _violations(sorted(reached), *forbidden) == []


def test_torch_is_for_models_ranks_and_peers() -> None:
    allowed = ("graphopt.models", "graphopt.runtime", "graphopt.frontend.load", "graphopt.bench")
    assert _violations([name for name in MODULES if not _below(name, *allowed)], "torch") == []
    alone = [name for name in MODULES if _below(name, "graphopt.runtime.session", "graphopt.runtime.stage")]
    assert _violations(alone, "torch") == []


def test_nothing_executes_data() -> None:
    assert _violations(list(MODULES), "pickle", "marshal", "shelve", "dill", "cloudpickle") == []


@pytest.mark.parametrize("name", ["graphopt", "graphopt.passes", "graphopt.targets", "graphopt.models"])
def test_packages_load_nothing_heavy(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    top = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert top <= {
        "__future__", "importlib", "os", "typing", "graphopt.errors", "graphopt.models.samples", "graphopt.models.zoo",
    }  # fmt: skip


def test_every_rule_can_fail() -> None:
    """The reader sees imports where they hide."""
    assert "graphopt.targets" in IMPORTS["graphopt.compiler"]  # inside a function
    assert _violations(["graphopt.compiler"], "graphopt.targets")
    assert "graphopt.passes" in IMPORTS["graphopt.pipeline.pipeline"]  # importlib.import_module("...")
