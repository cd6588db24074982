"""Structural checks of a protobuf before any library walks it: later steps may assume a finite, acyclic, named graph.

Each refusal is one sentence that names the node or value. The checks are linear in the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]

from graphopt.errors import ModelError
from graphopt.frontend.files import check_tensor, checked_size
from graphopt.frontend.opsets.runtime import check_signature
from graphopt.frontend.sparse import check_sparse

MAX_NODES = 1_000_000
"""Nodes after inlining: a chain of functions that call each other ten times grows past any memory."""

MAX_DEPTH = 24
"""Graphs nested in attributes of nodes."""

OWN_DOMAIN = "graphopt"
_RUNTIME_DOMAINS = frozenset({"com.microsoft"})  # no schemas here, but ONNX Runtime runs them


@dataclass
class _Scope:
    """Context of a walk: the opsets in force, the functions, and the model's folder."""

    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str, str], onnx.FunctionProto]
    base_dir: Path | None
    in_function: bool = False
    attributes: frozenset[str] = field(default_factory=frozenset)


def check_structure(model: onnx.ModelProto, base_dir: Path | None) -> bool:
    """Check `model`; True when its nodes are already in topological order. Raises ModelError."""
    _check_text(model)
    if not 1 <= model.ir_version <= onnx.IR_VERSION:
        raise ModelError(
            f"the model has IR version {model.ir_version}, and onnx {onnx.__version__} knows 1 to {onnx.IR_VERSION}; "
            "export it for one of these"
        )
    if not model.graph.output:
        raise ModelError("the model's graph has no outputs, so there is nothing to compute; export it again")
    functions: dict[tuple[str, str, str], onnx.FunctionProto] = {}
    for function in model.functions:
        key = (_domain(function.domain), function.name, function.overload)
        if not function.name or key in functions:
            raise ModelError(
                f"the function {function.domain}:{function.name} is nameless or defined twice; export it again"
            )
        functions[key] = function
    opsets = _opsets(model.opset_import, "the model")
    if model.ir_version < 3 and not opsets:
        opsets = {"": 1}
    _check_expansion(model.graph, functions)
    in_order = True
    for function in functions.values():
        scope = _Scope(
            _opsets(function.opset_import, f"function {function.name}") or opsets,
            functions,
            base_dir,
            in_function=True,
            attributes=frozenset([*function.attribute, *(item.name for item in function.attribute_proto)]),
        )
        in_order &= _check_function(function, scope)
    return _check_graph(model.graph, _Scope(opsets, functions, base_dir), frozenset(), 0) and in_order


def _check_text(model: onnx.ModelProto) -> None:
    """Refuse text that is not UTF-8: protobuf hands it out as bytes, which no library expects."""
    stack: list[Any] = [model]
    while stack:
        message = stack.pop()
        if isinstance(message, onnx.TensorProto):  # without ListFields, which would copy the weights
            texts: list[Any] = [message.name, message.doc_string]
            stack += [*message.external_data, *message.metadata_props]
        else:
            texts = []
            for descriptor, value in message.ListFields():
                if descriptor.type == FieldDescriptor.TYPE_STRING:
                    texts += [value] if isinstance(value, str | bytes) else value
                elif descriptor.type == FieldDescriptor.TYPE_MESSAGE:
                    stack += value if isinstance(value, Sequence) else [value]
        if any(isinstance(text, bytes) for text in texts):
            kind = type(message).__name__.removesuffix("Proto").lower()
            raise ModelError(
                f"a {kind} of the model has a text that is not UTF-8; the file is damaged, export it again"
            )


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _opsets(imports: Iterable[onnx.OperatorSetIdProto], who: str) -> dict[str, int]:
    known = onnx.defs.onnx_opset_version()
    opsets: dict[str, int] = {}
    for entry in imports:
        domain = _domain(entry.domain)
        if opsets.setdefault(domain, entry.version) != entry.version:
            raise ModelError(f"{who} imports two versions of the domain {domain or 'ai.onnx'!r}; export it again")
        if not 1 <= entry.version <= (known if domain == "" else 2**31 - 1):
            raise ModelError(
                f"{who} imports opset {entry.version} of {domain or 'ai.onnx'}, "
                f"and onnx {onnx.__version__} knows 1 to {known} of ai.onnx; export it for one of these"
            )
    return opsets


def _check_expansion(graph: onnx.GraphProto, functions: Mapping[tuple[str, str, str], onnx.FunctionProto]) -> None:
    """Refuse recursive functions and graphs whose inlined size is unreasonable, by counting without inlining."""
    calls: TopologicalSorter[tuple[str, str, str]] = TopologicalSorter()
    counts: dict[tuple[str, str, str], list[onnx.NodeProto]] = {}
    for key, function in functions.items():
        counts[key] = list(_all_nodes(function.node))
        callees = ((_domain(node.domain), node.op_type, node.overload) for node in counts[key])
        calls.add(key, *(callee for callee in callees if callee in functions))
    try:
        order = list(calls.static_order())  # callees first
    except CycleError as error:
        cycle = " -> ".join(key[1] for key in error.args[1])
        raise ModelError(
            f"the functions {cycle} call each other in a circle; export the model without recursion"
        ) from None
    size: dict[tuple[str, str, str], int] = {}

    def expanded(nodes: Iterable[onnx.NodeProto]) -> int:
        return sum(size.get((_domain(node.domain), node.op_type, node.overload), 1) for node in nodes)

    for key in order:
        size[key] = expanded(counts[key])
    total = expanded(_all_nodes(graph.node))
    if total > MAX_NODES:
        raise ModelError(f"the model has {total} nodes after inlining, more than {MAX_NODES}; split it")


def _all_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    """`nodes` and those of all nested graphs, to the depth limit."""
    stack = [(node, 0) for node in nodes]
    while stack:
        node, depth = stack.pop()
        yield node
        for attribute in node.attribute:
            graphs = [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
            if graphs and depth >= MAX_DEPTH:
                raise ModelError(f"node {_label(node)} nests graphs deeper than {MAX_DEPTH}; flatten the model")
            stack.extend((inner, depth + 1) for graph in graphs for inner in graph.node)


def _check_function(function: onnx.FunctionProto, scope: _Scope) -> bool:
    names = list(function.input)
    if len(set(names)) != len(names):
        raise ModelError(f"the function {function.name} names an input twice; export the model again")
    in_order, defined = _check_nodes(function.node, set(names), frozenset(), scope, 0)
    for name in function.output:
        if name not in defined:
            raise ModelError(
                f"the output {name} of function {function.name} is computed by no node; export the model again"
            )
    return in_order


def _check_graph(graph: onnx.GraphProto, scope: _Scope, outer: frozenset[str], depth: int) -> bool:
    """Check `graph`, in which the names `outer` are visible too."""
    defined: set[str] = set()
    for info in graph.input:
        if not info.name or info.name in defined:
            raise ModelError(f"the graph input {info.name!r} is nameless or declared twice; export the model again")
        defined.add(info.name)
        if depth == 0:
            _check_type(info, "input", required=True)
    initializers: set[str] = set()
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in initializers:
            raise ModelError(f"the initializer {tensor.name!r} is nameless or defined twice; export the model again")
        initializers.add(tensor.name)
        check_tensor(tensor, f"initializer {tensor.name}", scope.base_dir)
    for sparse in graph.sparse_initializer:
        name = sparse.values.name
        if not name or name in initializers:
            raise ModelError(f"the initializer {name!r} is nameless or defined twice; export the model again")
        initializers.add(name)
        check_sparse(sparse, f"initializer {name}", scope.base_dir)
    defined |= initializers
    for info in graph.value_info:
        _check_type(info, "value", required=False)
    in_order, defined = _check_nodes(graph.node, defined, outer, scope, depth)
    for info in graph.output:
        if info.name not in defined:
            what = "comes from the graph around it" if info.name in outer else "is computed by no node"
            raise ModelError(
                f"the graph output {info.name!r} {what}; put an Identity node before it or export the model again"
            )
        _check_type(info, "output", required=False)
    return in_order


def _check_type(info: onnx.ValueInfoProto, role: str, *, required: bool) -> None:
    kind = info.type.WhichOneof("value")
    if kind is None:
        if required:
            raise ModelError(f"the {role} {info.name} has no type; declare its element type and shape")
        return
    inner = info.type
    for _ in range(MAX_DEPTH):  # sequence and optional types nest
        kind = inner.WhichOneof("value")
        if kind == "sequence_type":
            inner = inner.sequence_type.elem_type
        elif kind == "optional_type":
            inner = inner.optional_type.elem_type
        else:
            break
    if kind == "map_type" and required:
        raise ModelError(f"the {role} {info.name} is a map, which no program takes; export the model for tensors")
    if kind == "map_type":
        return
    if kind != "tensor_type":
        if required or kind is not None:
            raise ModelError(
                f"the {role} {info.name} is neither a tensor nor a sequence or map of tensors; export the model again"
            )
        return
    tensor = inner.tensor_type
    try:
        dtype = ir.DataType(tensor.elem_type)
    except ValueError:
        raise ModelError(
            f"the {role} {info.name} has the unknown element type {tensor.elem_type}; export it again"
        ) from None
    if dtype == ir.DataType.UNDEFINED and required:
        raise ModelError(f"the {role} {info.name} has no element type; declare its element type and shape")
    sizes = (dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim)
    dims = tuple(1 if size == -1 else size for size in sizes)  # -1 is another spelling of an open dimension
    checked_size(dims, dtype, f"the {role} {info.name}")


def _check_nodes(
    nodes: Iterable[onnx.NodeProto], defined: set[str], outer: frozenset[str], scope: _Scope, depth: int
) -> tuple[bool, set[str]]:
    """Check the nodes of one graph whose inputs and initializers are `defined`.

    Returns whether they are in order, and all names the graph defines. Refuses undefined and twice defined values,
    cycles, unknown operators, and attributes that refer to a function's attributes outside of it.
    """
    nodes = list(nodes)
    producer: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if name and (name in producer or name in defined):
                raise ModelError(
                    f"the value {name} is defined twice, the second time by node {_label(node)}; export it again"
                )
            if name:
                producer[name] = index
    all_names = defined | producer.keys()
    visible = outer | all_names if any(_has_graphs(node) for node in nodes) else frozenset()
    in_order = True
    edges: list[tuple[int, int]] = []
    for index, node in enumerate(nodes):
        _check_operator(node, scope)
        used = {name for name in node.input if name}
        for attribute in node.attribute:
            in_order &= _check_attribute(node, attribute, scope, frozenset(visible), depth)
            used |= _captured(attribute)
        for name in used:
            if name in producer:
                edges.append((producer[name], index))
                in_order &= producer[name] < index
            elif name not in defined and name not in outer and name in node.input:
                raise ModelError(f"node {_label(node)} reads {name}, which nothing computes; export the model again")
    if any(source >= sink for source, sink in edges):
        order: TopologicalSorter[int] = TopologicalSorter()
        for source, sink in edges:
            order.add(sink, source)
        try:
            order.prepare()
        except CycleError as error:
            cycle = " -> ".join(_label(nodes[index]) for index in error.args[1][:6])
            raise ModelError(f"the nodes {cycle} form a cycle, so none can run first; export the model again") from None
    return in_order, all_names


def _has_graphs(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _captured(attribute: onnx.AttributeProto) -> set[str]:
    """Names that the graphs of `attribute` capture from outside."""
    names: set[str] = set()
    for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
        free = {info.name for info in graph.output}
        for node in graph.node:
            free.update(node.input, *map(_captured, node.attribute))
        free.difference_update(*(node.output for node in graph.node))
        names |= free - {info.name for info in graph.input} - {tensor.name for tensor in graph.initializer} - {""}
    return names


_MESSAGE_FIELDS = {
    onnx.AttributeProto.TENSOR: "t",
    onnx.AttributeProto.GRAPH: "g",
    onnx.AttributeProto.SPARSE_TENSOR: "sparse_tensor",
    onnx.AttributeProto.TYPE_PROTO: "tp",
}


def _check_operator(node: onnx.NodeProto, scope: _Scope) -> None:
    domain = _domain(node.domain)
    names: set[str] = set()
    for attribute in node.attribute:
        missing = _MESSAGE_FIELDS.get(attribute.type, "")
        if not attribute.name or attribute.name in names:
            raise ModelError(
                f"node {_label(node)} has the attribute {attribute.name!r} twice or nameless; export it again"
            )
        if attribute.type == onnx.AttributeProto.UNDEFINED or (
            missing and not attribute.ref_attr_name and not attribute.HasField(missing)
        ):
            raise ModelError(
                f"the attribute {attribute.name} of node {_label(node)} has no value; export the model again"
            )
        names.add(attribute.name)
    if (domain, node.op_type, node.overload) in scope.functions or domain in _RUNTIME_DOMAINS:
        return
    if domain not in scope.opsets:
        raise ModelError(
            f"node {_label(node)} is of the domain {domain or 'ai.onnx'!r}, which the model does not import; "
            "export it again"
        )
    version = scope.opsets[domain]
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError:
        if domain == "" and check_signature(node, version, _label(node)):
            return
        raise ModelError(
            f"node {_label(node)} uses an operator that {domain or 'ai.onnx'} {version} does not define; "
            "add it to the model as a function or replace it"
        ) from None
    for side, count, least, most in (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    ):
        if not least <= count <= most:
            raise ModelError(
                f"node {_label(node)} has {count} {side}, and its operator takes {least} to {most}; correct the node"
            )
    for attribute in node.attribute:
        wanted = schema.attributes.get(attribute.name)
        if wanted is None:
            raise ModelError(f"node {_label(node)} has no attribute {attribute.name} at opset {version}; remove it")
        kind, takes = onnx.AttributeProto.AttributeType.Name(attribute.type), str(wanted.type).rpartition(".")[2]
        if kind != takes:
            raise ModelError(
                f"the attribute {attribute.name} of node {_label(node)} is {kind}, and its operator takes "
                f"{takes}; correct the node"
            )
    for attribute in schema.attributes.values():
        if attribute.required and attribute.name not in names:
            raise ModelError(f"node {_label(node)} lacks the attribute {attribute.name}; give it a value")


def _check_attribute(
    node: onnx.NodeProto, attribute: onnx.AttributeProto, scope: _Scope, visible: frozenset[str], depth: int
) -> bool:
    if attribute.ref_attr_name and attribute.ref_attr_name not in scope.attributes:
        raise ModelError(
            f"node {_label(node)} takes its attribute {attribute.name} from {attribute.ref_attr_name!r}, "
            "which no surrounding function has; give it a value"
        )
    where = f"attribute {attribute.name} of node {_label(node)}"
    for tensor in [*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors]:
        check_tensor(tensor, where, scope.base_dir)
    if attribute.HasField("sparse_tensor"):
        check_sparse(attribute.sparse_tensor, where, scope.base_dir)
    in_order = True
    for graph in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
        in_order &= _check_graph(graph, scope, visible, depth + 1)
    return in_order


def _label(node: onnx.NodeProto) -> str:
    return f"{node.name or next((name for name in node.output if name), '(unnamed)')} ({node.op_type or 'no operator'})"
