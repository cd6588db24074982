"""What training changes in a loaded model: by the place of an initializer, with what is frozen left as it is."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.frontend.load import load
from graphopt.graph import state


def _model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], x: list[int], y: list[int]) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def network() -> onnx.ModelProto:
    """The training images' mean and deviation, a convolution, BatchNormalization, Dropout and a product."""
    draw = np.random.default_rng(0).normal
    nodes = [
        helper.make_node("Sub", ["x", "image_mean"], ["centred"], name="sub"),
        helper.make_node("Conv", ["centred", "w"], ["a"], name="conv"),
        helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], name="bn"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Dropout", ["c"], ["d"], name="drop"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("Transpose", ["fc"], ["fct"], perm=[1, 0], name="turn"),
        helper.make_node("MatMul", ["e", "fct"], ["f"], name="product"),
        helper.make_node("Add", ["f", "bias"], ["y"], name="add"),
    ]
    weights = {
        "image_mean": np.full((1, 3, 1, 1), 0.4),
        "w": draw(size=(4, 3, 3, 3)),
        "scale": np.ones(4),
        "shift": np.zeros(4),
        "mean": np.zeros(4),
        "var": np.ones(4),
        "fc": draw(size=(5, 64)),
        "bias": np.zeros(5),
    }
    return _model(nodes, weights, [2, 3, 6, 6], [2, 5])


def test_weights_are_parameters_by_their_place_and_are_not_folded(network: onnx.ModelProto) -> None:
    loaded = load(network, training=True)
    assert loaded.marks is not None
    assert set(loaded.marks.parameters) == {"w", "scale", "shift", "fc", "bias"}
    assert set(loaded.marks.statistics) == {"mean", "var"}
    assert set(loaded.marks.constants) == {"image_mean"}
    kinds = [node.op_type for node in loaded.model.graph]
    assert "Transpose" in kinds  # of a parameter, not a constant
    assert "Dropout" in kinds


def test_batch_normalization_gives_its_running_statistics(network: onnx.ModelProto) -> None:
    graph = load(network, training=True).model.graph
    node = next(node for node in graph if node.op_type == "BatchNormalization")
    assert node.attributes["training_mode"].as_int() == 1
    for name, output in zip(("mean", "var"), node.outputs[1:], strict=True):
        value = graph.initializers[name]
        assert state.role(value) is state.Role.STATISTIC
        assert state.next_value(value, graph) is output


def test_inference_has_no_state(network: onnx.ModelProto) -> None:
    loaded = load(network)
    assert loaded.marks is None
    assert not list(state.states(loaded.model.graph))
    assert "Dropout" not in [node.op_type for node in loaded.model.graph]


def test_frozen_initializers_stay_constant(network: onnx.ModelProto) -> None:
    loaded = load(network, training=True, freeze=["w", "mean", "fc"])
    assert loaded.marks is not None
    assert set(loaded.marks.parameters) == {"scale", "shift", "bias"}
    assert loaded.marks.statistics == ()
    kinds = [node.op_type for node in loaded.model.graph]
    assert "Transpose" not in kinds  # of a constant now
    node = next(node for node in loaded.model.graph if node.op_type == "BatchNormalization")
    assert node.attributes.get_int("training_mode", 0) == 0


@pytest.mark.parametrize(
    ("freeze", "message"),
    [(["nothing*"], "--freeze nothing\\* matches no initializer"), (["*"], "training would change nothing")],
)
def test_patterns_that_freeze_nothing_or_everything_are_refused(
    network: onnx.ModelProto, freeze: list[str], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        load(network, training=True, freeze=freeze)


def test_a_weight_that_is_put_together_from_slices_is_a_parameter() -> None:
    nodes = [
        helper.make_node("Split", ["w"], ["w1", "w2"], axis=1, num_outputs=2, name="split"),
        helper.make_node("Concat", ["w2", "w1"], ["turned"], axis=1, name="concat"),
        helper.make_node("MatMul", ["x", "turned"], ["y"], name="product"),
    ]
    loaded = load(_model(nodes, {"w": np.arange(12).reshape(3, 4)}, [2, 3], [2, 4]), training=True)
    assert loaded.marks is not None
    assert loaded.marks.parameters == ("w",)
    assert [node.op_type for node in loaded.model.graph] == ["Split", "Concat", "MatMul"]


@pytest.mark.parametrize(
    ("bias", "second", "trained"),
    [
        (np.zeros(4), "shared", False),  # one tensor for all layers without bias
        (np.zeros(4), "other", True),  # a bias that training begins with
        (np.ones(4), "shared", True),
    ],
)
def test_zeros_that_stand_for_no_bias_are_not_trained(bias: np.ndarray, second: str, trained: bool) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w", "shared"], ["a"], name="first"),
        helper.make_node("Conv", ["a", "v", second], ["y"], name="second"),
    ]
    weights = {"w": np.ones((4, 4, 1, 1)), "v": np.ones((4, 4, 1, 1)), "shared": bias, second: bias}
    loaded = load(_model(nodes, weights, [2, 4, 3, 3], [2, 4, 3, 3]), training=True)
    assert loaded.marks is not None
    assert ("shared" in loaded.marks.parameters) is trained


def test_a_training_model_is_loaded_with_its_state() -> None:
    model = ir.from_onnx_text("""<ir_version: 11, opset_import: ["": 20]>
        g (float[2] x) => (float[2] y, float[2] w_next) <float[2] w = {1, 2}>
        { y = Mul(x, w)  w_next = Sub(w, y) }""")
    w = model.graph.initializers["w"]
    state.mark(w, state.Role.PARAMETER)
    w.metadata_props[state.NEXT] = "w_next"
    for source in (model, ir.to_proto(state.exposed(model))):
        loaded = load(source)
        (kept,) = state.states(loaded.model.graph)
        assert kept.name == "w"
        assert [value.name for value in loaded.model.graph.inputs] == ["x"]
        assert loaded.constants == ()
        assert loaded.notes == ()
