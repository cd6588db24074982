"""What is timed: graphopt, and the runtimes it is held against. `PEERS` names the latter."""

from __future__ import annotations

import importlib
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

    def load(self) -> None:
        """Import the library, so that neither time nor memory of that counts as the model's."""

    def open(self, model: Path, threads: int) -> Run:
        """Ready to run `model` with `threads` threads per operator."""


class Graphopt:
    """An artifact in this process."""

    name = "graphopt"

    def load(self) -> None:
        """TVM's runtime, not its compiler."""
        from graphopt.runtime import library

        library.runtime()

    def open(self, model: Path, threads: int) -> Run:
        """A session."""
        import graphopt

        return graphopt.open(model).session(threads=threads).run


class OnnxRuntime:
    """ONNX Runtime on the CPU as it comes: all graph optimizations, its threads spin while they wait for work."""

    name = "onnxruntime"

    def load(self) -> None:
        """The module."""
        importlib.import_module("onnxruntime")

    def open(self, model: Path, threads: int) -> Run:
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


PEERS: Mapping[str, tuple[str, str]] = {"onnxruntime": ("graphopt.bench.peers", "OnnxRuntime")}
"""Name -> module and class."""


def peer(name: str) -> Peer:
    """The peer of that name, or graphopt itself."""
    if name == Graphopt.name:
        return Graphopt()
    module, attribute = PEERS[name]
    found: Peer = getattr(importlib.import_module(module), attribute)()
    return found
