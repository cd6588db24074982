"""ONNX Runtime sessions with the options that a program runs them with; the compiler opens models the same way."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.program.weights import Array

if TYPE_CHECKING:
    import onnxruntime

ONNX_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
"""onnx.TensorProto.DataType, spelled out because the runtime does not import onnx."""

_SILENT = 4


def open_session(
    model: bytes, weights: Mapping[str, Array], threads: int, spin: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the CPU.

    Args:
        model: the ONNX file; external initializers are taken from `weights` by name.
        weights: arrays of at least one element.
        threads: threads per operator.
        spin: idle threads busy-wait, on the cores where the kernels of the next segment would run.

    Raises:
        Exception: ONNX Runtime rejects the model; its exceptions share no base class.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _SILENT  # errors are raised too
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if weights:
        options.add_external_initializers(
            list(weights), [ort_value(np.ascontiguousarray(array)) for array in weights.values()]
        )
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run_bounded(session: onnxruntime.InferenceSession, feeds: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """Run once with a time limit; returns the outputs by name.

    Raises:
        Exception: the run failed, or exceeded the limit.
    """
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = _SILENT
    names = [output.name for output in session.get_outputs()]
    taken = {item.name for item in session.get_inputs()}
    timer = threading.Timer(seconds, lambda: setattr(options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        results = session.run(names, {name: feed for name, feed in feeds.items() if name in taken}, options)
    finally:
        timer.cancel()
    return dict(zip(names, results, strict=True))


def ort_value(array: Array) -> Any:
    """`array` as an OrtValue on the same memory."""
    import onnxruntime

    if array.dtype.name == "bfloat16":  # numpy has no such dtype of its own
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, ONNX_TYPES["bfloat16"])
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def short(error: BaseException) -> str:
    """ONNX Runtime's message in one line of bounded length, without its codes and source files."""
    words = [word for word in str(error).split() if not word.startswith("/onnxruntime_src/")]
    text = " ".join(words)
    for code in ("[ONNXRuntimeError]", ": 1 : FAIL :", ": 2 : INVALID_ARGUMENT :", ": 9 : NOT_IMPLEMENTED :"):
        text = text.replace(code, "").strip()
    return text.rstrip(".")[:300]
