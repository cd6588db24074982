"""Constant folding: nodes that do not depend on the inputs are computed once, here, within fixed bounds.

    s = Shape(x); b = Gather(s, 0); t = Concat(b, [-1]); y = Reshape(x, t)   ->   y = Reshape(x, [1, -1])
    w = ConstantOfShape(d)                                                   ->   w: initializer (broadcast)
    y = Dropout(x), y = Identity(x)                                          ->   x

Only operators of the two tables are evaluated: each is deterministic and its work is bounded by the size of its
operands and result, so that no model can make the compiler hang or allocate at will. Everything else stays a node.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.frontend.evaluate import run_node
from graphopt.frontend.shapes import merged
from graphopt.graph.constness import constant_array, is_constant, tensor_of
from graphopt.graph.shapes.foreign import foreign_shapes
from graphopt.graph.shapes.settle import foreign_node, infer_node

MAX_FILL_BYTES = 2**31
"""A ConstantOfShape becomes an initializer up to this size; it occupies one element until it is materialized."""

_MAX_RESULT_BYTES = 2**24  # a result larger than this must not be larger than its operands
_MAX_SLOW_ELEMENTS = 2**12  # operators without a vectorised evaluation

# Data movement: worth folding on weights of any size, since the result replaces the operand.
_MOVES = frozenset({
    "Cast", "Concat", "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze",
    "Transpose", "Unsqueeze",
})  # fmt: skip
_ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "CastLike", "Ceil", "Clip",
    "ConstantOfShape", "Cos", "Div", "Equal", "Erf", "Exp", "EyeLike", "Floor", "Greater", "GreaterOrEqual",
    "IsInf", "IsNaN", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pad",
    "Pow", "Range", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Tan", "Tanh",
    "Tile", "Trilu", "Where", "Xor",
})  # fmt: skip
_SLOW = frozenset({
    "ArgMax", "ArgMin", "CumSum", "GatherElements", "GatherND", "MatMul", "OneHot", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ScatterElements", "ScatterND", "Softmax", "TopK",
})  # fmt: skip

# Where onnx's reference treats NaN, signs and overflow otherwise than ONNX Runtime.
_AS_ONNX_RUNTIME = _SLOW | {"Clip", "Mod", "Sign"}


def fold_constants(model: ir.Model, learn: Callable[[ir.Node], bool] = lambda _: False) -> bool:
    """Fold the main graph and drop Identity and inference Dropout everywhere, in place; True when anything changed.

    `learn` completes a node whose results inference leaves open, so that what follows can be folded, and says whether
    it could.
    """
    version = model.opset_imports.get("", 0)
    changed = False
    for node in list(model.graph):
        results = None
        if foreign_node(node):
            changed = True
        else:
            if node.domain == "":
                infer_node(node, version, model.ir_version)
                results = _evaluate(node, version, model.ir_version)
            changed |= results is None and learn(node)
        if results is None or any(output.is_graph_output() for output in node.outputs):
            continue
        constants = [_constant_value(*pair) for pair in zip(node.outputs, results, strict=True) if pair[0].uses()]
        model.graph.remove(node, safe=True)
        for constant in constants:
            model.graph.register_initializer(constant)
        changed = True
    for graph in list(model.graphs()):
        for node in list(graph):
            changed |= _bypass(node, graph)
    return changed


def lift_constants(model: ir.Model) -> None:
    """Turn the Constant nodes of the main graph into initializers, and move the initializers of subgraphs up to it."""
    common.LiftSubgraphInitializersToMainGraphPass()(model)
    for node in list(model.graph):
        if node.domain == "" and node.op_type == "Constant" and not node.outputs[0].is_graph_output():
            tensors = _constant(node)
            if tensors is not None:
                constant = _constant_value(node.outputs[0], tensors[0])
                model.graph.remove(node, safe=True)
                model.graph.register_initializer(constant)


def _constant_value(output: ir.Value, tensor: ir.TensorProtocol) -> ir.Value:
    """A constant that takes over the name and the consumers of `output`."""
    constant = ir.Value(
        name=output.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
    )
    tensor.name = output.name
    output.replace_all_uses_with(constant)
    return constant


def _bypass(node: ir.Node, graph: ir.Graph) -> bool:
    """Connect the consumers of an Identity, or of a Dropout outside training, with its operand."""
    if node.domain != "" or node.op_type not in ("Identity", "Dropout") or node.inputs[0] is None:
        return False
    if node.op_type == "Dropout":
        training = node.inputs[2] if len(node.inputs) > 2 else None
        if training is not None and (not is_constant(training) or bool(np.any(constant_array(training)))):
            return False
        if any(mask.uses() or mask.is_graph_output() for mask in node.outputs[1:]):
            return False
    operand, output = node.inputs[0], node.outputs[0]
    if output.is_graph_output():
        producer = operand.producer()
        if operand.is_graph_output() or producer is None or producer.graph is not graph:
            return False  # an input or weight that is an output needs the Identity
        index = next((index for index, value in enumerate(graph.outputs) if value is output), None)
        if index is None:
            return False
        name, output.name = output.name, None
        if operand.shape is None or not operand.shape.is_static():  # no iteration of a Loop gives its body's extents
            operand.shape = merged(operand.shape, output.shape)
        graph.outputs[index] = operand
        operand.name = name
    output.replace_all_uses_with(operand)
    graph.remove(node, safe=True)
    return True


def _evaluate(node: ir.Node, version: int, ir_version: int) -> list[ir.TensorProtocol] | None:
    """The values of all outputs of `node`, or None when they depend on an input or folding does not pay."""
    if node.op_type == "Constant":
        return _constant(node)
    if node.op_type in ("Shape", "Size"):
        return _shape(node)
    if node.op_type not in _MOVES | _ELEMENTWISE | _SLOW:
        if foreign_shapes(node) is None:
            infer_node(node, version, ir_version)
        return None
    operands = [tensor_of(value) for value in node.inputs]
    if any(value is not None and tensor is None for value, tensor in zip(node.inputs, operands, strict=True)):
        infer_node(node, version, ir_version)
        return None
    constants = [tensor for tensor in operands if tensor is not None]
    if any(tensor.dtype == ir.DataType.STRING for tensor in constants):
        return None
    infer_node(node, version, ir_version)
    elements, nbytes = 0, 0
    for output in node.outputs:
        if output.shape is None or not output.shape.is_static() or output.dtype in (None, ir.DataType.STRING):
            return None
        assert output.dtype is not None
        elements += math.prod(output.shape.numpy())
        nbytes += math.prod(output.shape.numpy()) * math.ceil(output.dtype.itemsize)
    if node.op_type == "ConstantOfShape":
        return _fill(node, nbytes)
    operand_elements = sum(tensor.size for tensor in constants)
    operand_bytes = sum(tensor.nbytes for tensor in constants)
    if node.op_type in _SLOW and elements + operand_elements > _MAX_SLOW_ELEMENTS:
        return None
    if nbytes > _MAX_RESULT_BYTES and not (node.op_type in _MOVES and nbytes <= operand_bytes):
        return None
    if node.op_type not in _MOVES and operand_bytes > _MAX_RESULT_BYTES:
        return None
    arrays = [None if tensor is None else tensor.numpy() for tensor in operands]
    if node.op_type in _AS_ONNX_RUNTIME and (results := run_node(node, version, ir_version, arrays)) is not None:
        return _tensors(node, results)
    return _run_reference(node, version, arrays)


def _run_reference(
    node: ir.Node, version: int, operands: list[np.ndarray[Any, Any] | None]
) -> list[ir.TensorProtocol] | None:
    """Evaluate one node with onnx.reference; None when it cannot."""
    from onnx.reference.ops import load_op  # a quarter of a second, which most models do not need

    attributes = {
        name: ir.serde.serialize_tensor(attribute.as_tensor())
        if attribute.type == ir.AttributeType.TENSOR
        else attribute.value
        for name, attribute in node.attributes.items()
    }
    try:
        operator = load_op("", node.op_type, version)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            results = operator.eval(*operands, n_outputs=len(node.outputs), **attributes)
    except Exception:  # whatever the evaluator cannot do stays a node, and runs where the model runs
        return None
    return _tensors(node, list(results) if isinstance(results, (tuple, list)) else [results])


def _tensors(node: ir.Node, arrays: list[Any]) -> list[ir.TensorProtocol] | None:
    """The results as tensors, None where they are not of the inferred types."""
    if len(arrays) != len(node.outputs):
        return None
    tensors: list[ir.TensorProtocol] = []
    for output, result in zip(node.outputs, arrays, strict=True):
        array = np.asarray(result)
        assert output.shape is not None
        assert output.dtype is not None
        if array.shape != output.shape.numpy() or array.dtype != output.dtype.numpy():
            return None
        tensors.append(ir.Tensor(array, dtype=output.dtype))
    return tensors


def _constant(node: ir.Node) -> list[ir.TensorProtocol] | None:
    if len(node.attributes) != 1:
        return None
    name, attribute = next(iter(node.attributes.items()))
    if name == "value" and attribute.type == ir.AttributeType.TENSOR:
        return [attribute.as_tensor()]
    if name in ("value_int", "value_ints"):
        return [ir.Tensor(np.array(attribute.value, dtype=np.int64))]
    if name in ("value_float", "value_floats"):
        return [ir.Tensor(np.array(attribute.value, dtype=np.float32))]
    return None  # strings and sparse tensors stay


def _shape(node: ir.Node) -> list[ir.TensorProtocol] | None:
    operand = node.inputs[0]
    if operand is None or operand.shape is None or not operand.shape.is_static():
        return None
    dims = operand.shape.numpy()
    if node.op_type == "Size":
        return [ir.Tensor(np.array(math.prod(dims), dtype=np.int64))]
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(dims))
    return [ir.Tensor(np.array(dims[start:end], dtype=np.int64))]


def _fill(node: ir.Node, nbytes: int) -> list[ir.TensorProtocol] | None:
    """ConstantOfShape as a broadcast view of one element: weights of any size cost nothing until they are read."""
    output = node.outputs[0]
    assert output.shape is not None
    assert output.dtype is not None
    if nbytes > MAX_FILL_BYTES:
        return None
    value = node.attributes.get("value")
    one = np.zeros(1, dtype=np.float32) if value is None else value.as_tensor().numpy()
    return [ir.Tensor(np.broadcast_to(one.reshape(-1)[:1].reshape(()), output.shape.numpy()), dtype=output.dtype)]
