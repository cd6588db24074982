"""The --shapes spelling and what becomes of symbolic dimensions."""

import re
from contextlib import suppress

import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import ModelError
from graphopt.frontend.load import load, parse_shapes

NAMES = st.text(st.characters(exclude_characters=",", exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1)
SHAPES = st.dictionaries(NAMES, st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple), min_size=1)


@given(SHAPES)
def test_a_printed_spelling_parses_back(shapes: dict[str, tuple[int, ...]]) -> None:
    spelling = ",".join(f"{name}:{'x'.join(map(str, dims))}" for name, dims in shapes.items())
    assert parse_shapes(spelling) == shapes


@given(st.text())
def test_any_text_parses_or_is_refused(text: str) -> None:
    with suppress(ModelError):
        assert parse_shapes(text)


@pytest.mark.parametrize("text", ["", "x", "x:", ":1", "x:1x", "x:-1", "x:1.5", "x:ax2", "x:1,x:2", "x:99999999999"])
def test_bad_spellings(text: str) -> None:
    if text == "x:":
        assert parse_shapes(text) == {"x": ()}
        return
    with pytest.raises(ModelError, match="--shapes"):
        parse_shapes(text)


def two_inputs() -> onnx.ModelProto:
    return onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[batch,seq] x, float[batch,seq] m, float[3] c) => (float[batch,seq] y) { y = Mul(x, m) }"""
    )


@pytest.mark.parametrize(
    ("shapes", "sentence"),
    [
        (None, "input x leaves dimension 1 (seq) open; give it a size, for example --shapes x:1x128,m:1x128"),
        ({"q": (1,)}, "--shapes names 'q', which is no input; the inputs are x, m, c"),
        (
            {"x": (1,)},
            "--shapes x:1 has 1 dimensions, and the input is declared batchxseq; give one size per dimension",
        ),
        (
            {"x": (1, 2), "m": (1, 3)},
            "--shapes gives the dimension 'seq' as 2 in x and 3 in m; make them equal",
        ),
        (
            {"x": (1, 2), "c": (4,)},
            "--shapes c:4 asks for 4 on axis 0, and the input is declared 3; "
            "export the model with that dimension symbolic",
        ),
        (
            {"x": (1 << 30, 1 << 30)},
            "input x has the shape 1073741824x1073741824, more than 1 TiB; correct the model's shapes",
        ),
    ],
)
def test_refusals(shapes: dict[str, tuple[int, ...]] | None, sentence: str) -> None:
    with pytest.raises(ModelError, match=f"^{re.escape(sentence)}$"):
        load(two_inputs(), shapes=shapes)


def test_one_input_settles_the_symbols_of_another() -> None:
    loaded = load(two_inputs(), shapes={"x": (2, 5)})
    assert [value.shape for value in loaded.model.graph.inputs[:2]] == [ir.Shape([2, 5])] * 2
    assert loaded.notes == ()


def test_unknown_rank_needs_a_shape() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
    )
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError, match="leaves its rank open; give it a size, for example --shapes x:1x3x224x224"):
        load(model)
    assert load(model, shapes={"x": (4,)}).model.graph.outputs[0].shape == ir.Shape([4])


def test_unnamed_batch_becomes_one_and_says_so() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[?,3] x) => (float[?,3] y) { y = Relu(x) }'
    )
    loaded = load(model)
    assert loaded.notes == ("input x: unnamed batch dimension fixed to 1",)
    assert loaded.model.graph.outputs[0].shape == ir.Shape([1, 3])


def test_wrong_declared_intermediate_shapes_do_not_matter() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[2,3] x) => (float[3,2] y) <float[7,7] t> { t = Transpose(x) y = Relu(t) }"""
    )
    assert load(model).model.graph.node(0).outputs[0].shape == ir.Shape([3, 2])


@pytest.mark.parametrize("kind", ["float", "float16"])
def test_an_operator_whose_function_does_not_fit_its_type_loads(kind: str) -> None:
    """onnx's MeanVarianceNormalization adds a float to everything."""
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["": 20]>
        g ({kind}[1,6,12] x) => ({kind}[1,6,12] y) {{
            y = MeanVarianceNormalization<axes = [0, 1, 2]>(x) }}"""
    )
    assert load(model).model.graph.outputs[0].shape == ir.Shape([1, 6, 12])


@pytest.mark.parametrize("size", ["99999999999", "2147483648", "9" * 5000])
def test_a_size_too_large_is_called_that(size: str) -> None:
    with pytest.raises(ModelError, match="a dimension above 2147483647") as found:
        parse_shapes(f"x:{size}x10")
    assert len(str(found.value)) < 600
