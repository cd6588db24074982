"""The import rules of the layout, read from the sources with `ast`.

An import counts wherever it stands: inside functions, under `if TYPE_CHECKING:`, as `importlib.import_module("...")`.
A name that is computed is seen only as such: `COMPUTED` lists who imports what a table or a variable names.
The two packages that show names which load when they are used (`graphopt`, `graphopt.passes`) are read without what
stands under `if TYPE_CHECKING:`, because that is the list of those names.

Every rule is a function of all imports, so that the tests also see it fail on an import that is planted.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "graphopt": "graphopt",
    "passes": "graphopt.passes",
    "targets": "graphopt.targets",
    "models": "graphopt.models",
}
FACADES = ("graphopt", "graphopt.passes")

ORDER = (
    *("version", "errors", "modes", "disk_cache"),
    "program",  # plain data
    "runtime",
    *("artifact", "storage"),
    "ops",
    "graph",
    "solve",
    "cost",
    "verify",
    "models",
    "frontend",
    "pipeline",
    "passes",
    "options",
    "distributed",
    "lowering",
    "targets.common",
    "targets.cpu",
    "targets.gpu",
    "targets",  # the table
    *("compiler", "backend", "tune", "pruning", "training"),
    *("report", "bench", "cli", "__main__"),
    "",  # the names that `import graphopt` shows
)
"""Packages and modules right below `graphopt`: each imports from itself and from those before it."""

KNOWN_BY_NAME = {("graphopt.pipeline.spelling", "graphopt.passes")}
"""Spelling a pipeline takes the table of passes, whose names load when they are used."""

RUNNING = (
    *("graphopt.runtime", "graphopt.program", "graphopt.artifact"),
    *(f"graphopt.distributed.{name}" for name in ("worker", "launch", "transport", "watch", "control")),
)
"""What executes an artifact; nothing that it imports, directly or not, may need a compiler."""

Imports = Mapping[str, Iterable[str]]
"""Module -> full names that it imports: modules of ours, and modules and names of libraries."""


def _modules() -> dict[str, Path]:
    found = {}
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


COMPUTED = {
    "graphopt": "its public names",
    "graphopt.passes": "the table of passes",
    "graphopt.pipeline.spelling": "the same table",
    "graphopt.targets": "the table of targets",
    "graphopt.models.zoo": "the table of models",
    "graphopt.bench.peers.runtimes": "the table of peers",
    "graphopt.cli.app": "the table of commands",
    "graphopt.runtime.devices.library": "tvm_ffi and tvm, with what they would import hidden",
}
"""Modules that import what they compute the name of, and why."""


def _walk(node: ast.AST, types: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if not types and isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from _walk(other, types)
            continue
        yield child
        yield from _walk(child, types)


def _called_imports(tree: ast.AST, types: bool = True) -> Iterator[str | None]:
    """What calls that import are given: a literal name, or None for anything else."""
    for node in _walk(tree, types):
        if isinstance(node, ast.Call) and _last_name(node.func) in ("import_module", "__import__", "run_module"):
            given = [
                *node.args[:1],
                *(keyword.value for keyword in node.keywords if keyword.arg in ("name", "mod_name")),
            ]
            literal = isinstance(given[0], ast.Constant) and isinstance(given[0].value, str) and len(node.args) <= 1
            yield given[0].value if literal and not given[0].value.startswith(".") else None


def _last_name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _imports(name: str, types: bool) -> set[str]:
    found: set[str] = set()
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for node in _walk(tree, types):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            base = node.module or ""
            below = {f"{base}.{alias.name}" for alias in node.names}
            ours = base.partition(".")[0] == "graphopt"
            found |= {each if each in MODULES or not ours else base for each in below} | (set() if ours else {base})
    found |= {each for each in _called_imports(tree, types) if each is not None}
    return found - {name}


IMPORTS = {name: _imports(name, types=name not in FACADES) for name in MODULES}
LOADED = {name: _imports(name, types=False) for name in MODULES}
"""Without those for type checkers, for which nothing is loaded."""


def _below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _crossing(imports: Imports, subjects: Callable[[str], bool], *forbidden: str) -> list[str]:
    return sorted(
        f"{name} imports {each}"
        for name in imports
        if subjects(name)
        for each in imports[name]
        if _below(each, *forbidden)
    )


def _layer(name: str) -> int:
    """Its place in ORDER: that of the longest entry that it lies below."""
    own = [place for place, entry in enumerate(ORDER) if entry and _below(name, f"graphopt.{entry}")]
    return max(own, key=lambda place: len(ORDER[place])) if own else ORDER.index("")


def downwards(imports: Imports) -> list[str]:
    """No package imports from one that comes after it in ORDER."""
    return [
        f"{name} imports {each}"
        for name in imports
        for each in imports[name]
        if each in MODULES and _layer(each) > _layer(name) and (name, each) not in KNOWN_BY_NAME
    ]


def circles(imports: Imports) -> list[str]:
    """No module imports one that imports it, over however many others."""
    graph = nx.DiGraph([(name, each) for name in imports for each in imports[name] if each in MODULES])
    return [", ".join(sorted(each)) for each in nx.strongly_connected_components(graph) if len(each) > 1]


def tvm_in_targets(imports: Imports) -> list[str]:
    """Only targets import TVM's compiler."""
    return _crossing(imports, lambda name: not _below(name, "graphopt.targets"), "tvm")


def tvm_runtime(imports: Imports) -> list[str]:
    """TVM's runtime has one door besides them."""
    doors = ("graphopt.targets", "graphopt.runtime.devices.library")
    return _crossing(imports, lambda name: not _below(name, *doors), "tvm_ffi")


def importer(imports: Imports) -> list[str]:
    """One file touches TVM's private importer."""
    return _crossing(
        imports, lambda name: name != "graphopt.targets.common.relax_import", "tvm.relax.frontend.onnx.onnx_frontend"
    )


def passes_alone(imports: Imports) -> list[str]:
    """Passes see neither targets nor what executes."""
    libraries = ("tvm", "tvm_ffi", "torch", "onnxruntime")
    own = ("graphopt.runtime", "graphopt.lowering", "graphopt.distributed", "graphopt.targets", "graphopt.models")
    return _crossing(imports, lambda name: _below(name, "graphopt.passes"), *libraries, *own)


def targets_see_devices(imports: Imports) -> list[str]:
    """Of the runtime, targets see the devices, on which they measure; they import neither torch nor ONNX Runtime."""
    found = _crossing(imports, lambda name: _below(name, "graphopt.targets"), "torch", "onnxruntime")
    parts = _crossing(imports, lambda name: _below(name, "graphopt.targets"), "graphopt.runtime")
    return found + [each for each in parts if "imports graphopt.runtime.devices." not in each]


def targets_apart(imports: Imports) -> list[str]:
    """What targets share knows none of them; GPUs take nothing of the CPU's but the builder of what the host runs."""
    door = "graphopt.targets.gpu.target"
    host = ("graphopt.targets.cpu.build", "graphopt.targets.cpu.machine", "graphopt.targets.cpu.object_cache")
    both = ("graphopt.targets.cpu", "graphopt.targets.gpu")
    found = _crossing(imports, lambda name: _below(name, "graphopt.targets.common"), *both)
    found += _crossing(imports, lambda name: _below(name, "graphopt.targets.cpu"), "graphopt.targets.gpu")
    gpu = _crossing(imports, lambda name: _below(name, "graphopt.targets.gpu"), "graphopt.targets.cpu")
    return found + [each for each in gpu if each not in {f"{door} imports {module}" for module in host}]


def spine_alone(imports: Imports) -> list[str]:
    """The spine sees neither passes nor targets, but for the compiler, the measuring parts and the reports."""
    seeing = ("compiler", "bench", "cli", "report", "passes", "targets", "models", "tune", "backend", "pruning")
    roots = tuple(f"graphopt.{name}" for name in (*seeing, "training"))
    found = _crossing(imports, lambda name: not _below(name, *roots), "graphopt.passes", "graphopt.targets")
    return [each for each in found if each != "graphopt.pipeline.spelling imports graphopt.passes"]


def models_alone(imports: Imports) -> list[str]:
    """Models import libraries and the errors."""
    found = _crossing(imports, lambda name: _below(name, "graphopt.models"), "graphopt")
    allowed = ("graphopt.models", "graphopt.errors")
    return [each for each in found if not _below(each.rpartition(" ")[2], *allowed)]


def zoo_through_the_front_end(imports: Imports) -> list[str]:
    """The spine reaches the zoo where models are loaded."""
    seeing = ("graphopt.frontend.load", "graphopt.models", "graphopt.bench", "graphopt.cli")
    return _crossing(imports, lambda name: not _below(name, *seeing), "graphopt.models")


def running_needs_no_compiler(imports: Imports) -> list[str]:
    """Nothing that runs an artifact loads a compiler, onnx, or a solver."""
    pending = [name for name in imports if _below(name, *RUNNING)]
    reached: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in reached:
            reached.add(name)
            pending += [each for each in imports[name] if each in MODULES]
    compilers = ("passes", "targets", "models", "compiler", "cli", "bench", "report", "backend", "frontend", "graph")
    forbidden = ("onnx", "onnx_ir", "onnxscript", "tvm", "networkx", "highspy", *(f"graphopt.{c}" for c in compilers))
    return _crossing(imports, lambda name: name in reached, *forbidden)


def torch_for_ranks(imports: Imports) -> list[str]:
    """PyTorch is for models, ranks and peers."""
    allowed = ("graphopt.models", "graphopt.distributed", "graphopt.frontend.torch_module", "graphopt.bench")
    return _crossing(imports, lambda name: not _below(name, *allowed), "torch")


def no_code_in_data(imports: Imports) -> list[str]:
    """Nothing executes data."""
    return _crossing(imports, lambda _: True, "pickle", "marshal", "shelve", "dill", "cloudpickle")


RULES: dict[Callable[[Imports], list[str]], tuple[str, str]] = {
    downwards: ("graphopt.graph.edit", "graphopt.frontend.torch_module"),
    circles: ("graphopt.errors", "graphopt.artifact"),
    tvm_in_targets: ("graphopt.lowering.stage", "tvm"),
    tvm_runtime: ("graphopt.runtime.session", "tvm_ffi"),
    importer: ("graphopt.targets.common.native", "tvm.relax.frontend.onnx.onnx_frontend"),
    passes_alone: ("graphopt.passes.fuse.fuse", "graphopt.lowering.target"),
    targets_see_devices: ("graphopt.targets.cpu.target", "graphopt.runtime.session"),
    targets_apart: ("graphopt.targets.gpu.rules", "graphopt.targets.cpu.kernels.gemm"),
    spine_alone: ("graphopt.lowering.stage", "graphopt.targets"),
    models_alone: ("graphopt.models.zoo", "graphopt.graph.edit"),
    zoo_through_the_front_end: ("graphopt.verify.oracle", "graphopt.models.zoo"),
    running_needs_no_compiler: ("graphopt.program.check", "networkx"),
    torch_for_ranks: ("graphopt.runtime.session", "torch"),
    no_code_in_data: ("graphopt.artifact", "pickle"),
}
"""Every rule, and an import that breaks it."""


def _seen(rule: Callable[[Imports], list[str]]) -> Imports:
    """What a rule looks at: of what runs an artifact, the imports that load; of all else, those for types too."""
    return LOADED if rule is running_needs_no_compiler else IMPORTS


def _named(rule: Callable[[Imports], list[str]]) -> str:
    return rule.__name__


@pytest.mark.parametrize("rule", RULES, ids=_named)
def test_rule_holds(rule: Callable[[Imports], list[str]]) -> None:
    assert rule(_seen(rule)) == []


@pytest.mark.parametrize("rule", RULES, ids=_named)
def test_rule_fails_on_a_planted_import(rule: Callable[[Imports], list[str]]) -> None:
    module, imported = RULES[rule]
    assert module in MODULES
    if imported.startswith("graphopt."):
        assert imported in MODULES
    imports = _seen(rule)
    assert rule({**imports, module: {*imports[module], imported}}) != []


def test_every_folder_is_seen() -> None:
    for package in FOLDERS.values():
        assert sum(_below(name, package) for name in MODULES) > 5


def test_imports_are_seen_where_they_hide() -> None:
    assert "graphopt.targets" in IMPORTS["graphopt.compiler"]  # inside a function
    assert "graphopt.runtime.session" in IMPORTS["graphopt.artifact"]
    assert "graphopt.pipeline.pipeline" in IMPORTS["graphopt.options"]  # for type checkers
    assert "graphopt.pipeline.pipeline" not in LOADED["graphopt.options"]


def test_computed_imports_are_known() -> None:
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    assert {name for name, tree in trees.items() if None in _called_imports(tree)} == set(COMPUTED)


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import importlib\nimportlib.import_module('graphopt.targets')", "graphopt.targets"),
        ("from importlib import import_module\nimport_module('tvm')", "tvm"),
        ("import importlib\nimportlib.import_module(name='tvm')", "tvm"),
        ("__import__('torch')", "torch"),
        ("import runpy\nrunpy.run_module('tvm')", "tvm"),
        ("import importlib\nimportlib.import_module('..targets', 'graphopt.runtime')", None),
        ("import importlib\nimportlib.import_module(f'graphopt.{x}')", None),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    __import__('networkx')", "networkx"),
    ],
)
def test_calls_that_import_are_seen(source: str, imported: str | None) -> None:
    assert list(_called_imports(ast.parse(source), types=False)) == [imported]


def test_every_folder_of_sources_is_a_package() -> None:
    folders = {path.parent for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_pass_is_listed() -> None:
    from graphopt.passes import PASSES

    defined = {
        (name, node.name)
        for name, path in MODULES.items()
        if _below(name, "graphopt.passes")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and "Pass" in map(_last_name, node.bases)
    }
    assert defined == set(PASSES.values())


def test_every_package_has_a_place() -> None:
    below = {name.split(".")[1] for name in MODULES if "." in name}
    assert below == {entry.split(".")[0] for entry in ORDER if entry}


@pytest.mark.parametrize("name", ["graphopt", "graphopt.passes", "graphopt.targets", "graphopt.models"])
def test_packages_load_nothing_heavy(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    for function in [node for node in tree.body if isinstance(node, ast.FunctionDef)]:
        tree.body.remove(function)
    nodes = list(_walk(tree, types=False))
    top = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    top |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    light = ("__future__", "importlib", "importlib.util", "typing", "graphopt.errors", "graphopt.version")
    assert top <= {*light, "graphopt.models.samples", "graphopt.models.zoo"}


@pytest.mark.parametrize("folder", [*FOLDERS, "tests", "benchmarks"])
def test_folders_and_files_stay_small(folder: str) -> None:
    """A file is read in one sitting, and a folder is looked over at once."""
    files = sorted((ROOT / folder).rglob("*.py"))
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}
    counts: dict[str, int] = {}
    for path in files:
        counts[str(path.parent.relative_to(ROOT))] = counts.get(str(path.parent.relative_to(ROOT)), 0) + 1
    full = {name: count for name, count in counts.items() if count - 1 > 16 and name not in FULL}
    assert full == {}


FULL = {
    "graphopt/cli": "a file for each command",
    "models": "a file for each family of models",
    "targets/common/converters": "a file for each family of operators",
    "tests": "mirrors what lies right below graphopt",
    "tests/helpers": "a file for each thing that tests share",
    "tests/targets/cpu/kernels": "a file for each kernel",
}
"""Folders of many files, and why."""
