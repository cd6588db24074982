"""A fallback segment: an ONNX model inside the program that ONNX Runtime runs on the values of the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.program import FallbackSegment, Value
from graphopt.weights import Array

_ONNX_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    "float64": 11, "uint32": 12, "uint64": 13, "bfloat16": 16,
}  # fmt: skip
"""onnx.TensorProto.DataType, spelled out because the runtime does not import onnx."""


def bind(
    segment: FallbackSegment,
    model: memoryview,
    values: Mapping[str, Value],
    arrays: Mapping[str, Array],
    host: dict[str, Any],
    threads: int,
) -> Callable[[], None]:
    """A function that runs the segment once: from `arrays` and `host` into them.

    Tensors are bound in place, without copies. If a HOST value takes part (or an empty tensor, which has no address to
    bind), ONNX Runtime allocates the outputs instead and they are copied.

    Args:
        segment: what to run.
        model: the ONNX file.
        values: the stage's values by name.
        arrays: the memory of every value that is not HOST.
        host: the current HOST objects by name; read and written.
        threads: of this segment.

    Raises:
        ArtifactError: ONNX Runtime does not accept the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Its idle threads would spin on the cores where the kernels of the next segment run.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = onnxruntime.InferenceSession(bytes(model), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArtifactError(f"ONNX Runtime refuses the fallback model {segment.model}: {_short(error)}") from error
    names = {item.name for item in session.get_inputs()}, {item.name for item in session.get_outputs()}
    if not names[0] <= set(segment.inputs) or not set(segment.outputs) <= names[1]:
        raise ArtifactError(f"the inputs and outputs of fallback model {segment.model} are not those of the program")
    inputs = [name for name in segment.inputs if name in names[0]]
    if all(name in arrays and arrays[name].size for name in (*inputs, *segment.outputs)):
        binding = session.io_binding()
        for name in inputs:
            binding.bind_input(name, "cpu", 0, *_buffer(values[name], arrays[name]))
        for name in segment.outputs:
            binding.bind_output(name, "cpu", 0, *_buffer(values[name], arrays[name]))
        return _named(segment, lambda: session.run_with_iobinding(binding))

    def run() -> None:
        feeds = {name: arrays[name] if name in arrays else host[name] for name in inputs}
        for name, result in zip(segment.outputs, session.run(list(segment.outputs), feeds), strict=True):
            if name not in arrays:
                host[name] = result
            elif result.shape != arrays[name].shape:
                raise GraphoptError(f"value {name!r} has shape {result.shape}, and {arrays[name].shape} was planned")
            else:
                np.copyto(arrays[name], result)

    return _named(segment, run)


def _buffer(value: Value, array: Array) -> tuple[int, tuple[int, ...], int]:
    return _ONNX_TYPES[value.dtype], array.shape, array.ctypes.data


def _named(segment: FallbackSegment, run: Callable[[], None]) -> Callable[[], None]:
    def named() -> None:
        try:
            run()
        except GraphoptError:
            raise
        except Exception as error:
            raise GraphoptError(f"ONNX Runtime failed in fallback model {segment.model}: {_short(error)}") from error

    return named


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
