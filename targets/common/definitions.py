"""Equal nodes share their TE definitions: defining a kernel costs milliseconds, and models repeat layers.

A node's definitions depend on its operator, attributes, tile, precision and types, and on the constants that are part
of the code; all of that is its signature. The machine is that of the target that the definitions belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx
from tvm.relax.utils import gen_call_tir_inputs

from graphopt.cost.workload import PRECISION, SKIP_ZEROS, TILE
from graphopt.graph.analysis import static_type
from graphopt.graph.constness import constant_tensor, is_constant, tensor_of

SMALL_FLOATS = 16
SMALL_INTEGERS = 4096
"""Constants up to these sizes are part of the code (axes, shapes, scalars); larger ones are weights."""


def is_small(tensor: ir.TensorProtocol) -> bool:
    """Whether a constant is part of the code."""
    return bool(tensor.size <= (SMALL_FLOATS if tensor.dtype.is_floating_point() else SMALL_INTEGERS))


def signature(node: ir.Node) -> str:
    """A key that is equal for nodes with the same support: operator, attributes, types, and small constants."""
    inputs: list[Any] = []
    for value in node.inputs:
        constant = tensor_of(value)
        if value is None:
            inputs.append(None)
        elif constant is not None and is_small(constant):
            inputs.append((constant.dtype, tuple(constant.shape), constant.numpy().tolist()))
        else:
            inputs.append((constant is None, static_type(value)))
    position: dict[ir.Value | None, int] = {}
    repeated = tuple(position.setdefault(value, len(position)) for value in node.inputs)
    outputs = tuple((static_type(v), bool(v.uses()) or v.is_graph_output()) for v in node.outputs)
    attributes = tuple(sorted((name, str(a)) for name, a in node.attributes.items()))  # an Attr prints its value only
    return repr((node.domain, node.op_type, attributes, inputs, repeated, outputs))


def _complete(node: ir.Node) -> bool:
    """Whether the signature holds everything that a definition can read: no long list of integers, no tensor.

    Matrices of bytes are weights; definitions that depend on their numbers are emitted under distinct names.
    """
    if any(not isinstance(a, ir.Attr) or a.type is ir.AttributeType.TENSOR for a in node.attributes.values()):
        return False
    constants = [constant_tensor(value) for value in node.inputs if is_constant(value)]
    return all(is_small(each) or each.dtype.is_floating_point() or _is_weights(each) for each in constants)


def _is_weights(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in (ir.DataType.INT8, ir.DataType.UINT8) and len(tensor.shape) > 1


Definition = Callable[..., te.Tensor | Sequence[te.Tensor]]
"""From TE tensors to the tensor, or the tensors, that a kernel computes."""


@dataclass(slots=True)
class Definitions:
    """The PrimFuncs of TE definitions, unscheduled, by signature, and by order within a node."""

    kernels: dict[tuple[Any, ...], tuple[tirx.PrimFunc, list[relax.TensorType]]] = field(default_factory=dict)

    def of(self, node: ir.Node) -> NodeDefinitions:
        """The definitions of one node, which is about to be converted."""
        marks = tuple(node.metadata_props.get(key) for key in (TILE, PRECISION, SKIP_ZEROS))
        key = (signature(node), *marks) if _complete(node) else None
        return NodeDefinitions(self.kernels, key)


@dataclass(slots=True)
class NodeDefinitions:
    """Emits the definitions of one node in order."""

    kernels: dict[tuple[Any, ...], tuple[tirx.PrimFunc, list[relax.TensorType]]]
    key: tuple[Any, ...] | None
    count: int = 0

    def emit(
        self,
        builder: relax.BlockBuilder,
        name: str,
        function: Definition,
        args: Sequence[relax.Expr],
        attributes: dict[str, Any],
    ) -> relax.Var:
        """Emit a TE definition as one call, as `BlockBuilder.emit_te` does, but define an equal kernel only once."""
        self.count += 1
        if self.key is None or not all(isinstance(getattr(arg, "ty", None), relax.TensorType) for arg in args):
            return builder.emit_te(function, *args, primfunc_name_hint=name, primfunc_attrs=attributes)
        key = (self.key, self.count, name, tuple(attributes.items()), tuple(str(arg.ty) for arg in args))
        if key not in self.kernels:
            kernel, _, types = gen_call_tir_inputs(function, *args, primfunc_attrs=attributes)
            self.kernels[key] = kernel, types
        kernel, types = self.kernels[key]
        return builder.emit(relax.call_tir(builder.add_func(kernel, name), relax.Tuple(list(args)), types))
