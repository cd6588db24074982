"""The sides of a benchmark: graphopt, and the runtimes it is compared with, which `PEERS` names."""

from __future__ import annotations

import functools
import importlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from graphopt.bench import timing
from graphopt.bench.sides import HostSide, Settings, Side
from graphopt.errors import GraphoptError


class Peer(Protocol):
    """A runtime to time. `model` is the file it opens: an artifact for graphopt, ONNX for the others."""

    @property
    def name(self) -> str:
        """The name in the table."""

    @property
    def prepared(self) -> bool:
        """Whether it opens the model as `graphopt.load` prepared it (static, constants folded), not the user's file."""

    @property
    def compiles(self) -> bool:
        """Whether `open` generates code; its memory is then not measured, because it would include the compiler's."""

    def load(self) -> None:
        """Import the library, so that the model's time and memory do not include the import."""

    def open(self, model: Path, settings: Settings) -> Side:
        """A side that is ready to run `model`."""


class Graphopt:
    """An artifact in this process."""

    name = "graphopt"
    prepared = False
    compiles = False

    def load(self) -> None:
        """Load TVM's runtime, not its compiler."""
        from graphopt.runtime.devices import library

        library.runtime()

    def open(self, model: Path, settings: Settings) -> Side:
        """One session, or several on a device."""
        from graphopt.artifact import open_artifact

        if settings.target != "llvm":
            from graphopt.bench.device import DeviceSide

            return DeviceSide(model, settings)
        return HostSide(open_artifact(model).session(threads=settings.threads).run)


class OnnxRuntime:
    """ONNX Runtime with its defaults: all graph optimizations, threads that spin while they wait for work.

    On an NVIDIA GPU its inputs and outputs stay there, and it is timed by the host's clock, waiting for each run.
    """

    name = "onnxruntime"
    prepared = False
    compiles = False

    def load(self) -> None:
        """Import onnxruntime."""
        importlib.import_module("onnxruntime")

    def open(self, model: Path, settings: Settings) -> Side:
        """An inference session, on the CPU or a GPU."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        provider = "CUDAExecutionProvider" if settings.cuda else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise GraphoptError("this ONNX Runtime has no CUDA: install onnxruntime-gpu in place of onnxruntime")
        if settings.cuda and settings.precision != "fp32":
            raise GraphoptError(f"ONNX Runtime runs the model as it is, which is not in {settings.precision}")
        try:
            session = onnxruntime.InferenceSession(str(model), options, providers=[provider])
        except Exception as error:  # its exceptions share no base class
            raise GraphoptError(f"ONNX Runtime cannot open {model}: {' '.join(str(error).split())[:300]}") from error
        names = [output.name for output in session.get_outputs()]
        if settings.cuda:
            return _BoundSide(session, names)

        def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            return dict(zip(names, session.run(names, feeds), strict=True))

        return HostSide(run)


class _BoundSide:
    """A session of ONNX Runtime on a GPU, with inputs and outputs in its memory."""

    device_bytes: int | None = None
    sets = 1

    def __init__(self, session: Any, names: list[str]) -> None:
        """Args: names: the outputs."""
        self._session, self._names = session, names

    def _bound(self, feeds: Mapping[str, Any]) -> Any:
        import onnxruntime

        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
        for name in self._names:
            binding.bind_output(name, "cuda")
        return binding

    def run(self, feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        """The outputs by name, copied to the host."""
        binding = self._bound(feeds)
        self._session.run_with_iobinding(binding)
        return dict(zip(self._names, binding.copy_outputs_to_cpu(), strict=True))

    def block(self, feeds: Mapping[str, Any]) -> timing.Block:
        """A block of runs on bound memory, timed by the host's clock."""
        return timing.by_clock(functools.partial(self._session.run_with_iobinding, self._bound(feeds)))


class Torch:
    """torch, operator by operator (eager), on the graph that `torch_model` converts."""

    name = "torch"
    prepared = True
    compiles = False

    def load(self) -> None:
        """Import torch, before TVM: the other order aborts the process."""
        importlib.import_module("torch")

    def open(self, model: Path, settings: Settings) -> Side:
        """The module of the model, on the CPU or a GPU."""
        import torch

        torch.set_num_threads(settings.threads)
        if settings.cuda:
            from graphopt.bench.peers.torch_cuda import TorchCudaSide

            return TorchCudaSide(model, settings, self.on_gpu)
        from graphopt.bench.peers.torch_model import Graph

        module = Graph(model).eval()
        inputs, outputs = module.input_names, module.output_names
        function = self.function(module)

        def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            with torch.inference_mode():
                results = function(*(torch.from_numpy(feeds[name]) for name in inputs))
            return {name: result.numpy() for name, result in zip(outputs, results, strict=True)}

        return HostSide(run)

    def function(self, module: Any) -> Callable[..., Any]:
        """The function that is called with the inputs."""
        forward: Callable[..., Any] = module
        return forward

    def on_gpu(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """The function that is called with the constants and the inputs, and captured."""
        return compute


class TorchCompile(Torch):
    """`torch.compile` of the same module, with its caches disabled.

    In its default mode on the CPU; on a GPU in the mode "max-autotune" without its own CUDA graphs: the graph is
    captured as for eager, so that no input is copied into it and it can be captured for several sets of memory.
    """

    name = "torch-compile"
    compiles = True

    def function(self, module: Any) -> Callable[..., Any]:
        """The compiled module; `torch.compile` compiles it in the first call."""
        import torch
        import torch._inductor.config as inductor

        self._require_compiler()
        inductor.compile_threads = 1  # no process pool that competes with the timed runs
        compiled: Callable[..., Any] = torch.compile(module, dynamic=False)
        return compiled

    def on_gpu(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled function; `torch.compile` compiles it in the first call."""
        import torch

        self._require_compiler()
        compiled: Callable[..., Any] = torch.compile(compute, dynamic=False, mode="max-autotune-no-cudagraphs")
        return compiled

    def _require_compiler(self) -> None:
        import torch._inductor.config as inductor

        if not any(shutil.which(compiler) for compiler in (os.environ.get("CXX", ""), "g++", "clang++") if compiler):
            raise GraphoptError(
                "torch.compile needs a C++ compiler, and this machine has none: install g++ or name one in CXX"
            )
        inductor.force_disable_caches = True


class Tvm:
    """TVM with its defaults: its own ONNX importer and default pipeline, without tuning and without our schedules."""

    name = "tvm"
    prepared = True
    compiles = True

    def load(self) -> None:
        """Import TVM's compiler."""
        from graphopt.runtime.devices import library

        library.compiler()

    def open(self, model: Path, settings: Settings) -> Side:
        """The model compiled with TVM's default pipeline."""
        _require_cpu(self.name, settings)
        import onnx

        from graphopt.runtime.devices import library
        from graphopt.targets.cpu.default_pipeline import compile_default

        proto = onnx.load(model)
        constants = {tensor.name for tensor in proto.graph.initializer}
        inputs = [value.name for value in proto.graph.input if value.name not in constants]
        outputs = [value.name for value in proto.graph.output]
        function = compile_default(proto)
        pool = library.Threads(settings.threads)

        def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
            pool.apply()
            return dict(zip(outputs, function([feeds[name] for name in inputs]), strict=True))

        return HostSide(run)


class Variant:
    """graphopt itself with options of some passes."""

    name = ""
    prepared = True
    compiles = True

    def load(self) -> None:
        """Import the compiler."""
        from graphopt.runtime.devices import library

        library.compiler()

    def open(self, model: Path, settings: Settings) -> Side:
        """A session of the model compiled with these options."""
        _require_cpu(self.name, settings)
        from graphopt.compiler import compile_model
        from graphopt.passes import DEFAULT

        options = self.options()
        passes = ",".join(name + options.get(name, "") for name in DEFAULT.split(",") if options.get(name) != "")
        compiled = compile_model(str(model), passes=passes, costs=settings.costs, threads=settings.threads)
        return HostSide(compiled.artifact.session(settings.threads).run)

    def options(self) -> Mapping[str, str]:
        """Pass -> its options as text; an empty text leaves the pass out.

        By default another strategy of select-conv, which has the name of the peer.
        """
        from graphopt.passes import SelectConv

        return {SelectConv.name: f"{{strategy={self.name}}}"}


class Greedy(Variant):
    """graphopt with greedy selection: each convolution takes its own best algorithm, whatever the conversions cost."""

    name = "greedy"


class SingleLayout(Variant):
    """graphopt with all convolutions on one layout, the better one."""

    name = "single-layout"


class Dense(Variant):
    """graphopt without what it does for zeros: every product and convolution reads all of its weights."""

    name = "dense"

    def options(self) -> Mapping[str, str]:
        """The passes on zeros are left out, and the algorithm of sparse convolutions."""
        from graphopt.passes import ClusterSparse, SelectConv, SkipZeros
        from graphopt.passes.conv.algorithms import Algorithm

        dense = "+".join(algorithm for algorithm in Algorithm if algorithm is not Algorithm.SPARSE)
        return {ClusterSparse.name: "", SkipZeros.name: "", SelectConv.name: f"{{algorithms={dense}}}"}


def _require_cpu(name: str, settings: Settings) -> None:
    if settings.target != "llvm":
        raise GraphoptError(f"{name} is a peer on CPUs; leave out --target {settings.target}")


PEERS: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("graphopt.bench.peers.runtimes", "OnnxRuntime"),
    "torch": ("graphopt.bench.peers.runtimes", "Torch"),
    "torch-compile": ("graphopt.bench.peers.runtimes", "TorchCompile"),
    "tvm": ("graphopt.bench.peers.runtimes", "Tvm"),
    "dense": ("graphopt.bench.peers.runtimes", "Dense"),
    "greedy": ("graphopt.bench.peers.runtimes", "Greedy"),
    "single-layout": ("graphopt.bench.peers.runtimes", "SingleLayout"),
}
"""Name -> module and class."""

DEFAULTS = {"cuda": ("torch", "torch-compile")}
DEFAULT = ("onnxruntime",)
"""Peers of a target by default, where `DEFAULTS` has no entry for it."""


def peer(name: str) -> Peer:
    """The peer called `name`, or graphopt itself."""
    if name == Graphopt.name:
        return Graphopt()
    module, attribute = PEERS[name]
    instance: Peer = getattr(importlib.import_module(module), attribute)()
    return instance
