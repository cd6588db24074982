"""Nodes written as text, native on OpenCL alone, run on PoCL and held against ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.compiler import compile_model
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
