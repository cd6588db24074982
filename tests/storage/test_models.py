"""Models come back as they were, whatever holds their tensors; shared weights are those of layers alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.errors import ArtifactError, ModelError
from graphopt.frontend.load import load, read
from graphopt.storage import archive, protos
from graphopt.storage import restore as restoring
from graphopt.storage.model import INSIDE, Compressed, share_weights, write
from graphopt.storage.restore import decompress, restore
from tests.helpers.model_proto import text

LAYERS = """g (float[1, 4, 20, 20] x, bool c) => (float[1, 30] y) {
    f = Conv <kernel_shape = [3, 3], strides = [2, 2]> (x, conv, conv_bias)
    flat = Flatten (f)
    a = MatMul (flat, first)
    b = If (c) <
        then_branch = t () => (float[1, 40] o) { o = Add (a, table) },
        else_branch = e () => (float[1, 40] o) { held = Constant <value_ints = [0]> () o = MatMul (a, square) }>
    turned = Transpose <perm = [1, 0]> (last)
    y = Gemm <transB = 1> (b, turned, last_bias)
}"""
SHAPES = {
    "conv": (16, 4, 3, 3), "conv_bias": (16,), "first": (1296, 40), "table": (40, 40), "square": (40, 40),
    "last": (40, 30), "last_bias": (30,),
}  # fmt: skip


@pytest.fixture
def layers() -> onnx.ModelProto:
    """Weights of every kind of layer, nine in ten of them zero, and others that are none."""
    model, generator = text(LAYERS), np.random.default_rng(0)
    del model.graph.node[3].attribute[0].g.node[0].input[:]
    model.graph.node[3].attribute[0].g.node[0].input.extend(["a", "row"])
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 40), np.float32), "row"))
    for name, shape in SHAPES.items():
        weights = generator.standard_normal(shape).astype(np.float32)
        if len(shape) > 1 and name != "table":
            weights[generator.random(shape) < 0.9] = 0
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    return model


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    return other


def _written(model: onnx.ModelProto, file: Path, folder: Path | None = None) -> Compressed:
    return write(_copy(model), folder, file)


def arrays(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def test_a_model_comes_back(layers: onnx.ModelProto, tmp_path: Path) -> None:
    compressed = _written(layers, tmp_path / "m.gopz")
    assert restore(tmp_path / "m.gopz") == layers
    assert compressed.file == (tmp_path / "m.gopz").stat().st_size < compressed.original / 4
    assert [layer.tensor for layer in compressed.layers] == ["conv", "first", "square", "last"]
    assert all(layer.layout in ("columns", "bitmap") for layer in compressed.layers)
    loaded = load(tmp_path / "m.gopz")
    assert loaded.original == layers


def test_equal_models_make_equal_files(layers: onnx.ModelProto, tmp_path: Path) -> None:
    _written(layers, tmp_path / "a.gopz")
    _written(layers, tmp_path / "b.gopz")
    assert (tmp_path / "a.gopz").read_bytes() == (tmp_path / "b.gopz").read_bytes()


def test_a_file_that_is_compressed_again(layers: onnx.ModelProto, tmp_path: Path) -> None:
    _written(layers, tmp_path / "a.gopz")
    model, folder = read(tmp_path / "a.gopz")
    write(model, folder, tmp_path / "a.gopz")
    assert restore(tmp_path / "a.gopz") == layers


def _tensor_kinds() -> list[onnx.TensorProto]:
    generator = np.random.default_rng(1)
    numbers = generator.standard_normal(700)
    typed = helper.make_tensor("typed", onnx.TensorProto.FLOAT, [700], numbers.astype(np.float32).tolist())
    half = helper.make_tensor("half", onnx.TensorProto.FLOAT16, [700], numbers.astype(np.float16).tolist())
    brain = helper.make_tensor("brain", onnx.TensorProto.BFLOAT16, [700], numbers.tolist())
    small = helper.make_tensor("small", onnx.TensorProto.FLOAT8E4M3FN, [1500], generator.uniform(-2, 2, 1500).tolist())
    nibbles = helper.make_tensor("nibbles", onnx.TensorProto.INT4, [3001], generator.integers(-8, 8, 3001).tolist())
    words = helper.make_tensor("words", onnx.TensorProto.STRING, [400], [b"word"] * 400)
    others = [
        numpy_helper.from_array(np.arange(900), "places"),
        numpy_helper.from_array(np.tril(np.ones((50, 50), np.bool_)), "mask"),
        numpy_helper.from_array(numbers.astype(np.complex64), "complex"),
        numpy_helper.from_array(numbers.astype(np.complex128), "wide"),
        numpy_helper.from_array(np.zeros((0, 9), np.float32), "nothing"),
        numpy_helper.from_array(np.float32(3).reshape(()), "scalar"),
        numpy_helper.from_array(np.array([np.nan, -0.0, 0.0, 1e-45] * 200, np.float32), "special"),
    ]
    return [typed, half, brain, small, nibbles, words, *others]


@pytest.mark.parametrize("place", ["initializer", "attribute"])
def test_tensors_of_every_kind(place: str, tmp_path: Path) -> None:
    model = text("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    for tensor in _tensor_kinds():
        if place == "initializer":
            model.graph.initializer.append(tensor)
        else:
            node = helper.make_node("Constant", [], [f"held_{tensor.name}"], value=tensor)
            model.graph.node.append(node)
    _written(model, tmp_path / "m.gopz")
    found, wanted = list(protos.tensors(restore(tmp_path / "m.gopz"))), list(protos.tensors(model))
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours.name, ours.dims, ours.data_type) == (theirs.name, theirs.dims, theirs.data_type)
        if theirs.data_type == onnx.TensorProto.STRING:
            assert ours == theirs
        else:
            assert protos.payload(ours, None).tobytes() == protos.payload(theirs, None).tobytes()


def test_sparse_tensors_stay_sparse(tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.arange(1, 601, dtype=np.float32), "w")
    places = numpy_helper.from_array(np.arange(0, 6000, 10), "places")
    model = text("g (float[1, 60] x) => (float[1, 100] y) { y = MatMul(x, w) }")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, [60, 100]))
    compressed = _written(model, tmp_path / "m.gopz")
    assert restore(tmp_path / "m.gopz") == model
    assert [layer.tensor for layer in compressed.layers] == ["w"]
    load(tmp_path / "m.gopz")


def test_external_data_comes_inside(layers: onnx.ModelProto, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    onnx.save(_copy(layers), folder / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=64)
    model, where = read(folder / "m.onnx")
    assert any(tensor.data_location for tensor in model.graph.initializer)
    write(model, where, tmp_path / "m.gopz")
    (folder / "m.data").unlink()
    found = arrays(restore(tmp_path / "m.gopz"))
    for name, array in arrays(layers).items():
        np.testing.assert_array_equal(found[name], array)


def test_data_outside_of_the_folder_is_refused_wherever_a_tensor_is(layers: onnx.ModelProto, tmp_path: Path) -> None:
    tensor = onnx.TensorProto(name="t", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    layers.training_info.add().initialization.initializer.append(tensor)
    (tmp_path / "m.onnx").write_bytes(layers.SerializeToString())
    with pytest.raises(ModelError, match=r"m\.onnx: tensor t keeps its data at '/etc/passwd', outside"):
        read(tmp_path / "m.onnx")


def test_large_models_get_a_second_file(
    layers: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _written(layers, tmp_path / "m.gopz")
    assert decompress(tmp_path / "m.gopz", tmp_path / "one.onnx") == [tmp_path / "one.onnx"]
    assert onnx.load(tmp_path / "one.onnx") == layers
    monkeypatch.setattr(restoring, "INLINE_BYTES", 1000)
    written = decompress(tmp_path / "m.gopz", tmp_path / "two.onnx")
    assert written == [tmp_path / "two.onnx", tmp_path / "two.onnx.data"]
    found = arrays(onnx.load(tmp_path / "two.onnx"))
    for name, array in arrays(layers).items():
        np.testing.assert_array_equal(found[name], array)
    assert written[0].stat().st_size < 4000
    load(written[0])


def test_more_tensors_than_members(layers: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MAX_TENSORS", 2)
    compressed = _written(layers, tmp_path / "m.gopz")
    assert sum(layer.layout != INSIDE for layer in compressed.layers) <= 2
    assert restore(tmp_path / "m.gopz") == layers


def test_weights_are_those_of_layers(layers: onnx.ModelProto) -> None:
    found = {weight.tensor.name: weight.transposed for weight in protos.weights(layers)}
    assert found == {"conv": True, "first": False, "square": False, "last": False}


@pytest.mark.parametrize("bits", [5, 8])
def test_shared_weights(layers: onnx.ModelProto, bits: int, tmp_path: Path) -> None:
    model = _copy(layers)
    errors = share_weights(model, None, bits)
    compressed = write(model, None, tmp_path / "m.gopz", errors, bits)
    before, after = arrays(layers), arrays(restore(tmp_path / "m.gopz"))
    shared = {layer.tensor: layer for layer in compressed.layers}
    assert set(shared) == {"conv", "first", "square", "last"}
    for name, array in before.items():
        if name not in shared:
            np.testing.assert_array_equal(after[name], array)
            continue
        np.testing.assert_array_equal(after[name] != 0, array != 0)
        assert len(np.unique(after[name][array != 0])) <= 2**bits - 1
        error = shared[name].error
        assert error is not None
        assert np.abs(after[name].astype(np.float64) - array).max() == pytest.approx(error.max_abs)
        difference = np.square(after[name].astype(np.float64) - array).mean() / np.square(array).mean()
        assert difference**0.5 == pytest.approx(error.rms_relative, abs=1e-6)
    stages = shared["first"].stages
    assert stages.final <= stages.shared < stages.pruned < stages.original


def test_weights_that_are_not_finite_stay(layers: onnx.ModelProto) -> None:
    weights = np.array(arrays(layers)["first"])
    weights[0, 0] = np.inf
    protos.put(layers.graph.initializer[3], weights.tobytes())
    before = arrays(layers)["first"]
    errors = share_weights(layers, None, 5)
    assert [weight.tensor.name for weight, error in zip(protos.weights(layers), errors, strict=True) if not error] == [
        "first"
    ]
    np.testing.assert_array_equal(arrays(layers)["first"], before)


def test_masked_zeros_become_positive_when_shared(layers: onnx.ModelProto) -> None:
    weights = arrays(layers)["first"]
    protos.put(layers.graph.initializer[3], np.where(weights == 0, np.float32(-0.0), weights).tobytes())
    share_weights(layers, None, 5)
    found = arrays(layers)["first"]
    assert not np.signbit(found[found == 0]).any()


@pytest.mark.parametrize("change", [lambda m: None, lambda m: m.graph.initializer.pop()], ids=["as is", "less"])
def test_a_failure_leaves_the_old_file(
    layers: onnx.ModelProto,
    tmp_path: Path,
    change: Callable[[onnx.ModelProto], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "m.gopz").write_bytes(b"old")
    change(layers)
    monkeypatch.setattr(archive, "MOST_BYTES", 1000)
    monkeypatch.setattr(archive, "MOST_TIMES", 2)
    with pytest.raises(ArtifactError, match="more than 2 times as many; use the ONNX model itself"):
        _written(layers, tmp_path / "m.gopz")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gopz"]
    assert (tmp_path / "m.gopz").read_bytes() == b"old"


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_weights_of_other_types_are_shared(dtype: type, tmp_path: Path) -> None:
    model = text("g (float[1, 60] x) => (float[1, 50] y) { y = MatMul(x, w) }")
    weights = np.random.default_rng(0).standard_normal((60, 50)).astype(dtype)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    (error,) = share_weights(model, None, 5)
    found = numpy_helper.to_array(model.graph.initializer[0])
    assert found.dtype == dtype
    assert len(np.unique(found)) == 31
    assert error is not None
    assert error.max_abs == np.abs(found.astype(np.float64) - weights.astype(np.float64)).max()
    write(model, None, tmp_path / "m.gopz", [error], 5)
    assert restore(tmp_path / "m.gopz").graph.initializer[0].dims == [60, 50]


def test_branches_may_share_the_names_of_nodes(tmp_path: Path) -> None:
    """Each layer has an error of its own."""
    branch = "branch = {0} () => (float[1, 30] o) {{ o = MatMul(x, {0}) }}"
    both = ", ".join(branch.format(name).replace("branch =", f"{kind}_branch =") for kind, name in
                     (("then", "u"), ("else", "v")))  # fmt: skip
    model = text(f"g (float[1, 40] x, bool c) => (float[1, 30] y) {{ y = If(c) <{both}> }}")
    generator = np.random.default_rng(0)
    model.graph.initializer.append(numpy_helper.from_array(generator.standard_normal((40, 30)).astype(np.float32), "u"))
    model.graph.initializer.append(numpy_helper.from_array(np.ones((40, 30), np.float32), "v"))
    compressed = write(model, None, tmp_path / "m.gopz", share_weights(model, None, 5), 5)
    found = {layer.tensor: layer.error.max_abs > 0 for layer in compressed.layers if layer.error is not None}
    assert found == {"u": True, "v": False}


def test_a_link_stays_one(layers: onnx.ModelProto, tmp_path: Path) -> None:
    (tmp_path / "link.gopz").symlink_to("m.gopz")
    _written(layers, tmp_path / "link.gopz")
    assert (tmp_path / "link.gopz").is_symlink()
    assert restore(tmp_path / "m.gopz") == layers
