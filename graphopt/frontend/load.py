"""`load`: turn every kind of model source into one checked, static, folded `onnx_ir.Model`.

read        path, compressed file, ModelProto, onnx_ir.Model, torch.nn.Module or zoo:NAME; no source is modified
check       structure, payloads and external paths, before any library walks the graph
inline      functions of other domains than our own
fix         symbolic input dimensions
convert     up to opset 20, IR version 11, by the rules of `graphopt.frontend.opsets`
infer, fold until nothing changes
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from graphopt.errors import GraphoptError, ModelError
from graphopt.frontend.checks import OWN_DOMAIN, check_structure
from graphopt.frontend.complete import complete
from graphopt.frontend.files import check_external, check_tensor, each_tensor, has_nan, own_tensor, read_model
from graphopt.frontend.fold import lift_constants
from graphopt.frontend.maps import untyped_maps
from graphopt.frontend.names import canonical_domain, unique_names
from graphopt.frontend.opsets.convert import convert, is_current
from graphopt.frontend.opsets.site import NoRule
from graphopt.frontend.shapes import (
    drop_claims,
    fix_inputs,
    infer_shapes,
    one_line,
    open_dims,
    parse_shapes,
    with_skeleton,
)
from graphopt.frontend.sparse import densify
from graphopt.frontend.torch_module import export
from graphopt.frontend.training import Marks, mark_for_training
from graphopt.frontend.valid import check
from graphopt.graph.constness import is_state, stored
from graphopt.graph.opsets import OPSET
from graphopt.storage.protos import tensors
from graphopt.storage.restore import is_compressed_file, restore

__all__ = ["IR_VERSION", "Loaded", "Source", "load", "parse_shapes", "read"]

IR_VERSION = 11
"""Multi-device annotations need 11, ONNX Runtime 1.31 reads up to 13."""

Source = "str | os.PathLike[str] | onnx.ModelProto | ir.Model | torch.nn.Module"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready for the pipeline, and `notes` on what loading assumed or changed, a sentence each.

    `original` is the model as the user gave it, the reference of every verification: the path of its file, or the
    user's own object (for a torch.nn.Module the exported model), neither copied nor modified. Inputs and outputs of
    `model` have the names that they have there. `constants` are its inputs with a default value, which replaced them.
    """

    model: ir.Model
    notes: tuple[str, ...]
    original: Path | onnx.ModelProto | ir.Model
    constants: tuple[str, ...] = ()
    marks: Marks | None = None


def load(
    source: Any,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    example_inputs: Any = None,
    training: bool = False,
    freeze: Sequence[str] = (),
) -> Loaded:
    """Load and prepare a model.

    `source` is a path, `zoo:NAME`, an onnx.ModelProto, an onnx_ir.Model, or a torch.nn.Module; a module needs
    `example_inputs` (a tensor, a tuple of arguments or a dict of keyword arguments). `shapes` gives inputs their
    static shapes; a batch dimension (axis 0) left open becomes 1 and `notes` says so. With `training`, weights and
    running statistics are state (`Loaded.marks`), except initializers that match a pattern of `freeze`.

    Raises ModelError, one sentence that names the file, node or input and says what to do.
    """
    wanted = {name: tuple(dims) for name, dims in (shapes or {}).items()}
    notes: list[str] = []
    with _naming(source):
        original = _resolve(source, example_inputs, training)
        model = _open(original, notes)
        constants = _constant_initializers(model, notes)
        _inlined(model, wanted, notes)
        model = _convert(model, notes)
        marks = mark_for_training(model, freeze) if training else None
        notes.extend(marks.notes if marks is not None else ())
        _completed(model)
        return Loaded(model, tuple(notes), original, constants, marks)


def as_given(source: Any, example_inputs: Any = None) -> Loaded:
    """The model as the user gave it, checked: its opset, names, functions and open shapes stay as they are.

    `source` is as in `load`. Sparse initializers become dense, and nodes that were not in execution order are sorted.

    Raises ModelError, one sentence that names the file, node or input and says what to do.
    """
    notes: list[str] = []
    with _naming(source):
        original = _resolve(source, example_inputs)
        return Loaded(_open(original, notes), tuple(notes), original)


@contextlib.contextmanager
def _naming(source: Any) -> Iterator[None]:
    """Errors inside name the source, and are ours."""
    origin = _origin(source)
    try:
        yield
    except GraphoptError as error:
        if origin and origin not in str(error):
            raise type(error)(f"{origin}: {error}") from error
        raise
    except Exception as error:  # the libraries' own complaints about what our checks let through
        raise ModelError(
            f"{origin or 'the model'} cannot be loaded ({_root(error)}); check it with onnx.checker or export it again"
        ) from error


def original(source: str | os.PathLike[str]) -> Path | onnx.ModelProto:
    """A model for ONNX Runtime as the user gave it: the path of a file, or a model of the zoo or a compressed file.

    Raises ModelError, as `load` does.
    """
    with _naming(source):
        found = _resolve(source, None)
    assert isinstance(found, Path | onnx.ModelProto)
    return found


def read(source: str | os.PathLike[str]) -> tuple[onnx.ModelProto, Path | None]:
    """A model as it is stored, for whoever changes its weights alone, and the folder of its external data.

    `source` is a path, also of a compressed model, or `zoo:NAME`. The structure and all tensors are checked.

    Raises ModelError, as `load` does.
    """
    original = _resolve(source, None)
    folder = original.resolve().parent if isinstance(original, Path) else None
    try:
        model = read_model(original) if isinstance(original, Path) else original
        assert isinstance(model, onnx.ModelProto)
        check_structure(model, folder)
        for tensor in tensors(model):  # also where nothing is computed with them
            check_tensor(tensor, f"tensor {tensor.name}", folder)
    except ModelError as error:
        raise ModelError(str(error) if _origin(source) in str(error) else f"{_origin(source)}: {error}") from error
    return model, folder


def _root(error: BaseException) -> str:
    """The innermost cause of `error`: the libraries wrap each level of a model in an exception of its own."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {one_line(str(error))}"


def _origin(source: Any) -> str:
    return os.fspath(source) if isinstance(source, str | os.PathLike) else ""


def _resolve(source: Any, example_inputs: Any, training: bool = False) -> Path | onnx.ModelProto | ir.Model:
    """The original model of `source`: the path of a file, or an object that nothing here modifies."""
    if isinstance(source, str) and source.startswith("zoo:"):
        from graphopt import models

        source = models.build(source.removeprefix("zoo:"))
    if isinstance(source, str | os.PathLike):
        return restore(source) if is_compressed_file(source) else Path(source)
    if isinstance(source, onnx.ModelProto | ir.Model):
        return source
    module_type = type(source)
    if any(base.__module__ == "torch.nn.modules.module" for base in module_type.__mro__):
        return export(source, example_inputs, folded=not training)
    raise ModelError(
        f"a {module_type.__name__} is no model; give a path, an onnx.ModelProto, an onnx_ir.Model or a torch.nn.Module"
    )


def _open(original: Path | onnx.ModelProto | ir.Model, notes: list[str]) -> ir.Model:
    """The model in IR form, checked, sharing weights with the original but no mutable object."""
    if isinstance(original, Path):
        return _from_proto(read_model(original), original.resolve().parent, notes, ours=True)
    if isinstance(original, onnx.ModelProto):
        return _from_proto(original, None, notes, ours=False)
    return _from_ir(original, notes)


def _from_proto(proto: onnx.ModelProto, base_dir: Path | None, notes: list[str], *, ours: bool) -> ir.Model:
    in_order = check_structure(proto, base_dir)
    model = ir.from_proto(untyped_maps(densify(proto, ours=ours), ours=ours))
    declared = {info.name: info for info in proto.graph.input}
    for value in set(model.graph.inputs) & set(model.graph.outputs):  # onnx_ir took what the output declares
        info = ir.serde.deserialize_value_info_proto(declared[str(value.name)], None)
        value.type, value.shape = info.type, info.shape
    if base_dir is not None:
        for _, tensor in each_tensor(model):
            if isinstance(tensor, ir.ExternalTensor):
                tensor.base_dir = base_dir
    _detach(model)
    _sort(model, in_order, notes)
    return model


def _from_ir(source: ir.Model, notes: list[str]) -> ir.Model:
    model = source.clone()
    for where, tensor in each_tensor(model):
        if isinstance(tensor, ir.ExternalTensor):
            base_dir = Path(tensor.base_dir or ".").resolve()
            check_external(where, os.fspath(tensor.location), tensor.offset, tensor.length, tensor.nbytes, base_dir)
    _detach(model)
    in_order = with_skeleton(model, lambda proto: check_structure(proto, None))
    _sort(model, in_order, notes)
    return model


def _detach(model: ir.Model) -> None:
    """Give `model` tensor objects of its own over shared bytes: renaming a value renames its tensor."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if (tensor := stored(value)) is not None:
                value.const_value = own_tensor(tensor)
    for part in (*model.graphs(), *model.functions.values()):
        for node in part:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    node.attributes[name] = ir.AttrTensor(name, own_tensor(attribute.as_tensor()))


def _sort(model: ir.Model, in_order: bool, notes: list[str]) -> None:
    if not in_order:
        common.TopologicalSortPass()(model)
        notes.append("the nodes were not in execution order and were sorted")


def _inlined(model: ir.Model, shapes: Mapping[str, tuple[int, ...]], notes: list[str]) -> None:
    """Spell a model in operators alone, its constants as initializers, its inputs with static shapes."""
    for where, tensor in each_tensor(model):
        if not where.startswith("attribute") and has_nan(tensor):  # an operator may well compare with NaN
            notes.append(f"{where} contains NaN")
    _distinct_outputs(model, notes)
    canonical_domain(model)
    _inline(model)
    model.ir_version = IR_VERSION
    unique_names(model)  # before the checks, whose messages name nodes
    lift_constants(model)
    open_dims(model)
    notes.extend(fix_inputs(model, shapes))


def _completed(model: ir.Model) -> None:
    """Check the model, infer its shapes and fold its constants."""
    with_skeleton(model, check)
    drop_claims(model)
    complete(model)


def _distinct_outputs(model: ir.Model, notes: list[str]) -> None:
    """Merge outputs of the model that are listed several times: they have one name, and so one result.

    Outputs of inner graphs count by their position, so repeated ones become copies.
    """
    for graph in model.graph.subgraphs():
        for index, value in enumerate(list(graph.outputs)):
            if value in graph.outputs[:index]:
                copy = ir.node("Identity", [value])
                graph.append(copy)
                graph.outputs[index] = copy.outputs[0]
    outputs = model.graph.outputs
    distinct = list(dict.fromkeys(outputs))
    if len(distinct) < len(outputs):
        repeated = sorted({str(value.name) for value in outputs if list(outputs).count(value) > 1})
        notes.append(f"the model lists its output {', '.join(repeated)} more than once, and its results have it once")
        outputs[:] = distinct


def _is_operator(name: str, version: int) -> bool:
    try:
        onnx.defs.get_schema(name, version, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _check_calls(model: ir.Model) -> None:
    """Raises ModelError for a call of a function that takes other outputs than it gives."""
    callers: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
    for caller in callers:
        for node in caller.all_nodes():
            function = model.functions.get(node.op_identifier())
            if function is not None and len(node.outputs) != len(function.outputs):
                raise ModelError(
                    f"node {node.name or node.outputs[0].name} calls the function {function.domain}.{function.name}, "
                    f"which has outputs {', '.join(str(value.name) for value in function.outputs)}, with "
                    f"{len(node.outputs)} of its own; export the model again"
                )


def _inline(model: ir.Model) -> None:
    """Inline the functions that are not ours; their nodes keep their opset.

    A function with the name of an ONNX operator is never called: ONNX Runtime has a kernel for the operator.
    """
    for key, function in list(model.functions.items()):
        if function.domain == "" and _is_operator(function.name, model.opset_imports.get("", 1)):
            del model.functions[key]
    _check_calls(model)
    foreign = [function for function in model.functions.values() if function.domain != OWN_DOMAIN]
    for function in foreign:
        version = function.opset_imports.get("")
        for node in function.all_nodes():
            if node.domain == "" and version is not None:
                node.version = version
        for domain, number in function.opset_imports.items():
            model.opset_imports[domain] = (
                max(number, model.opset_imports.get(domain, 0)) if domain else (model.opset_imports.get(domain, number))
            )
    for function in foreign:
        function.opset_imports.update(model.opset_imports)
    common.InlinePass(criteria=lambda function: function.domain != OWN_DOMAIN)(model)


def _constant_initializers(model: ir.Model, notes: list[str]) -> tuple[str, ...]:
    """Make initializers constants: before IR version 4 all were inputs too; later, inputs can have a default value.

    Returns the names of inputs that had a default value, which a caller might want to feed.
    """
    defaults: tuple[str, ...] = ()
    if model.ir_version >= 4:
        given = [value for value in model.graph.inputs if value.is_initializer() and not is_state(value)]
        defaults = tuple(str(value.name) for value in given)
    if defaults:
        notes.append(f"the default values of the inputs {', '.join(defaults)} became constants")
    common.RemoveInitializersFromInputsPass()(model)
    for graph in model.graphs():
        for value in graph.initializers.values():
            if (tensor := stored(value)) is not None:
                value.type = ir.TensorType(tensor.dtype)
                value.shape = ir.Shape(tensor.shape.numpy())
    return defaults


def _convert(model: ir.Model, notes: list[str]) -> ir.Model:
    """Convert to OPSET, or to a later one that the model or a function imports, or say why the model's is kept."""
    version = model.opset_imports.get("", OPSET)
    versions = {node.version or version for node in model.graph.all_nodes() if node.domain == ""} | {version}
    target = max(OPSET, *versions)
    if is_current(model, target):
        return model
    if versions == {version}:
        with contextlib.suppress(ModelError):  # for the rules that ask for a rank; the model is judged afterwards
            infer_shapes(model)
    converted = model.clone()
    try:
        convert(converted, target)
    except NoRule as error:
        if versions != {version}:
            raise ModelError(f"{error}; export the model with one opset for all its functions") from error
        notes.append(f"opset {version} is kept: {error}")
        return model
    unique_names(converted)  # rules name what they add within one graph only
    _detach(converted)
    return converted
