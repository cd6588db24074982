import onnx_ir as ir
import pytest

from graphopt import ops
from graphopt.errors import ModelError


def empty_model(opset: int) -> ir.Model:
    return ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": opset}, name="g"), ir_version=11)


@pytest.mark.parametrize("name", ops.names())
def test_function_takes_every_attribute_by_reference(name: str) -> None:
    function = ops.function(name)
    assert function.identifier() == ("graphopt", name, "")
    used = {a.ref_attr_name for node in function for a in node.attributes.values() if a.is_ref()}
    assert used == set(function.attributes)
    assert set(function.attributes) - set(ops.attributes(name)) <= {"compute"}


def test_no_name_is_a_standard_operator_except_attention() -> None:
    import onnx.defs

    standard = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}
    assert standard & set(ops.names()) == {"Attention"}


def test_ensure_adds_once_with_the_opset_of_the_model() -> None:
    model = empty_model(21)
    assert ops.ensure(model, "ToBlocked")
    assert not ops.ensure(model, "ToBlocked")
    assert model.opset_imports == {"": 21, "graphopt": 1}
    assert [f.opset_imports for f in model.functions.values()] == [{"": 21}]


def test_ensure_refuses_an_old_opset() -> None:
    with pytest.raises(ModelError, match="needs ONNX opset 18 or later, the model has 17"):
        ops.ensure(empty_model(17), "ToBlocked")


def test_unknown_operator() -> None:
    with pytest.raises(ModelError, match="no operator Conv3d"):
        ops.function("Conv3d")
