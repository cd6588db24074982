"""The trained model is the user's own with other numbers, and nothing else is another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from graphopt.errors import GraphoptError
from graphopt.training.records.export import is_external, trained, write
from tests.helpers import step_models
from tests.helpers.model_proto import text

NEW = {"w": np.full((64, 10), 0.5, np.float32), "b": np.arange(10, dtype=np.float32)}


def _numbers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}


def test_the_numbers_are_the_trained_ones() -> None:
    model = step_models.softmax_inference()
    before = model.SerializeToString()
    found = _numbers(trained(model, NEW))
    for name, array in NEW.items():
        np.testing.assert_array_equal(found[name], array)
    assert model.SerializeToString() == before


def test_everything_else_is_as_it_was() -> None:
    model = step_models.softmax_inference()
    model.producer_name, model.graph.doc_string = "somebody", "what it does"
    model.metadata_props.add(key="author", value="me")
    model.graph.initializer[0].doc_string = "the bias"
    back = trained(trained(model, NEW), _numbers(model))
    for each in (*back.graph.initializer, *model.graph.initializer):
        each.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(each), each.name))
    assert back == model
    assert trained(model, {"b": NEW["b"]}).graph.initializer[0].dims == [10]


def test_a_frozen_parameter_keeps_its_bytes() -> None:
    model = step_models.softmax_inference()
    assert trained(model, {"b": NEW["b"]}).graph.initializer[1] == model.graph.initializer[1]


def test_a_weight_takes_the_type_that_the_model_has() -> None:
    model = step_models.softmax_inference()
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.zeros(10, np.float16), "b"))
    found = _numbers(trained(model, NEW))["b"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, NEW["b"])


def test_constant_nodes_are_weights_too() -> None:
    model = text("g (float[3] x) => (float[3] y) { w = Constant <value = float[3] {1, 2, 3}> ()\n y = Mul (x, w) }")
    made = trained(model, {"w": np.array([4, 5, 6], np.float32)})
    assert onnx.numpy_helper.to_array(made.graph.node[0].attribute[0].t).tolist() == [4, 5, 6]


def test_scalars_stay_scalars() -> None:
    model = text("g (float[3] x, float s) => (float[3] y) { y = Mul (x, s) }")
    model.graph.input.pop()
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(2, np.float32), "s"))
    assert list(trained(model, {"s": np.array(3, np.float32)}).graph.initializer[0].dims) == []


def test_what_does_not_fit_is_refused() -> None:
    model = step_models.softmax_inference()
    with pytest.raises(GraphoptError, match="no initializer 'v', which was trained"):
        trained(model, {"v": NEW["b"]})
    with pytest.raises(GraphoptError, match=r"initializer 'b' has shape \[10\], and \[3\] was trained"):
        trained(model, {"b": np.zeros(3, np.float32)})


def test_external_data_stays_external(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(step_models.softmax_inference(), tmp_path / "m.onnx", save_as_external_data=True, size_threshold=0)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    assert is_external(model)
    made = trained(model, {"w": NEW["w"]}, tmp_path)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")  # where a file of that name may lie already
    for _ in range(2):
        again = onnx.ModelProto()
        again.CopyFrom(made)
        write(again, Path("t.onnx"), external=True)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["t.onnx", "t.onnx.data"]
    np.testing.assert_array_equal(_numbers(onnx.load(tmp_path / "out" / "t.onnx"))["w"], NEW["w"])


def test_a_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.onnx"
    path.write_bytes(b"\x08old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(GraphoptError, match="cannot be written to .*: No space left on device; free some space"):
        write(step_models.softmax_inference(), path)
    assert path.read_bytes() == b"\x08old"
    assert [each.name for each in tmp_path.iterdir()] == ["t.onnx"]
