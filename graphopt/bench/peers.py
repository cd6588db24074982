"""What is timed: graphopt, and the runtimes it is held against. `PEERS` names the latter."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from graphopt.errors import GraphoptError

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Feeds by input name -> outputs by name, arrays of the caller's own."""


class Peer(Protocol):
    """A runtime that can be timed. `model` is the file it takes: an artifact for graphopt, ONNX for the others."""

    @property
    def name(self) -> str:
        """As the table shows it."""

    @property
    def prepared(self) -> bool:
        """Whether it takes the model as `graphopt.load` prepared it (static, constants folded), not the user's file."""

    @property
    def compiles(self) -> bool:
        """Whether it generates code in `open`; its memory is not measured then: the compiler's would be in it."""

    def load(self) -> None:
        """Import the library, so that neither time nor memory of that counts as the model's."""

    def open(self, model: Path, threads: int, costs: str | None = None) -> Run:
        """Ready to run `model` with `threads` threads per operator; `costs` is what graphopt's own choices go by."""


class Graphopt:
    """An artifact in this process."""

    name = "graphopt"
    prepared = False
    compiles = False

    def load(self) -> None:
        """TVM's runtime, not its compiler."""
        from graphopt.runtime import library

        library.runtime()

    def open(self, model: Path, threads: int, costs: str | None = None) -> Run:
        """A session."""
        import graphopt

        return graphopt.open(model).session(threads=threads).run


class OnnxRuntime:
    """ONNX Runtime on the CPU as it comes: all graph optimizations, its threads spin while they wait for work."""

    name = "onnxruntime"
    prepared = False
    compiles = False

    def load(self) -> None:
        """The module."""
        importlib.import_module("onnxruntime")

    def open(self, model: Path, threads: int, costs: str | None = None) -> Run:
        """An inference session."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        try:
            session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise GraphoptError(f"ONNX Runtime cannot open {model}: {' '.join(str(error).split())[:300]}") from error
        names = [output.name for output in session.get_outputs()]

        def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            return dict(zip(names, session.run(names, feeds), strict=True))

        return run


class Torch:
    """torch, operator by operator (eager), of the graph that `torch_model` converts."""

    name = "torch"
    prepared = True
    compiles = False

    def load(self) -> None:
        """The module. It must come before TVM's: the other order aborts the process."""
        importlib.import_module("torch")

    def open(self, model: Path, threads: int, costs: str | None = None) -> Run:
        """The module of the model."""
        import torch

        module = self.module(model, threads)
        inputs, outputs = module.input_names, module.output_names
        function = self.function(module)

        def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            with torch.inference_mode():
                results = function(*(torch.from_numpy(feeds[name]) for name in inputs))
            return {name: result.numpy() for name, result in zip(outputs, results, strict=True)}

        return run

    def module(self, model: Path, threads: int) -> Any:
        """The converted model, and torch told its threads."""
        import torch

        from graphopt.bench.torch_model import Graph

        torch.set_num_threads(threads)
        return Graph(model).eval()

    def function(self, module: Any) -> Callable[..., Any]:
        """What is called with the inputs."""
        found: Callable[..., Any] = module
        return found


class TorchCompile(Torch):
    """`torch.compile` of the same module with its default mode, nothing taken from its caches."""

    name = "torch-compile"
    compiles = True

    def function(self, module: Any) -> Callable[..., Any]:
        """Compiled at the first call."""
        import torch
        import torch._inductor.config as inductor

        if not any(shutil.which(each) for each in (os.environ.get("CXX", ""), "g++", "clang++") if each):
            raise GraphoptError(
                "torch.compile needs a C++ compiler, and this machine has none: install g++ or name one in CXX"
            )
        inductor.force_disable_caches = True
        inductor.compile_threads = 1  # no pool of processes that competes with what is timed
        found: Callable[..., Any] = torch.compile(module, dynamic=False)
        return found


class Tvm:
    """TVM as it comes: its own ONNX importer and its default pipeline, without tuning and without our schedules."""

    name = "tvm"
    prepared = True
    compiles = True

    def load(self) -> None:
        """The compiler."""
        from graphopt.runtime import library

        library.compiler()

    def open(self, model: Path, threads: int, costs: str | None = None) -> Run:
        """Compiled with the default pipeline."""
        import onnx

        from graphopt.runtime import library
        from graphopt.targets.default_pipeline import compile_default

        proto = onnx.load(model)
        constants = {each.name for each in proto.graph.initializer}
        inputs = [each.name for each in proto.graph.input if each.name not in constants]
        outputs = [each.name for each in proto.graph.output]
        function = compile_default(proto)
        pool = library.Threads(threads)

        def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            pool.apply()
            return dict(zip(outputs, function([feeds[name] for name in inputs]), strict=True))

        return run


class Greedy:
    """graphopt where each convolution takes what is best for itself, whatever conversions that makes."""

    name = "greedy"
    prepared = True
    compiles = True

    def load(self) -> None:
        """The compiler."""
        from graphopt.runtime import library

        library.compiler()

    def open(self, model: Path, threads: int, costs: str | None = None) -> Run:
        """A session of the model with the other strategy."""
        from graphopt.compiler import compile_model
        from graphopt.passes import DEFAULT, SelectConv

        passes = DEFAULT.replace(SelectConv.name, f"{SelectConv.name}{{strategy={self.name}}}")
        return compile_model(str(model), passes=passes, costs=costs, threads=threads).artifact.session(threads).run


class SingleLayout(Greedy):
    """graphopt where all convolutions work on one layout, the better one."""

    name = "single-layout"


PEERS: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("graphopt.bench.peers", "OnnxRuntime"),
    "torch": ("graphopt.bench.peers", "Torch"),
    "torch-compile": ("graphopt.bench.peers", "TorchCompile"),
    "tvm": ("graphopt.bench.peers", "Tvm"),
    "greedy": ("graphopt.bench.peers", "Greedy"),
    "single-layout": ("graphopt.bench.peers", "SingleLayout"),
}
"""Name -> module and class."""

DEFAULT = ("onnxruntime",)


def peer(name: str) -> Peer:
    """The peer of that name, or graphopt itself."""
    if name == Graphopt.name:
        return Graphopt()
    module, attribute = PEERS[name]
    found: Peer = getattr(importlib.import_module(module), attribute)()
    return found
