"""Nodes written as text, native on OpenCL alone, run on PoCL and held against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.compiler import compile_model
from graphopt.targets.gpu.target import CudaTarget
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.lab import make_model

Array = NDArray[Any]


def execute(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The outputs of kernels on poisoned memory, no node of which ran elsewhere and no schedule of which failed."""
    compiled = compile_model(model.clone(), target="opencl", passes="", fallback=False)
    assert not [note for note in compiled.notes if note.startswith("kernel")]
    session = compiled.artifact.session()
    session.measure_arena(feeds)
    return dict(session.run(feeds))


def agree(
    body: str,
    feeds: Mapping[str, Array],
    constants: Mapping[str, Array] | None = None,
    outputs: Sequence[str] = ("y",),
    rtol: float = 1e-5,
) -> dict[str, Array]:
    """Kernels compute what ONNX Runtime does, within `rtol` of the largest number of an output."""
    model = make_model(body, feeds, constants or {}, outputs, 21)
    found, expected = execute(model, feeds), run_onnxruntime(model, feeds)
    for name in outputs:
        known = expected[name]
        scale = np.abs(known[np.isfinite(known)]).max(initial=0) if known.dtype.kind == "f" else 0
        np.testing.assert_allclose(found[name], known, rtol=0, atol=rtol * float(scale), err_msg=name)
    return found


def assemble(model: ir.Model, level: str) -> list[str]:
    """Make machine code of all nodes, which are native; the symbols of the kernels."""
    target, graph = CudaTarget(level, cache=True), model.graph
    refused = {n.name: r for n in graph if (r := target.supports(n, model.opset_imports)) is not None}
    assert not refused
    lowered = target.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
    assert not lowered.notes
    assert set(target.images(lowered.functions)) == {call.symbol for call in lowered.calls}
    return list(lowered.functions)
