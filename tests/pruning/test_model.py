"""Models as users have them: open batches, counts in shapes, and a smaller model that is checked by running it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import models
from graphopt.errors import GraphoptError, ModelError, VerificationError
from graphopt.passes.prune.granularity import Granularity
from graphopt.pruning.model import Recipe, prune_model
from graphopt.verify.oracle import Tolerance, run_onnxruntime
from tests.helpers.equal import require_equal

FLAT = """
<ir_version: 8, opset_import: ["": 17]>
flat (float[N, 4, 6, 6] x) => (float[N, 3] y)
{
    c = Conv (x, w, b)
    r = Relu (c)
    s = Shape <start = 0, end = 1> (r)
    t = Concat <axis = 0> (s, rest)
    l = Reshape (r, t)
    y = MatMul (l, v)
}
"""


def flat(rest: int = -1) -> ir.Model:
    model = ir.from_onnx_text(FLAT)
    generator = np.random.default_rng(0)
    shapes = {"w": (8, 4, 3, 3), "b": (8,), "v": (128, 3)}
    arrays: dict[str, Any] = {name: generator.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
    arrays["rest"] = np.array([rest], np.int64)
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name in arrays and value.producer() is None:
                known = model.graph.initializers.get(value.name)
                if known is None:
                    array = arrays[value.name]
                    known = ir.Value(name=value.name, const_value=ir.Tensor(array, name=value.name))
                    known.shape, known.type = ir.Shape(array.shape), ir.TensorType(known.const_value.dtype)
                    model.graph.register_initializer(known)
                node.replace_input_with(index, known)
    return model


def recipe(granularity: str, **more: Any) -> Recipe:
    return Recipe(Granularity.parse(granularity), 0.5, **more)


@pytest.mark.parametrize("batch", [1, 5])
def test_an_open_batch_stays_open(batch: int) -> None:
    smaller, zeros = (prune_model(flat(), recipe("filter", remove=remove)).model for remove in (True, False))
    assert [value.shape[0] for value in smaller.graph.inputs] == [value.shape[0] for value in flat().graph.inputs]
    assert smaller.graph.initializers["v"].shape == (64, 3)
    feeds = {"x": np.random.default_rng(1).standard_normal((batch, 4, 6, 6)).astype(np.float32)}
    tolerance = {"float32": Tolerance(1e-4, 1e-4)}
    require_equal(run_onnxruntime(zeros, feeds), run_onnxruntime(smaller, feeds), "smaller", tolerance)


def test_a_count_that_cannot_follow_keeps_zeros() -> None:
    """The target of the Reshape is computed, and names the 128."""
    pruned = prune_model(flat(128), recipe("filter"))
    (conv, _) = pruned.layers
    assert (conv.before, conv.after, conv.reached) == ((8, 4, 9), (8, 4, 9), 0.5)
    assert conv.reason == "zeros: other nodes fix the number of its channels"


def test_a_smaller_model_that_disagrees_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphopt.pruning.model._disagreement", lambda *_: "computes something else")
    pruned = prune_model("zoo:lenet-digits", recipe("filter"))
    assert not any(layer.removed for layer in pruned.layers)
    assert pruned.notes == ("channels are zeros, and not taken out: the smaller model computes something else",)


def test_open_shapes_have_to_be_said_where_channels_go() -> None:
    model = flat()
    model.graph.inputs[0].shape = ir.Shape(["N", 4, "H", "W"])
    with pytest.raises(GraphoptError, match="leaves dimension 2 .* open; give it a size"):
        prune_model(model, recipe("filter"))
    assert prune_model(model, recipe("element")).layers[0].reached == 0.5


def test_the_users_model_is_not_modified() -> None:
    model = flat()
    before = ir.to_proto(model).SerializeToString()
    prune_model(model, recipe("filter"))
    prune_model(model, recipe("element"))
    assert ir.to_proto(model).SerializeToString() == before


def test_layers_with_one_name_are_told_apart() -> None:
    model = flat()
    for node in model.graph:
        node.name = "a" if node.op_type in ("Conv", "Relu", "MatMul") else node.op_type
    pruned = prune_model(model, Recipe(Granularity.parse("element"), layers={"a_2": 0.25}))
    assert [(layer.name, layer.reached) for layer in pruned.layers] == [("a", 0), ("a_2", 0.25)]
    assert pruned.notes == ("several nodes of the file are called a; here its layers are a, a_2",)
    assert [node.name for node in pruned.model.graph if node.op_type in ("Conv", "MatMul")] == ["a", "a"]


def test_nothing_to_prune_is_said() -> None:
    with pytest.raises(GraphoptError, match="no layer can be pruned so"):
        prune_model(models.build("lenet-digits"), recipe("block:7x7"))


def test_shapes_that_onnx_cannot_infer_keep_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: ir.Model) -> None:
        raise ModelError("node n does not fit its operands")

    monkeypatch.setattr("graphopt.pruning.model.infer_shapes", refuse)
    pruned = prune_model("zoo:lenet-digits", recipe("filter"))
    assert [layer.reached for layer in pruned.layers] == [0.5, 0.5, 0.5, 0]
    assert pruned.layers[3].reason == "its outputs are the model's"
    assert not any(layer.removed for layer in pruned.layers)
    assert pruned.notes[0].endswith("no channel is taken out: node n does not fit its operands")


def test_constants_of_old_opsets_may_be_of_any_type() -> None:
    text = """
    <ir_version: 4, opset_import: ["": 8]>
    old (float[1, 4] x) => (float[1, 3] y)
    {
        s = Constant <value = int64[2] {1, 4}> ()
        w = Constant <value = float[4, 2] {1, 2, 3, 4, 5, 6, 7, 8}> ()
        v = Constant <value = float[2, 3] {1, 2, 3, 4, 5, 6}> ()
        r = Reshape (x, s)
        h = MatMul (r, w)
        y = MatMul (h, v)
    }
    """
    pruned = prune_model(ir.from_onnx_text(text), recipe("row"))
    assert [layer.after[:2] for layer in pruned.layers] == [(1, 4), (3, 1)]
    assert pruned.model.opset_imports == {"": 8}
    found = run_onnxruntime(pruned.model, {"x": np.ones((1, 4), np.float32)})
    assert found["y"].tolist() == [[80, 100, 120]]


def test_a_model_that_cannot_be_run_keeps_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise VerificationError("no kernel")

    monkeypatch.setattr("graphopt.pruning.model.run_onnxruntime", refuse)
    pruned = prune_model("zoo:lenet-digits", recipe("filter"))
    assert not any(layer.removed for layer in pruned.layers)
    assert "the smaller model cannot be compared with them (no kernel)" in pruned.notes[0]
