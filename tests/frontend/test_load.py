"""Every kind of source, and what loading does to a model: names, opset, shapes, constants."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import numpy_helper

import graphopt
from graphopt.errors import ModelError
from graphopt.frontend.load import IR_VERSION, load
from graphopt.graph.opsets import OPSET
from tests.helpers.loaded import dynamic, ops, run, text

LIGHT = Path(os.path.dirname(onnx.__file__), "backend/test/data/light")


@pytest.mark.parametrize("name", [path.stem for path in sorted(LIGHT.glob("*.onnx"))])
def test_light_models_load_static_and_folded(name: str) -> None:
    loaded = graphopt.load(LIGHT / f"{name}.onnx")
    model = loaded.model
    assert loaded.notes == ()
    assert model.opset_imports == {"": OPSET}
    assert model.ir_version == IR_VERSION
    assert dynamic(model) == []
    assert not {"ConstantOfShape", "Constant", "Dropout", "Identity"} & set(ops(model))
    assert len(model.graph.inputs) == 1
    assert all(value.uses() for value in model.graph.initializers.values())


@pytest.mark.parametrize("name", ["light_squeezenet", "light_shufflenet"])
def test_light_model_computes_what_the_file_computes(name: str) -> None:
    original = onnx.load(LIGHT / f"{name}.onnx")
    model = load(original).model
    feed = model.graph.inputs[0]
    assert feed.shape is not None
    x = np.random.default_rng(0).standard_normal(feed.shape.numpy()).astype(np.float32)
    assert feed.name is not None
    for expected, actual in zip(run(original, {feed.name: x}), run(model, {feed.name: x}), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_path_spellings_and_notes(tmp_path: Path) -> None:
    model = text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }")
    path = tmp_path / "relu.onnx"
    onnx.save(model, path)
    for source in (path, str(path), model, ir.from_proto(model)):
        loaded = load(source)
        assert loaded.notes == ("input x: batch dimension 'N' fixed to 1",)
        assert loaded.model.graph.outputs[0].shape == ir.Shape([1, 3])


def test_the_original_is_what_the_user_gave(tmp_path: Path) -> None:
    model = text("g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }", opset=9)
    path = tmp_path / "relu.onnx"
    onnx.save(model, path)
    assert load(str(path)).original == path
    assert load(model).original is model
    as_ir = ir.from_proto(model)
    assert load(as_ir).original is as_ir
    assert as_ir.opset_imports == {"": 9}
    exported = load(torch.nn.ReLU(), example_inputs=(torch.zeros(2),)).original
    assert isinstance(exported, ir.Model)


def test_sources_in_memory_are_not_modified() -> None:
    proto = text("g (float[N,3] x) => (float[N,3] y) { c = Constant<value=float[3] {1,2,3}>() y = Add(x, c) }")
    before = proto.SerializeToString()
    load(proto)
    assert proto.SerializeToString() == before
    model = ir.from_proto(proto)
    weight = ir.Tensor(np.ones((3, 3), np.float32), name="w")
    model.graph.register_initializer(
        ir.Value(name="w", shape=weight.shape, type=ir.TensorType(weight.dtype), const_value=weight)
    )
    before = ir.to_proto(model).SerializeToString()
    load(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_of_an_ir_model_are_shared() -> None:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 20]> '
        "g (float[1,600] x, float[600,600] w) => (float[1,600] y) { y = MatMul(x, w) }"
    )
    weight = model.graph.inputs.pop()
    array = np.ones((600, 600), np.float32)
    weight.const_value = ir.Tensor(array, name="w")
    model.graph.register_initializer(weight)
    tensor = load(model).model.graph.initializers["w"].const_value
    assert tensor is not None
    assert np.shares_memory(tensor.numpy(), array)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.linear = torch.nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.attention(x).mean(1))


def test_torch_module() -> None:
    torch.manual_seed(0)
    module = Block()
    x = torch.randn(2, 5, 16)
    model = load(module, example_inputs=(x,)).model
    assert module.training
    module.eval()
    with torch.no_grad():
        expected = module(x).numpy()
        module.linear.weight.zero_()  # the loaded model is a snapshot
    np.testing.assert_allclose(run(model, {"x": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)
    assert dynamic(model) == []
    with pytest.raises(ModelError, match="needs example inputs"):
        load(module)


def test_other_objects_are_refused() -> None:
    with pytest.raises(ModelError, match="a list is no model"):
        load([1])


def test_shape_arithmetic_of_exporters_folds_away() -> None:
    model = text(
        """g (float[B,S,8] x) => (float[P,Q] y) {
            s = Shape(x)
            zero = Constant<value = int64 {0}>() one = Constant<value = int64 {1}>()
            b = Gather(s, zero) t = Gather(s, one)
            axis = Constant<value = int64[1] {0}>()
            two = Constant<value = int64 {2}>()
            half = Div(t, two)
            b1 = Unsqueeze(b, axis) h1 = Unsqueeze(half, axis) minus = Constant<value = int64[1] {-1}>()
            target = Concat<axis = 0>(b1, h1, minus)
            r = Reshape(x, target)
            s2 = Shape(r) last = Gather(s2, two) l1 = Unsqueeze(last, axis)
            flat = Concat<axis = 0>(minus, l1)
            y = Reshape(r, flat)
        }"""
    )
    loaded = load(model, shapes={"x": (3, 4, 8)})
    assert ops(loaded.model) == ["Reshape", "Reshape"]
    assert loaded.model.graph.outputs[0].shape == ir.Shape([6, 16])
    assert dynamic(loaded.model) == []
    x = np.arange(96, dtype=np.float32).reshape(3, 4, 8)
    np.testing.assert_array_equal(run(loaded.model, {"x": x})[0], run(model, {"x": x})[0])


@pytest.mark.parametrize(
    "nodes",
    [
        "l = Constant<value = float {1}>() y = Clip(c, l)",
        "y = ReduceMax(c)",
        "y = ReduceMin(c)",
        "k = Constant<value = int64[1] {3}>() y, i = TopK(c, k)",
        "a = ArgMax<axis = 0>(c) y = Cast<to = 1>(a)",
        "n = Constant<value = int64[2] {-7, 9223372036854775807}>() m = Constant<value = int64 {4}>() "
        "o = Mod<fmod = 1>(n, m) p = Add(n, n) q = Add(o, p) y = Cast<to = 1>(q)",
        "n = Constant<value = int64[2] {-7, 2}>() m = ReduceMean(n) y = Cast<to = 1>(m)",
        "y = CumSum(c, z)",
        "y = Softmax<axis = 0>(c)",
    ],
)
def test_constants_fold_to_what_onnx_runtime_computes(nodes: str) -> None:
    graph = f"""g (float[1] x) => (float[N] v) {{ z = Constant<value = int64 {{0}}>() {nodes} v = Add(y, x) }}"""
    model = text(graph)
    special = np.array([0.5, np.nan, -1.0, np.inf, 3.0, -np.inf, np.nan], np.float32)
    model.graph.initializer.append(numpy_helper.from_array(special, "c"))
    loaded = load(model).model
    assert ops(loaded) == ["Add"]
    zero = {"x": np.zeros(1, np.float32)}
    np.testing.assert_array_equal(run(loaded, zero)[0], run(model, zero)[0])


def test_weights_fold_through_data_movement_and_keep_their_values() -> None:
    weight = np.random.default_rng(0).standard_normal((300, 200)).astype(np.float32)
    model = text("g (float[1,200] x) => (float[1,300] y) { t = Transpose<perm=[1,0]>(w) y = MatMul(x, t) }")
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    loaded = load(model).model
    assert ops(loaded) == ["MatMul"]
    tensor = loaded.graph.initializers["t"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), weight.T)


def test_generated_weight_occupies_one_element() -> None:
    model = text(
        """g (float[1,20000] x) => (float[1,20000] y) {
            d = Constant<value = int64[2] {20000, 20000}>()
            w = ConstantOfShape<value = float[1] {0.5}>(d)
            y = MatMul(x, w)
        }"""
    )
    loaded = load(model).model
    tensor = loaded.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.shape == ir.Shape([20000, 20000])
    assert tensor.numpy().strides == (0, 0)


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Constant<value = float[1] {0}>() n = Constant<value = int64[1] {1000000000}>() w = Expand(a, n) y = Neg(w)",  # noqa: E501
        "a = Constant<value = float[1] {0}>() n = Constant<value = int64[1] {1000000000}>() w = Tile(a, n) y = Neg(w)",
        "n = Constant<value = int64[1] {1000000000}>() w = ConstantOfShape(n) y = Neg(w)",
        "w = RandomNormal<shape = [2]>() y = Neg(w)",
    ],
)
def test_large_and_random_results_stay_nodes(nodes: str) -> None:
    loaded = load(text(f"g (float[2] x) => (float[N] y) {{ {nodes} }}")).model
    assert ops(loaded)[-1] == "Neg"
    assert len(ops(loaded)) == 2


def test_identity_and_dropout_disappear_and_outputs_keep_their_names() -> None:
    model = text(
        """g (float[2] x) => (float[2] y, float[2] z) {
            a = Identity(x) b, mask = Dropout(a) c = Relu(b) y = Identity(c) z = Identity(x)
        }"""
    )
    loaded = load(model).model
    assert ops(loaded) == ["Relu", "Identity"]  # an output that is an input needs a node
    assert [value.name for value in loaded.graph.outputs] == ["y", "z"]
    x = np.array([-1.0, 2.0], np.float32)
    np.testing.assert_array_equal(run(loaded, {"x": x})[0], [0.0, 2.0])


def test_training_dropout_stays() -> None:
    model = text(
        """g (float[2] x) => (float[2] y) {
            r = Constant<value = float {0.5}>() t = Constant<value = bool {1}>() a = Dropout(x, r, t) y = Relu(a)
        }"""
    )
    assert "Dropout" in ops(load(model).model)


def test_old_opsets_are_converted_with_their_subgraphs() -> None:
    model = text(
        """g (float[2,1,3] x, bool c) => (float[2,3] y) {
            y = If (c) <
                then_branch = t () => (float[2,3] a) { a = Squeeze<axes = [1]>(x) },
                else_branch = e () => (float[2,3] b) { n = Neg(x) b = Squeeze<axes = [1]>(n) }>
        }""",
        opset=11,
        ir_version=7,
    )
    loaded = load(model).model
    assert loaded.opset_imports[""] == OPSET
    assert ops(loaded) == ["If"]
    x = np.arange(6, dtype=np.float32).reshape(2, 1, 3)
    for flag in (True, False):
        feeds = {"x": x, "c": np.array(flag)}
        np.testing.assert_array_equal(run(loaded, feeds)[0], run(model, feeds)[0])


def test_new_opsets_are_kept() -> None:
    assert load(text("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=22)).model.opset_imports == {"": 22}


def test_a_conversion_that_fails_is_noted() -> None:
    model = text(
        """g (int64[1] l, float[1,2] s, float[1,3,2] x) => (float[1,2] y, float[1,3,2] z) {
            [n] y, z = Scan<num_scan_inputs = 1, body = b (float[2] a, float[2] i) => (float[2] n, float[2] o) {
                n = Add(a, i) o = Identity(n) }>(l, s, x)
        }""",
        opset=8,
        ir_version=4,
    )
    loaded = load(model)
    assert loaded.model.opset_imports == {"": 8}
    assert loaded.notes == (
        "opset 8 is kept: node n (Scan) of opset 8 has no equivalent: its batch has sequences of several lengths",
    )


@pytest.mark.parametrize(
    ("graph", "op"),
    [
        ("g (float[2,3] x) => (int64[2,N] y) { y = NonZero(x) }", "NonZero"),
        (
            "g (seq(float[2,3]) x) => (float[2,3] y) { i = Constant<value = int64 {0}>() y = SequenceAt(x, i) }",
            "SequenceAt",
        ),
        ("g (string[2] x) => (string[2] y) { y = StringConcat(x, x) }", "StringConcat"),
        (
            """g (float[2] x) => (float[2] y) {
                n = Constant<value = int64 {3}>() c = Constant<value = bool {1}>()
                y = Loop(n, c, x) <body = b (int64 i, bool ci, float[2] a) => (bool co, float[2] z) {
                    co = Identity(ci) z = Neg(a) }>
            }""",
            "Loop",
        ),
    ],
)
def test_dynamic_models_load(graph: str, op: str) -> None:
    assert ops(load(text(graph)).model) == [op]


@pytest.mark.parametrize("shape", [None, ["n"], [3]])
def test_an_input_that_is_an_output_keeps_its_type(shape: list[str | int] | None) -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 20]> g (float[3] x) => (float[3] y) { y = Relu(x) }'
    )
    proto.graph.output.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape))
    (value,) = load(proto).model.graph.inputs
    assert (value.dtype, value.shape) == (ir.DataType.FLOAT, ir.Shape([3]))


def test_names_are_given_and_unique() -> None:
    model = text("g (float[2] x) => (float[2] y) { [n] a = Relu(x) [n] b = Neg(a) y = Abs(b) }")
    assert [node.name for node in load(model).model.graph] == ["n", "n_1", "y"]


def test_unsorted_nodes_are_sorted() -> None:
    loaded = load(text("g (float[2] x) => (float[2] y) { y = Relu(b) b = Neg(x) }"))
    assert ops(loaded.model) == ["Neg", "Relu"]
    assert loaded.notes == ("the nodes were not in execution order and were sorted",)


def test_default_values_of_inputs_become_constants() -> None:
    model = text("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    loaded = load(model)
    assert [value.name for value in loaded.model.graph.inputs] == ["x"]
    assert loaded.notes == ("the default values of the inputs w became constants",)
    assert loaded.constants == ("w",)


def test_loading_twice_changes_nothing() -> None:
    first = load(LIGHT / "light_squeezenet.onnx").model
    second = load(first)
    assert ops(second.model) == ops(first)
    assert second.notes == ()
