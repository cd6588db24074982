"""Functions of a model are inlined, but for those of the domain graphopt."""

import numpy as np
import onnx
import pytest

from graphopt.errors import ModelError
from graphopt.frontend.load import load
from tests.helpers.loaded import ops, run, text


def test_foreign_functions_are_inlined_and_ours_survive() -> None:
    functions = """
    <opset_import: ["": 20], domain: "local"> twice (a) => (b) { b = Add(a, a) }
    <opset_import: ["": 20], domain: "graphopt"> Square (a) => (b) { b = Mul(a, a) }"""
    model = text(
        "g (float[2] x) => (float[2] y) { t = local.twice(x) y = graphopt.Square(t) }",
        imports=', "local": 1, "graphopt": 1',
        functions=functions,
    )
    loaded = load(model).model
    assert ops(loaded) == ["Add", "Square"]
    assert [key[0] for key in loaded.functions] == ["graphopt"]
    assert loaded.opset_imports == {"": 20, "graphopt": 1}
    np.testing.assert_array_equal(run(loaded, {"x": np.array([1, 2], np.float32)})[0], [4, 16])


def test_functions_with_names_of_operators_are_not_called() -> None:
    """ONNX Runtime has a kernel for those."""
    model = text("g (float[3] x) => (float[3] y) { y = Relu(x) }")
    model.functions.append(
        onnx.helper.make_function(
            "", "Relu", ["a"], ["b"], [onnx.helper.make_node("Neg", ["a"], ["b"])], [onnx.helper.make_opsetid("", 18)]
        )
    )
    assert ops(load(model).model) == ["Relu"]


@pytest.mark.parametrize("called", ["Both", "Caller"])
def test_a_call_with_other_outputs_is_refused(called: str) -> None:
    model = onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 18, "own": 1]>
        g (float[3] x) => (float[3] y) {{ y = own.{called}(x) }}
        <domain: "own", opset_import: ["": 18]> Both (a) => (b, c) {{ b = Neg(a) c = Exp(a) }}
        <domain: "own", opset_import: ["": 18, "own": 1]> Caller (a) => (y) {{ y = own.Both(a) }}""")
    with pytest.raises(ModelError, match=r"node y calls the function own.Both, which has outputs b, c, with 1 of its"):
        load(model)
