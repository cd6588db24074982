"""The ONNX models of fallback runs, opened while compiling as the program will open them.

run -> model with the shapes of its inputs
       ONNX Runtime refuses it?  with open dimensions (a branch for another size does not fit this one), without a rank
       it refuses that too?      with activations written out, then the nodes one by one
       it refuses one node?      UnsupportedError
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.errors import UnsupportedError
from graphopt.graph.constness import constant_tensor, is_constant
from graphopt.graph.segments import NodeRun, one_by_one, read_by
from graphopt.program.program import ITEM_BYTES

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Array = NDArray[Any]

SHARED_BYTES = 1024
"""Smaller constants stay in the model: they are shapes and axes, which ONNX Runtime infers shapes from."""


_RUN_SECONDS = 5.0


class Dims(IntEnum):
    """What a fallback model says about the shapes of its inputs; of its outputs it says the rank at most."""

    STATIC = 0
    RANK = 1
    NONE = 2


@dataclass(frozen=True, slots=True)
class FallbackModel:
    """What ONNX Runtime runs for `run`: the file, and the constants that it leaves to the weights file."""

    run: NodeRun
    data: bytes
    weights: dict[str, Array]
    session: onnxruntime.InferenceSession


def fallback_models(
    model: ir.Model, run: NodeRun, needed: Sequence[ir.Value], stored: Mapping[str, Array], threads: int
) -> Iterator[FallbackModel]:
    """The model of `run`, or those of its nodes, each opened with the options of the runtime.

    Args:
        needed: values that must survive besides those that nodes outside `run` read.
        stored: constants that are in the weights file already.

    Raises:
        UnsupportedError: ONNX Runtime does not take a node, which is not native either.
    """
    opened, refusal = _opened(model, run, stored, threads)
    if opened is not None:
        yield opened
    elif len(run.nodes) > 1:
        for single in one_by_one(run, needed):
            yield from fallback_models(model, single, needed, stored, threads)
    else:
        (name, reason), operator = run.reasons[0], run.nodes[0].op_type
        raise UnsupportedError(
            f"node {name} ({operator}) can run nowhere: {reason}, and ONNX Runtime refuses it ({refusal}); "
            "replace the node or export the model with another opset"
        )


def observed(fallback: FallbackModel, draw: Callable[[ir.Value], Array]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of the outputs of one run on random inputs; {} where it did not run, or not within seconds.

    A failed run proves nothing: the model may never meet such numbers.
    """
    from graphopt.runtime.onnx_session import run_bounded

    try:
        feeds = {str(value.name): draw(value) for value in fallback.run.inputs}
        results = run_bounded(fallback.session, feeds, _RUN_SECONDS)
    except Exception:  # ONNX Runtime's exceptions share no base class
        return {}
    return {name: (str(array.dtype), array.shape) for name, array in results.items() if isinstance(array, np.ndarray)}


def _opened(
    model: ir.Model, run: NodeRun, stored: Mapping[str, Array], threads: int
) -> tuple[FallbackModel | None, str]:
    """The model with as many shapes as ONNX Runtime accepts, else its first error."""
    from graphopt.runtime.onnx_session import open_session, short

    complaint = ""
    for dims, write_out in (*((dims, False) for dims in Dims), (Dims.NONE, True)):
        proto, weights = extract(model, run, dims, stored)
        try:
            data = (_written_out(proto) if write_out else proto).SerializeToString()
            return FallbackModel(run, data, weights, open_session(data, weights, threads)), ""
        except Exception as error:  # ONNX Runtime's exceptions share no base class
            complaint = complaint or short(error)
    return None, complaint


def _written_out(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Replace activations by the nodes of their ONNX function definitions.

    ONNX Runtime has no kernels of them for float64 and integers. It expands them itself where a model has the opset of
    the definition, which is 18, but not in the opset that models have here.
    """
    from onnx import inliner

    _with_defaults(proto.graph, {opset.domain: opset.version for opset in proto.opset_import})
    return inliner.inline_selected_functions(proto, [("", name) for name in _ACTIVATIONS], inline_schema_functions=True)


def _with_defaults(graph: onnx.GraphProto, opsets: Mapping[str, int]) -> None:
    """Write default attributes into activation nodes: the bodies of their functions refer to them."""
    import onnx

    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _with_defaults(inner, opsets)
        if node.domain == "" and node.op_type in _ACTIVATIONS:
            given = {attribute.name for attribute in node.attribute}
            known = onnx.defs.get_schema(node.op_type, opsets.get("", 1)).attributes
            defaults = [attribute.default_value for name, attribute in known.items() if name not in given]
            node.attribute.extend(default for default in defaults if default.name)


_ACTIVATIONS = (
    *("Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Softplus", "Softsign"),
    "ThresholdedRelu",
)


def extract(
    model: ir.Model, run: NodeRun, dims: Dims = Dims.STATIC, stored: Mapping[str, Array] = MappingProxyType({})
) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The nodes of `run` as an ONNX model of their own, and the constants that stay outside, by name.

    Inferred shapes are left out, within subgraphs too: they hold for the sizes of this program, and a branch that they
    do not fit may be one that is never taken. What a loop outside of all branches collects keeps its shapes.
    """
    import onnx

    graph = onnx.GraphProto(name="fallback")
    graph.node.extend(ir.serde.serialize_node(node) for node in run.nodes)
    graph.input.extend(ir.serde.serialize_value(value) for value in run.inputs)
    graph.output.extend(ir.serde.serialize_value(value) for value in run.outputs)
    for info in graph.input:
        _open_dims(info.type, dims)
    for info in graph.output:
        _open_dims(info.type, max(dims, Dims.RANK))
    for node in graph.node:
        _open_subgraphs(node, dims)
    outside: dict[str, Array] = {}
    for value in _constants_of(run):
        array = _shareable(value, stored)
        if array is None:
            graph.initializer.append(ir.serde.serialize_tensor(constant_tensor(value)))
        else:
            outside[str(value.name)] = array
            graph.initializer.append(_external(value))
    functions = [ir.serde.serialize_function(function) for function in _called(model, run.nodes)]
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    proto = onnx.helper.make_model(graph, functions=functions, opset_imports=imports, ir_version=model.ir_version)
    return proto, outside


def _open_dims(kind: onnx.TypeProto, dims: Dims) -> None:
    if not kind.HasField("tensor_type") or dims is Dims.STATIC:
        return
    if dims is Dims.NONE:
        kind.tensor_type.ClearField("shape")
    for dim in kind.tensor_type.shape.dim if kind.tensor_type.HasField("shape") else ():
        dim.Clear()


def _open_subgraphs(node: onnx.NodeProto, dims: Dims = Dims.NONE) -> None:
    """Clear the shapes inside `node`. What a loop collects keeps its own, which also holds after zero iterations.

    ONNX Runtime needs the rank of what a Scan computes in each step.
    """
    collected = max(1, len(node.input) - 1) if node.op_type == "Loop" else None
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            del graph.value_info[:]
            counters = 2 if node.op_type == "Loop" else 0  # ONNX Runtime must know that they are scalars
            for info in (*graph.input[counters:], *graph.output[:collected]):
                _open_dims(info.type, Dims.RANK if node.op_type == "Scan" else Dims.NONE)
            for info in () if collected is None else graph.output[collected:]:
                _open_dims(info.type, dims)
            for inner in graph.node:
                _open_subgraphs(inner, Dims.NONE if node.op_type == "If" else dims)


def _called(model: ir.Model, nodes: Sequence[ir.Node]) -> list[ir.Function]:
    """The functions that the nodes call, directly or not, in the order of the model."""
    wanted: set[ir.OperatorIdentifier] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        identifier = node.op_identifier()
        function = model.functions.get(identifier)
        if function is not None and identifier not in wanted:
            wanted.add(identifier)
            pending.extend(function.all_nodes())
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                pending.extend(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                pending.extend(inner for graph in attribute.as_graphs() for inner in graph)
    return [function for identifier, function in model.functions.items() if identifier in wanted]


def _constants_of(run: NodeRun) -> Iterator[ir.Value]:
    inside = {value for node in run.nodes for value in node.outputs}
    read = (value for node in run.nodes for value in read_by(node))
    for value in dict.fromkeys(v for v in read if is_constant(v) and v not in inside):
        if (tensor := constant_tensor(value)).name != value.name:
            tensor.name = value.name
        yield value


def _shareable(value: ir.Value, stored: Mapping[str, Array]) -> Array | None:
    """The numbers of a constant that can move to the weights file; None where it must stay in the model.

    It stays if it is small, or if its name has other numbers in the weights file already.
    """
    tensor = constant_tensor(value)
    if tensor.nbytes < SHARED_BYTES or str(value.name).startswith("__"):
        return None
    if tensor.dtype.name not in _STORED:
        return None
    array = np.asarray(tensor.numpy())
    if str(array.dtype) not in ITEM_BYTES:
        return None
    other = stored.get(str(value.name))
    return array if other is None or _same(other, array) else None


def _same(a: Array, b: Array) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a is b or bool((np.ascontiguousarray(a).view(np.uint8) == np.ascontiguousarray(b).view(np.uint8)).all())


_STORED = frozenset({
    "BFLOAT16", "BOOL", "DOUBLE", "FLOAT", "FLOAT16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32",
    "UINT64",
})  # fmt: skip


def _external(value: ir.Value) -> onnx.TensorProto:
    import onnx

    tensor = constant_tensor(value)
    proto = onnx.TensorProto(name=value.name, data_type=tensor.dtype, dims=tensor.shape.numpy())
    proto.data_location = onnx.TensorProto.EXTERNAL
    proto.external_data.add(key="location", value="weights")
    return proto
