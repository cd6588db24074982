"""Static shapes: the `--shapes` spelling, the inputs' symbolic dimensions, and inference over the whole model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from typing import TypeVar

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.frontend.files import SMALL_BYTES, checked_size
from graphopt.frontend.maps import from_inferred
from graphopt.graph.constness import stored
from graphopt.graph.shapes.settle import CLAIMED, is_learned, settle

_LARGEST_DIM = 2**31 - 1
_SETTLED = "graphopt.settled"
_CONFIRMED = "graphopt.confirmed"  # a value of a subgraph whose shape an inference gave
_MAX_SETTLED = 64  # inferences of the whole model; each but the last settles a node for good, mostly all of them
_NAMELESS = (-1, "", "?", "-1", "None")
_Result = TypeVar("_Result")


def parse_shapes(text: str) -> dict[str, tuple[int, ...]]:
    """Read the `--shapes` spelling: `x:1x3x224x224,y:2x4`; `s:` is a scalar. Names may contain colons, not commas.

    Raises ModelError that quotes the part it cannot read.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for part in text.split(","):
        name, colon, dims = part.strip().rpartition(":")
        quoted = one_line(repr(part.strip()))
        if not colon or not name or not re.fullmatch(r"(\d+(x\d+)*)?", dims, re.ASCII):
            raise ModelError(f"--shapes {quoted} is not NAME:DxDxD; write for example --shapes x:1x3x224x224")
        if name in shapes:
            raise ModelError(f"--shapes names the input {name} twice; keep one of them")
        digits = [dim.lstrip("0") or "0" for dim in dims.split("x")] if dims else []
        # Long ones are not converted: Python refuses thousands of digits.
        if any(len(dim) > 10 or int(dim) > _LARGEST_DIM for dim in digits):
            raise ModelError(f"--shapes {quoted} has a dimension above {_LARGEST_DIM}; write a smaller one")
        shapes[name] = tuple(map(int, digits))
    return shapes


def print_shape(dims: Iterator[object] | tuple[object, ...] | ir.Shape) -> str:
    """`1x3x224x224`; `?` for an unnamed dimension."""
    return "x".join("?" if isinstance(dim, ir.SymbolicDim) and dim.value is None else str(dim) for dim in dims)


def open_dims(model: ir.Model) -> None:
    """Make every dimension that is -1, or has a placeholder for a name, an unnamed one, in place.

    Exporters write "?" for each dimension that they do not know: two of them need not be equal.
    """
    for graph in model.graphs():
        for value in (*_values(graph), *graph.outputs):
            if value.shape is not None and any(dim in _NAMELESS for dim in value.shape):
                value.shape = ir.Shape([None if dim in _NAMELESS else dim for dim in value.shape])


def fix_inputs(model: ir.Model, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Make the shape of every tensor input static, in place; the sentences say what was assumed.

    A dimension comes from `shapes`, from another input that uses the same symbol, or, on axis 0 only, is 1.
    Raises ModelError for a dimension that has neither, and for `shapes` that contradict the declared ones.
    """
    inputs = {value.name or "": value for value in model.graph.inputs}
    for name in shapes:
        if name not in inputs:
            raise ModelError(f"--shapes names {name!r}, which is no input; the inputs are {', '.join(inputs)}")
    tensors = {
        name: value for name, value in inputs.items() if value.type is None or isinstance(value.type, ir.TensorType)
    }
    symbols: dict[str, tuple[int, str]] = {}
    for name, dims in shapes.items():
        _bind(name, inputs[name], dims, symbols)
    notes: list[str] = []
    open_inputs: dict[str, list[str]] = {}
    for name, value in tensors.items():
        if name in shapes:
            value.shape = ir.Shape(shapes[name])
            continue
        if value.shape is None:
            open_inputs[name] = ["its rank"]
            continue
        fixed: list[int | ir.SymbolicDim] = list(value.shape.dims)
        for axis, dim in enumerate(fixed):
            if isinstance(dim, int):
                continue
            if dim.value is not None and dim.value in symbols:
                fixed[axis] = symbols[dim.value][0]
            elif axis == 0:
                fixed[axis] = 1
                what = "unnamed batch dimension" if dim.value is None else f"batch dimension {dim.value!r}"
                notes.append(f"input {name}: {what} fixed to 1")
                if dim.value is not None:
                    symbols[dim.value] = (1, name)
            else:
                open_inputs.setdefault(name, []).append(f"dimension {axis}" + (f" ({dim.value})" if dim.value else ""))
        value.shape = ir.Shape(fixed)
    if open_inputs:
        name, dimensions = next(iter(open_inputs.items()))
        spelling = ",".join(_example(tensors[other]) for other in open_inputs)
        raise ModelError(
            f"input {name} leaves {', '.join(dimensions)} open; give it a size, for example --shapes {spelling}"
        )
    for value in tensors.values():
        assert value.shape is not None
        checked_size(value.shape.numpy(), value.dtype or ir.DataType.UNDEFINED, f"input {value.name}")
    _substitute(model, {symbol: size for symbol, (size, _) in symbols.items()})
    return notes


def _example(value: ir.Value) -> str:
    if value.shape is None:
        return f"{value.name}:1x3x224x224"
    usual = 224 if len(value.shape) == 4 else 128
    return f"{value.name}:" + "x".join(str(dim) if isinstance(dim, int) else str(usual) for dim in value.shape)


def _bind(name: str, value: ir.Value, dims: tuple[int, ...], symbols: dict[str, tuple[int, str]]) -> None:
    """Check `dims` against the declared shape of `value` and add the symbols they settle."""
    if value.type is not None and not isinstance(value.type, ir.TensorType):
        raise ModelError(f"--shapes gives {name} a shape, but this input is not a tensor; leave it out")
    if value.shape is None:
        return
    asked, declared = print_shape(dims), print_shape(value.shape)
    if len(dims) != len(value.shape):
        raise ModelError(
            f"--shapes {name}:{asked} has {len(dims)} dimensions, and the input is declared {declared or 'a scalar'}; "
            "give one size per dimension"
        )
    for axis, (size, dim) in enumerate(zip(dims, value.shape, strict=True)):
        if isinstance(dim, int):
            if dim != size:
                raise ModelError(
                    f"--shapes {name}:{asked} asks for {size} on axis {axis}, and the input is declared {declared}; "
                    "export the model with that dimension symbolic"
                )
        elif dim.value is not None:
            first, source = symbols.setdefault(dim.value, (size, name))
            if first != size:
                raise ModelError(
                    f"--shapes gives the dimension {dim.value!r} as {first} in {source} and {size} in {name}; "
                    "make them equal"
                )


def _substitute(model: ir.Model, symbols: Mapping[str, int]) -> None:
    """Put sizes for symbols into every declared shape of the model."""
    if not symbols:
        return
    for graph in model.graphs():
        for value in _values(graph):
            if value.shape is not None and not value.shape.is_static():
                value.shape = ir.Shape(
                    [
                        symbols.get(dim.value or "", dim) if isinstance(dim, ir.SymbolicDim) else dim
                        for dim in value.shape
                    ]
                )


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def infer_shapes(model: ir.Model) -> None:
    """Infer type and shape of every value, in place; large weights take part with their shapes only.

    Declared shapes of computed values are unverified claims, or were inferred for another size: in the main graph they
    are left out, in subgraphs they fill what inference leaves open. Shapes that onnx does not infer, or infers
    otherwise than ONNX Runtime computes them, are settled between the inferences (`graph.shapes.settle`), or were
    learned.
    Raises ModelError, naming the node, for operands that do not fit each other.
    """
    settled = {str(node.outputs[0].name) for node in model.graph if is_learned(node)}
    for again in range(_MAX_SETTLED):
        error = _infer_once(model, settled)
        newly_settled, corrected = settle(model)
        if not newly_settled and error is not None:
            raise error
        # Constant folding continues after shapes that were open before.
        if not newly_settled or (again and not corrected and error is None):
            break
        settled |= newly_settled
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if value.shape is not None and value.name:
                    dims = tuple(dim if isinstance(dim, int) else 1 for dim in value.shape)
                    checked_size(dims, value.dtype or ir.DataType.UNDEFINED, f"the value {value.name} ({node.op_type})")


def _infer_once(model: ir.Model, settled: Set[str]) -> ModelError | None:
    """Run onnx's inference once; nodes of `settled`, which lists their first outputs, keep their types."""
    declared: dict[ir.Value, tuple[ir.TypeProtocol | None, ir.Shape | None]] = {}
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                value.shape = None if value.type is None else value.shape  # no shape without a dtype
            if onnx.defs.has(node.op_type, node.domain) and node.outputs[0].name not in settled:
                for value in node.outputs:
                    declared[value] = (value.type, value.shape)
                    value.shape = None
                    if isinstance(value.type, ir.TensorType):
                        value.type = None
    proto, error = with_skeleton(model, lambda proto: _infer(proto, settled))
    inferred = from_inferred(proto)
    for graph, other in zip(model.graphs(), inferred.graphs(), strict=True):
        inferred_values = {value.name: value for value in _values(other)}
        for value in _values(graph):
            source = inferred_values.get(value.name)
            if source is None or value.is_graph_input() or value.is_initializer():
                continue
            value.type = source.type if source.type is not None else value.type
            if source.shape is not None:
                value.shape = source.shape if graph is model.graph else _possible(source.shape)
    for value, (kind, shape) in declared.items():
        if value.type is None:
            value.type = kind
        if value.graph is not model.graph:
            inferred_shape, value.shape = value.shape, merged(value.shape, shape)
            if inferred_shape is not None and inferred_shape.is_static():
                value.meta[_CONFIRMED] = True
                value.meta.pop(CLAIMED, None)
            elif value.shape != inferred_shape and _CONFIRMED not in value.meta:  # an earlier inference may know more
                value.meta[CLAIMED] = True
    return error


def drop_claims(model: ir.Model) -> None:
    """Forget what the main graph declares about results of operators that ONNX has no inference for."""
    for node in model.graph:
        if not onnx.defs.has(node.op_type, node.domain) and node.op_identifier() not in model.functions:
            for value in node.outputs:
                value.shape = None


def _possible(shape: ir.Shape) -> ir.Shape:
    """`shape` without negative dimensions: inference finds them in branches that the given inputs never take."""
    return ir.Shape([None if isinstance(dim, int) and dim < 0 else dim for dim in shape])


def merged(inferred: ir.Shape | None, declared: ir.Shape | None) -> ir.Shape | None:
    """`inferred`, with its open dimensions taken from `declared` where both have the same rank."""
    if inferred is None or declared is None:
        return declared if inferred is None else inferred  # the shape of a scalar is false
    if inferred.is_static() or len(inferred) != len(declared):
        return inferred
    return ir.Shape(
        [a if isinstance(a, int) or not isinstance(b, int) else b for a, b in zip(inferred, declared, strict=True)]
    )


def _infer(proto: onnx.ModelProto, settled: Set[str]) -> tuple[onnx.ModelProto, ModelError | None]:
    """The model with the shapes that onnx infers, and its error if there is one."""
    if settled:
        proto.opset_import.append(onnx.helper.make_opsetid(_SETTLED, 1))
        for graph in _graphs(proto.graph):
            for node in graph.node:
                if node.output and node.output[0] in settled:
                    node.domain, node.op_type = _SETTLED, "Settled"  # which has no rule: its declared type stays
    try:
        return _inferred(proto, strict=True), None
    except onnx.shape_inference.InferenceError as problem:
        text, error = one_line(str(problem)), None
        # An operator defined by a function fails inside its own body on legal models (MeanVarianceNormalization).
        if text.count("(op_type:") < 2 and not (_is_foreign(proto) and any(part in text for part in _UNTYPED)):
            error = ModelError(f"{_naming_node(text)}; correct the model or its input shapes")
            error.__cause__ = problem
    try:
        return _inferred(proto, strict=False), error
    except onnx.shape_inference.InferenceError as problem:
        return proto, error or ModelError(f"the shapes do not fit: {one_line(str(problem))}")


_UNTYPED = ("expected to have type but instead is null", "or optionals, but output", "declared=0", "inferred=0")
"""Parts of onnx's errors about values without a type, such as results of operators that onnx does not know."""


def _is_foreign(proto: onnx.ModelProto) -> bool:
    return any(node.domain not in ("", "ai.onnx") for graph in _graphs(proto.graph) for node in graph.node)


def _inferred(proto: onnx.ModelProto, *, strict: bool) -> onnx.ModelProto:
    """Infer shapes with onnx; without data propagation where its sums overflow, which is no fault of a model."""
    for propagated in (True, False):
        try:
            return onnx.shape_inference.infer_shapes(proto, check_type=strict, strict_mode=strict, data_prop=propagated)
        except onnx.shape_inference.InferenceError as error:
            if not propagated or "data propagation" not in str(error):
                raise
    raise AssertionError


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield from _graphs(inner)


def _naming_node(text: str) -> str:
    """onnx's message as a sentence that begins with the node."""
    match = re.search(r"\(op_type:([^,)]+)(?:, node name: (.*?))?\): (?:\[\w+\] )?(.*)", text)
    if match is None:
        return f"the shapes do not fit: {text}"
    return f"node {match[2] or '(unnamed)'} ({match[1]}) does not fit its operands: {match[3]}"


def one_line(text: str) -> str:
    """A library's message as part of a sentence: one line, without a final stop, of bounded length."""
    line = " ".join(text.split()).rstrip(".;")
    return line if len(line) <= 400 else line[:397] + "..."


def with_skeleton(model: ir.Model, function: Callable[[onnx.ModelProto], _Result]) -> _Result:
    """Call `function` on a protobuf of `model` in which large weights are mere inputs, after the real ones."""
    with _without_weights(model):
        proto = ir.to_proto(model)
    return function(proto)


@contextmanager
def _without_weights(model: ir.Model) -> Iterator[None]:
    graph = model.graph
    real_inputs = len(graph.inputs)
    weights = [value for value in graph.initializers.values() if _is_large(stored(value))]
    tensors = [stored(value) for value in weights]
    for value in weights:
        assert value.name is not None
        graph.initializers.pop(value.name)
        value.const_value = None
        graph.inputs.append(value)
    try:
        yield
    finally:
        while len(graph.inputs) > real_inputs:  # one by one: a slice that is deleted leaves its values marked as inputs
            graph.inputs.pop()
        for value, tensor in zip(weights, tensors, strict=True):
            value.const_value = tensor
            graph.register_initializer(value)


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    return tensor is not None and tensor.nbytes > SMALL_BYTES
