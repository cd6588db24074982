"""ONNX nodes -> Relax: our own converters first, TVM's for the rest. The only file that touches TVM's private importer.

TVM's importer ignores a node's domain and a model's functions, so nodes are converted one at a time here: a node of
the domain `graphopt` can only reach our own converters, and what TVM is known to import wrongly is refused.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax
from tvm.ir import GenericConst
from tvm.relax.frontend.onnx import onnx_frontend

from graphopt.graph.analysis import static_type
from graphopt.graph.constness import constant_tensor, is_constant, tensor_of
from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common import origins
from graphopt.targets.common.converters import half_precision
from graphopt.targets.common.converters.base import HALF_DTYPES, Context, Converter, Inputs, dtype_of
from graphopt.targets.common.converters.refusals import WRONG_IN_TVM
from graphopt.targets.common.converters.refusals import NotSupported as NotSupported
from graphopt.targets.common.converters.shapes import nothing
from graphopt.targets.common.converters.table import Table, of_node
from graphopt.targets.common.definitions import Definitions, is_small

_MAX_ELEMENTS = 2**31 - 1
"""Most elements of a tensor: Relax flattens shapes to 32 bits."""


@dataclass(slots=True)
class Imported:
    """A Relax module whose `main` takes `inputs` then `weights` and returns a tuple of `outputs`.

    `weights` maps a parameter of `main` to the ONNX value whose constant it is; `owners` a variable to the name of the
    ONNX node that it belongs to.
    """

    module: tvm.IRModule
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, ir.Value]
    owners: dict[relax.Var, str]


@dataclass(slots=True)
class _Scope:
    builder: relax.BlockBuilder
    machine: Any
    definitions: Definitions
    table: Table
    expressions: dict[ir.Value, relax.Expr] = field(default_factory=dict)
    weights: dict[str, ir.Value] = field(default_factory=dict)
    owners: dict[relax.Var, str] = field(default_factory=dict)
    parameters: list[relax.Var] = field(default_factory=list)


def import_nodes(
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    opsets: Mapping[str, int],
    machine: Any,
    table: Table,
    definitions: Definitions | None = None,
) -> Imported:
    """Build one Relax function from nodes in topological order.

    Args:
        machine: what the target's converters and kernels choose tiles for.
        table: the converters of the target.
        definitions: kernels for this machine, shared with earlier calls.

    Raises:
        NotSupported: a node, named with the reason, has no native form.
    """
    builder = relax.BlockBuilder()
    scope = _Scope(builder, machine, definitions or Definitions(), table)
    parameters = []
    for index, value in enumerate(inputs):
        parameter = _variable(f"in{index}", value)
        scope.expressions[value] = parameter
        parameters.append(parameter)
    for value in _constants(nodes, outputs):
        _bind_constant(scope, value)
    failure: Exception | None = None
    with builder.function("main", params=[*parameters, *scope.parameters]):
        with builder.dataflow():
            try:
                for node in nodes:
                    _convert(scope, node, opsets)
                results = [scope.expressions[value] for value in outputs]
            except Exception as error:  # noqa: BLE001  the builder complains on stderr unless its blocks are closed
                failure, results = error, []
            result = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(result)
    if failure is not None:
        raise failure
    return Imported(
        builder.get(),
        tuple(str(value.name) for value in inputs),
        tuple(str(value.name) for value in outputs),
        scope.weights,
        scope.owners,
    )


def _constants(nodes: Iterable[ir.Node], outputs: Iterable[ir.Value]) -> Iterator[ir.Value]:
    seen: set[ir.Value] = set()
    for group in (*(node.inputs for node in nodes), tuple(outputs)):
        for value in group:
            if is_constant(value) and value not in seen:
                seen.add(value)
                yield value


def _bind_constant(scope: _Scope, value: ir.Value) -> None:
    tensor = constant_tensor(value)
    if is_small(tensor):
        if str(tensor.dtype.numpy()) not in ITEM_BYTES:
            raise NotSupported(f"constant {value.name} has dtype {tensor.dtype.name}, which kernels cannot hold")
        array = np.ascontiguousarray(tensor.numpy()).reshape(tensor.numpy().shape)
        scope.expressions[value] = relax.const(array, str(array.dtype))  # else 64 bits become 32
        return
    name = f"w{len(scope.weights)}"
    scope.expressions[value] = parameter = _variable(name, value)
    scope.weights[name] = value
    scope.parameters.append(parameter)


def _variable(name: str, value: ir.Value) -> relax.Var:
    described = static_type(value)
    if described is None and (tensor := tensor_of(value)) is not None:
        dtype = str(tensor.dtype.numpy())
        if dtype in ITEM_BYTES:
            described = dtype, tuple(tensor.shape.numpy())
    if described is None:
        raise NotSupported(_unheld(value))
    dtype, shape = described
    if math.prod(shape) > _MAX_ELEMENTS:
        raise NotSupported(f"value {value.name} has more than 2^31 - 1 elements")
    return relax.Var(name, relax.TensorType(shape, dtype))


def _convert(scope: _Scope, node: ir.Node, opsets: Mapping[str, int]) -> None:
    reason = refusal(node, scope.table)
    if reason is not None:
        raise NotSupported(reason)
    inputs = [None if value is None else scope.expressions[value] for value in node.inputs]
    result = NotImplemented
    definitions = scope.definitions.of(node)
    context = Context(scope.builder, scope.machine, node, definitions)
    for converter in _converters(node, scope.table):
        result = converter(context, inputs)
        if result is not NotImplemented:
            break
    else:
        half = dtype_of(inputs[0]) if node.op_type in half_precision.SINGLE and inputs[0] is not None else ""
        if half in HALF_DTYPES:
            result = _convert_with_tvm(scope, node, half_precision.widened(context, inputs), opsets.get("", 1))
            result = half_precision.rounded(context, scope.builder.normalize(result), half)
        else:
            result = _convert_with_tvm(scope, node, inputs, opsets.get("", 1))
    results = (
        list(result.fields) if isinstance(result, relax.Tuple) else result if isinstance(result, list) else [result]
    )
    if len(results) == 1 and isinstance(getattr(results[0], "ty", None), relax.TupleType):
        packed = scope.builder.emit(results[0])
        results = [relax.TupleGetItem(packed, i) for i in range(len(packed.ty.fields))]
    if len(results) < len(node.outputs):
        raise NotSupported(f"{node.op_type} has no native form with {len(node.outputs)} outputs")
    for value, expression in zip(node.outputs, results, strict=False):
        if expression is None:  # an output without consumers
            continue
        scope.expressions[value] = checked = _checked(scope, value, expression)
        if isinstance(checked, relax.Var):
            origins.claim(scope.owners, checked, str(node.name), scope.builder.lookup_binding)


def _converters(node: ir.Node, table: Table) -> Sequence[Converter]:
    """Our converters of `node` in the order in which they are tried."""
    if all(0 in _shape(value) for value in node.outputs if value.name) and node.domain in ("", "ai.onnx"):
        return [nothing]
    return of_node(table, node)


def _unheld(value: ir.Value) -> str:
    """Why no memory can be planned for `value`. Nodes in a chain share the reason."""
    if not isinstance(value.type, ir.TensorType):
        return f"value {value.name} is no tensor" if value.type is not None else "the type of a value is not known"
    if value.shape is None or not value.shape.is_static():
        return "the size of what enters or leaves it is known at run time only"
    return f"kernels have no values of type {value.type.dtype.name}"


def _shape(value: ir.Value) -> tuple[int, ...]:
    described = static_type(value)
    return () if described is None else described[1]


def _checked(scope: _Scope, value: ir.Value, expression: relax.Expr) -> relax.Expr:
    """Emit `expression` and check its type against the one that ONNX shape inference gave."""
    if isinstance(expression, relax.ShapeExpr):
        raise NotSupported(f"value {value.name} is a shape that is not known before run time")
    expression = scope.builder.normalize(expression)
    if not isinstance(expression, GenericConst | relax.Var):
        expression = scope.builder.emit(expression)
    inferred = expression.ty
    expected = static_type(value)
    if not isinstance(inferred, relax.TensorType) or inferred.shape is None or expected is None:
        raise NotSupported(_unheld(value))
    try:
        shape = tuple(int(d) for d in inferred.shape)
    except TypeError:
        raise NotSupported(f"value {value.name} has a shape that is not known before run time") from None
    dtype = str(inferred.dtype)
    if shape != expected[1] and all(d == 1 for d in (*shape, *expected[1])):  # TVM has few scalars: one element is one
        expression, shape = scope.builder.emit(relax.op.reshape(expression, expected[1])), expected[1]
    if (dtype, shape) != expected:
        raise NotSupported(
            f"value {value.name} would become {dtype}{list(shape)} instead of {expected[0]}{list(expected[1])}"
        )
    return expression


def refusal(node: ir.Node, table: Table) -> str | None:
    """Why `node` is refused without a conversion, in a sentence; None if it may be converted."""
    domain = node.domain or ""
    if domain not in ("", "ai.onnx", "graphopt"):
        return f"operators of the domain {domain} have no native form"
    if domain == "graphopt":
        return None if _converters(node, table) else f"graphopt.{node.op_type} has no kernel on this target"
    if any(
        isinstance(a, ir.Attr) and a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        for a in node.attributes.values()
    ):
        return f"{node.op_type} holds subgraphs, which have no native form"
    if not _converters(node, table) and node.op_type not in onnx_frontend._get_convert_map():
        return f"{node.op_type} has no native form"
    return None


def _convert_with_tvm(scope: _Scope, node: ir.Node, inputs: Inputs, opset: int) -> relax.Expr:
    if node.domain == "graphopt" or node.op_type not in onnx_frontend._get_convert_map():
        raise NotSupported(f"{node.op_type} has no native form for these types and attributes")
    wrong = WRONG_IN_TVM.get(node.op_type)
    if wrong is not None and (reason := wrong(node)) is not None:
        raise NotSupported(reason)
    importer = onnx_frontend.ONNXGraphImporter({}, "float32")
    importer.bb = scope.builder
    importer.opset = opset
    proto = ir.serde.serialize_node(node)
    attributes = importer._parse_attr(proto.attribute)
    attributes["tvm_custom"] = {"name": proto.name, "num_outputs": len(node.outputs)}
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        return importer._convert_operator(node.op_type, onnx_frontend.onnx_input(inputs), attributes, opset)
