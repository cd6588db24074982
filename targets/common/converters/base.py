"""Shared by all converters: the context of a node, and shapes and dtypes of Relax expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx
from tvm.ir import Expr

from graphopt.cost.workload import PRECISION, SKIP_ZEROS, TILE
from graphopt.targets.common.definitions import Definition, NodeDefinitions

ELEMENTWISE, BROADCAST, INJECTIVE, REDUCTION, EPILOGUE, OPAQUE = 0, 1, 2, 3, 4, 8
"""TVM's fusion patterns: elementwise; elementwise with broadcasts; index arithmetic; reductions; consumers may fuse;
nothing fuses."""

Inputs = list[Any]
"""The inputs of a node as Relax expressions (`relax.Expr`); None where an optional input is absent."""

Outputs = Any
"""One Relax expression, a list of them (None for outputs without consumers), or NotImplemented to hand the node on."""

Converter = Callable[["Context", Inputs], Outputs]


@dataclass(frozen=True, slots=True)
class Context:
    """What a converter may use: the builder to emit into, the machine to choose tiles for, the node's attributes.

    `machine` is what the target generates code for: a `CpuMachine` or a GPU's `Device`.
    """

    builder: relax.BlockBuilder
    machine: Any
    node: ir.Node
    definitions: NodeDefinitions

    def te(self, name: str, function: Definition, *args: relax.Expr, pattern: int) -> relax.Var:
        """Emit a TE definition over Relax expressions as one kernel called `name`."""
        return self.definitions.emit(self.builder, name, function, args, {"op_pattern": pattern})

    def function(self, name: str, function: tirx.PrimFunc, shape: tuple[int, ...], *operands: relax.Expr) -> relax.Var:
        """Emit a function that is scheduled already, and fuses with nothing; y has the first operand's dtype."""
        place = self.builder.add_func(function.with_attr("op_pattern", OPAQUE), name)
        result = relax.TensorType(shape, dtype_of(operands[0]))
        return self.builder.emit(relax.call_tir(place, relax.Tuple(list(operands)), result))

    def reshape(self, x: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        """Emit a view; nothing where the shape is already right."""
        return x if shape_of(x) == shape else self.builder.emit(relax.op.reshape(x, shape))

    def broadcast(self, x: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        """Emit `x` repeated to `shape`; a view, or nothing, where nothing repeats."""
        if math.prod(shape) == math.prod(shape_of(x)):
            return self.reshape(x, shape)
        return self.builder.emit(relax.op.broadcast_to(x, shape))

    def integers(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        attribute = self.node.attributes.get(name)
        return tuple(int(v) for v in attribute.as_ints()) if isinstance(attribute, ir.Attr) else default

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        attribute = self.node.attributes.get(name)
        return int(attribute.as_int()) if isinstance(attribute, ir.Attr) else default

    def real(self, name: str, default: float = 0.0) -> float:
        """A float attribute."""
        attribute = self.node.attributes.get(name)
        return float(attribute.as_float()) if isinstance(attribute, ir.Attr) else default

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        attribute = self.node.attributes.get(name)
        return str(attribute.as_string()) if isinstance(attribute, ir.Attr) else default

    @property
    def tf32(self) -> bool:
        """Whether factors in float32 may be rounded to TF32."""
        return self.node.metadata_props.get(PRECISION) == "tf32"

    @property
    def skips(self) -> bool:
        """Whether inputs of the product may be zero often enough to look for them in each run."""
        return SKIP_ZEROS in self.node.metadata_props

    @property
    def tile(self) -> str | None:
        """The tile that was chosen for the node's kernel; None leaves it to the kernel."""
        return self.node.metadata_props.get(TILE)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The static shape that shape inference gave the first output."""
        shape = self.node.outputs[0].shape
        assert shape is not None
        return tuple(shape.numpy())


def shape_of(x: relax.Expr) -> tuple[int, ...]:
    """Static shape of a Relax expression."""
    return tuple(int(d) for d in x.ty.shape)


def dtype_of(x: relax.Expr) -> str:
    """Dtype of a Relax expression."""
    return str(x.ty.dtype)


FLOATS = ("float16", "float32", "float64")
HALF_DTYPES = ("float16", "bfloat16")


def spread(c: Context, inputs: list[relax.Expr]) -> list[relax.Expr]:
    """The tensors broadcast to the shape of the node's output."""
    return [c.broadcast(x, c.out_shape) for x in inputs]


def elementwise_map(c: Context, function: Callable[..., Expr], *args: relax.Expr) -> relax.Var:
    """An elementwise function of equally shaped tensors."""
    name = c.node.op_type.lower()
    return c.te(
        name,
        lambda *tensors: te.compute(
            tensors[0].shape, lambda *i: function(*(tensor(*i) for tensor in tensors)), name=name
        ),
        *args,
        pattern=ELEMENTWISE,
    )
