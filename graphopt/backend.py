"""The compiler as an ONNX backend (`onnx.backend.base`), so that ONNX's own test suite runs on it.

        rep = graphopt.backend.prepare(model)                       nodes that are not native run in ONNX Runtime
        rep = graphopt.backend.prepare(model, fallback=False)       UnsupportedError lists what is not native
    outputs = rep.run([x, y])

A program is static: some operands decide shapes or the structure of loops and must be known at compile time. In most
models they are constants; in the node suite they are graph inputs. `shape_inputs` names them, and `prepare(...,
constants={name: array})` turns inputs into constants; `run` still takes them and checks that they equal the values that
were compiled in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx.backend.base import Backend as OnnxBackend
from onnx.backend.base import BackendRep

from graphopt.compiler import Compilation, compile_model
from graphopt.errors import FeedError, GraphoptError
from graphopt.frontend.load import IR_VERSION
from graphopt.graph.opsets import OPSET
from graphopt.runtime.session import Session

SHAPE_OPERANDS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,),
    "BlackmanWindow": (0,),
    "CenterCropPad": (1,),
    "Col2Im": (1, 2),
    "ConstantOfShape": (0,),
    "CumProd": (1,),
    "CumSum": (1,),
    "DFT": (1, 2),
    "Expand": (1,),
    "HammingWindow": (0,),
    "HannWindow": (0,),
    "MaxUnpool": (2,),
    "MelWeightMatrix": (0, 1, 2, 3, 4),
    "OneHot": (1,),
    "Pad": (1, 3),
    "Range": (0, 1, 2),
    "ReduceL1": (1,),
    "ReduceL2": (1,),
    "ReduceLogSum": (1,),
    "ReduceLogSumExp": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceMin": (1,),
    "ReduceProd": (1,),
    "ReduceSum": (1,),
    "ReduceSumSquare": (1,),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "STFT": (1, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "TopK": (1,),
    "Trilu": (1,),
    "Unsqueeze": (1,),
    "Upsample": (1,),
}
"""Operands that decide a shape or a loop's structure, by position: axes, sizes, pads, repeats, counts, diagonals."""

TARGETS: Mapping[str, str] = {"CPU": "llvm", "CUDA": "cuda", "OPENCL": "opencl"}
"""Device names of ONNX's interface, and ours for OpenCL."""

_STATIC = ("Shape", "Size")


class Prepared(BackendRep):
    """A model and its compiled programs: one for each set of shapes of the inputs that the model leaves open."""

    def __init__(
        self,
        model: onnx.ModelProto,
        constants: Mapping[str, Any],
        *,
        target: str = "llvm",
        fallback: bool = True,
        threads: int = 1,
    ) -> None:
        """Compile the model now, unless an input has an open shape.

        Raises:
            GraphoptError: the model cannot be compiled, or a name in `constants` is no input.
        """
        weights = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in weights]
        self._inputs = tuple(value.name for value in inputs)
        self._constants = dict(constants)
        if unknown := [name for name in self._constants if name not in self._inputs]:
            raise GraphoptError(f"{unknown[0]!r} cannot become a constant: the inputs are {', '.join(self._inputs)}")
        self._model = _with_constants(model, self._constants) if self._constants else model
        self._open = tuple(value.name for value in inputs if value.name not in self._constants and _is_open(value))
        self._target, self._fallback, self._threads = target, fallback, threads
        self._programs: dict[tuple[tuple[int, ...], ...], tuple[Compilation, Session]] = {}
        if not self._open:
            self._program({})

    @property
    def compilation(self) -> Compilation:
        """Record of the compilation for the shapes of the last run; `fallbacks` is empty if all nodes are native.

        Raises:
            GraphoptError: no program is compiled yet, because inputs have open shapes and `run` was not called.
        """
        if not self._programs:
            raise GraphoptError(f"input {self._open[0]!r} has an open shape: the model is compiled by its first run")
        return list(self._programs.values())[-1][0]

    def run(self, inputs: Any, **kwargs: Any) -> tuple[Any, ...]:
        """The outputs in the model's order; `inputs` is a dict by name, a sequence in the model's order, or one array.

        Raises:
            FeedError: the inputs are not those of the model, or one that is compiled in has another value.
        """
        if isinstance(inputs, Mapping):
            feeds = dict(inputs)
        else:
            given = list(inputs) if isinstance(inputs, list | tuple) else [inputs]
            if len(given) > len(self._inputs):
                raise FeedError(f"{len(given)} inputs were given, and the model has {len(self._inputs)}: leave some")
            feeds = dict(zip(self._inputs, given, strict=False))
        for name, value in self._constants.items():
            if name in feeds and not _same(feeds.pop(name), value):
                raise FeedError(f"input {name!r} was compiled in with another value: prepare the model for this one")
        session = self._program(feeds)
        outputs = session.run(feeds)
        return tuple(outputs[port.name] for port in session.outputs)

    def _program(self, feeds: Mapping[str, Any]) -> Session:
        shapes = {name: tuple(np.shape(feeds[name])) for name in self._open if name in feeds}
        key = tuple(shapes.values())
        if key in self._programs:
            self._programs[key] = self._programs.pop(key)  # keep the program of the last run last
        else:
            compilation = compile_model(self._model, target=self._target, shapes=shapes, fallback=self._fallback)
            self._programs[key] = compilation, compilation.artifact.session(threads=self._threads)
        return self._programs[key][1]


def _is_open(value: onnx.ValueInfoProto) -> bool:
    """Whether an input is a tensor with a dimension that the model does not fix."""
    if not value.type.HasField("tensor_type"):
        return False
    tensor = value.type.tensor_type
    return not tensor.HasField("shape") or any(not dim.HasField("dim_value") for dim in tensor.shape.dim)


def _same(given: Any, compiled: Any) -> bool:
    left, right = np.asarray(given), np.asarray(compiled)
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


class Backend(OnnxBackend):
    """`onnx.backend.base.Backend` on this compiler, on the CPU of this host or its first GPU."""

    @classmethod
    def is_compatible(cls, model: onnx.ModelProto, device: str = "CPU", **kwargs: Any) -> bool:
        """Whether `prepare` accepts the model."""
        try:
            cls.prepare(model, device)
        except GraphoptError:
            return False
        return True

    @classmethod
    def prepare(
        cls,
        model: onnx.ModelProto,
        device: str = "CPU",
        *,
        fallback: bool = True,
        constants: Mapping[str, Any] | None = None,
        threads: int = 1,
        **kwargs: Any,
    ) -> Prepared:
        """Compile `model` and open a session; a model with open shapes is compiled in its first run.

        Args:
            model: the model, not modified.
            device: a name in TARGETS, optionally with ":0".
            fallback: whether nodes that are not native may run in ONNX Runtime.
            constants: inputs by name to compile in.
            threads: threads of the session.

        Raises:
            GraphoptError: the model, the device or the constants are rejected.
        """
        if not cls.supports_device(device):
            raise GraphoptError(f"the device {device} is unknown to this backend: use {', '.join(TARGETS)}")
        target = TARGETS[device.removesuffix(":0")]
        return Prepared(model, constants or {}, target=target, fallback=fallback, threads=threads)

    @classmethod
    def run_model(cls, model: onnx.ModelProto, inputs: Any, device: str = "CPU", **kwargs: Any) -> tuple[Any, ...]:
        """Prepare `model` and run it once."""
        return cls.prepare(model, device, **kwargs).run(inputs)

    @classmethod
    def run_node(
        cls,
        node: onnx.NodeProto,
        inputs: Any,
        device: str = "CPU",
        outputs_info: Sequence[tuple[Any, tuple[int, ...]]] | None = None,
        **kwargs: Any,
    ) -> tuple[Any, ...]:
        """Run one node on arrays; `outputs_info` gives (dtype, shape) of outputs that inference cannot determine.

        The opset is the keyword argument `opset_version`, or the one this compiler converts to, or the first that has
        the operator, if that is later.
        """
        super().run_node(node, inputs, device, outputs_info, **kwargs)
        names = [name for name in dict.fromkeys(node.input) if name]
        arrays = dict(inputs) if isinstance(inputs, Mapping) else dict(zip(names, map(np.asarray, inputs), strict=True))
        types = [_info(name, array.dtype, array.shape) for name, array in arrays.items()]
        outputs = [name for name in node.output if name]
        results = [onnx.helper.make_empty_tensor_value_info(name) for name in outputs]
        if outputs_info is not None:
            results = [_info(name, *info) for name, info in zip(outputs, outputs_info, strict=True)]
        version = kwargs.pop("opset_version", None) or max(OPSET, onnx.defs.get_schema(node.op_type).since_version)
        model = onnx.helper.make_model(
            onnx.helper.make_graph([node], node.op_type, types, results),
            opset_imports=[onnx.helper.make_opsetid("", version)],
            ir_version=IR_VERSION,
        )
        inferred = onnx.shape_inference.infer_shapes(model)
        for value in inferred.graph.output:
            if not value.HasField("type"):
                raise GraphoptError(
                    f"the type of output {value.name!r} of {node.op_type} is unknown: give outputs_info"
                )
        return cls.run_model(inferred, arrays, device, **kwargs)

    @classmethod
    def supports_device(cls, device: str) -> bool:
        """Whether `device` is a name in TARGETS, alone or with ":0"."""
        return device.removesuffix(":0") in TARGETS


def _info(name: str, dtype: Any, shape: Sequence[int]) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)


def _with_constants(model: onnx.ModelProto, constants: Mapping[str, Any]) -> onnx.ModelProto:
    """A copy in which the inputs named in `constants` are initializers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [value for value in copy.graph.input if value.name not in constants]
    del copy.graph.input[:]
    copy.graph.input.extend(kept)
    copy.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(v), n) for n, v in constants.items())
    return copy


def shape_inputs(model: onnx.ModelProto) -> tuple[str, ...]:
    """Graph inputs that must be constants for the model to be static, in the model's order.

    They are the inputs at the positions of SHAPE_OPERANDS, and the integer scalars and vectors that such an operand is
    computed from, as in the expanded form of functions.
    """
    inputs = {value.name: value for value in model.graph.input}
    producers = {name: node for node in model.graph.node for name in node.output if name}
    wanted: set[str] = set()
    pending: list[str] = []
    for operand in _operands(model.graph):
        if operand in inputs:
            wanted.add(operand)
        else:
            pending.append(operand)
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in inputs and _is_index(inputs[name]):
            wanted.add(name)
        elif name in producers and producers[name].op_type not in _STATIC:
            pending.extend(producers[name].input)
    return tuple(name for name in inputs if name in wanted)


def _operands(graph: onnx.GraphProto) -> Iterator[str]:
    for node in graph.node:
        for position in SHAPE_OPERANDS.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
            if position < len(node.input) and node.input[position]:
                yield node.input[position]


def _is_index(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.tensor_type
    return kind.elem_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32) and len(kind.shape.dim) <= 1


is_compatible = Backend.is_compatible
prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device
