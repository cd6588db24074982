"""The reference engine: ONNX Runtime runs the step model, with its state as inputs and outputs.

w = 1 --> step(x, labels, lr; w) --> loss, w.next --> w
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import FeedError, GraphoptError
from graphopt.graph.constness import is_state, stored
from graphopt.graph.state import exposed, next_value, role, states
from graphopt.program.program import Port
from graphopt.training.engine import Array, mismatch
from graphopt.verify.oracle import open_onnxruntime


class ReferenceEngine:
    """Runs a step model in ONNX Runtime, without its graph optimizations.

    The state lives in ONNX Runtime's own tensors: the outputs of one step are inputs of the next without a copy.
    """

    def __init__(self, model: ir.Model, threads: int | None = None) -> None:
        """Open the step model; its initializers are the state that training begins with.

        Args:
            model: a step model, which is not modified.
            threads: threads of each operator; None leaves it to ONNX Runtime.

        Raises:
            ModelError: the metadata of a state value are wrong.
            GraphoptError: a state value or an input has no fixed type and shape, or ONNX Runtime rejects the model.
        """
        graph = model.graph
        self._threads = threads
        self.inputs: tuple[Port, ...] = ports(model)
        self._roles = {_name(value): str(role(value)) for value in states(graph)}
        self._next = {
            _name(value): _name(following)
            for value in states(graph)
            if (following := next_value(value, graph)) is not None
        }
        replaced = set(self._next.values())
        self._outputs = [_name(value) for value in graph.outputs if value.name not in replaced]
        self._wanted = list(dict.fromkeys([*self._outputs, *self._next.values()]))
        with contextlib.ExitStack() as stack:
            self._session: Any = stack.enter_context(open_onnxruntime(exposed(model), threads=threads))
            self._state = {_name(value): _tensor(initial(value)) for value in states(graph)}
            stack.pop_all()  # ONNX Runtime reads large weights from the files until the session ends

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes of the state by role."""
        found: dict[str, int] = {}
        for name, value in self._state.items():
            found[self._roles[name]] = found.get(self._roles[name], 0) + value.tensor_size_in_bytes()
        return found

    @property
    def identity(self) -> str:
        """The version of ONNX Runtime, and its threads."""
        import onnxruntime

        return f"onnxruntime {onnxruntime.__version__} on {_counted(self._threads)}"

    def step(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run one step; see `Engine.step`."""
        given = {name: _tensor(np.asarray(feed, order="C")) for name, feed in feeds.items()}
        try:
            values = self._session.run_with_ort_values(self._wanted, {**given, **self._state})
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            raise GraphoptError(f"ONNX Runtime cannot run the step: {' '.join(str(error).split())}") from error
        found = dict(zip(self._wanted, values, strict=True))
        self._state |= {name: found[following] for name, following in self._next.items()}
        return {name: found[name].numpy() for name in self._outputs}

    def state(self) -> dict[str, Array]:
        """Copies of the state values by name."""
        return {name: np.array(value.numpy()) for name, value in self._state.items()}

    def load_state(self, state: Mapping[str, Array]) -> None:
        """Replace the state values by copies; see `Engine.load_state`."""
        if (why := mismatch({name: value.numpy() for name, value in self._state.items()}, state)) is not None:
            raise FeedError(f"this is the state of another model: {why}; load one of this model")
        self._state = {name: _tensor(np.array(state[name])) for name in self._state}


def ports(model: ir.Model) -> tuple[Port, ...]:
    """The inputs of a step model that are no state.

    Raises:
        GraphoptError: an input has no fixed type and shape.
    """
    found = []
    for value in model.graph.inputs:
        if is_state(value):
            continue
        if value.dtype is None or value.shape is None or not value.shape.is_static():
            raise GraphoptError(f"input {value.name} of the step model has no fixed type and shape; load it with some")
        found.append(Port(_name(value), value.dtype.numpy().name, tuple(value.shape.numpy())))
    return tuple(found)


def initial(value: ir.Value) -> Array:
    """The number that a state value begins with.

    Raises:
        GraphoptError: it has none, or a type that ONNX Runtime cannot compute with.
    """
    tensor = stored(value)
    if tensor is None:
        raise GraphoptError(f"state {value.name} has no value to begin with; make it an initializer")
    array = np.array(tensor.numpy())
    if array.dtype.kind not in "fiub":
        raise GraphoptError(
            f"state {value.name} is {array.dtype}, which ONNX Runtime does not compute with; use the compiled engine"
        )
    return array


def _counted(threads: int | None) -> str:
    return "threads by default" if threads is None else f"{threads} threads"


def _tensor(array: Array) -> Any:
    """ONNX Runtime's tensor over the array's own memory."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _name(value: ir.Value) -> str:
    return str(value.name)
