"""Fallback segments: an ONNX model inside the program that ONNX Runtime runs on the values of the stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.program.program import FallbackSegment, Value
from graphopt.program.weights import Array
from graphopt.runtime.onnx_session import ONNX_TYPES, open_session, short


def bind(
    segment: FallbackSegment,
    model: memoryview,
    weights: Mapping[str, Array],
    values: Mapping[str, Value],
    arrays: Mapping[str, Array],
    host: dict[str, Any],
    threads: int,
) -> Callable[[], None]:
    """A function that runs the segment once: reads `arrays` and `host`, and writes to them.

    Tensors are bound in place, without copies. ONNX Runtime allocates the outputs instead, and they are copied, if a
    HOST value takes part, or an empty tensor, which has no address to bind, or an output of which ONNX Runtime infers
    another shape than it computes, as of pools with ceil_mode.

    Args:
        segment: what to run.
        model: the ONNX file.
        weights: the initializers that the model takes from the weights file.
        values: the stage's values by name.
        arrays: the memory of every value that is not HOST.
        host: the current HOST objects by name; read and written.
        threads: threads of this segment.

    Raises:
        ArtifactError: ONNX Runtime does not accept the model.
    """
    try:
        session = open_session(bytes(model), weights, threads, segment.spin)
    except Exception as error:
        raise ArtifactError(f"ONNX Runtime refuses the fallback model {segment.model}: {short(error)}") from error
    shapes = {item.name: item.shape for item in session.get_outputs()}
    names = {item.name for item in session.get_inputs()}, set(shapes)
    if not names[0] <= set(segment.inputs) or not set(segment.outputs) <= names[1]:
        raise ArtifactError(f"the inputs and outputs of fallback model {segment.model} are not those of the program")
    inputs = [name for name in segment.inputs if name in names[0]]
    bindable = all(name in arrays and arrays[name].size for name in (*inputs, *segment.outputs))
    if bindable and all(_expects(shapes[name], arrays[name]) for name in segment.outputs):
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
            elif not result.size and not arrays[name].size:
                continue  # an empty array: the planned shape is as good
            elif result.shape != arrays[name].shape:
                raise GraphoptError(f"value {name!r} has shape {result.shape}, and {arrays[name].shape} was planned")
            else:
                np.copyto(arrays[name], result)

    return _named(segment, run)


def _buffer(value: Value, array: Array) -> tuple[int, tuple[int, ...], int]:
    return ONNX_TYPES[value.dtype], array.shape, array.ctypes.data


def _expects(shape: Sequence[object] | None, array: Array) -> bool:
    """Whether an output with this inferred shape may be written into `array`."""
    if shape is None:
        return True
    known = [extent if not isinstance(dim, int) else dim for dim, extent in zip(shape, array.shape, strict=False)]
    return len(shape) == array.ndim and known == list(array.shape)


def _named(segment: FallbackSegment, run: Callable[[], None]) -> Callable[[], None]:
    def named() -> None:
        try:
            run()
        except GraphoptError:
            raise
        except Exception as error:
            raise GraphoptError(f"ONNX Runtime failed in fallback model {segment.model}: {short(error)}") from error

    return named
