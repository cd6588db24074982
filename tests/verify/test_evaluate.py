"""Samples from files that are not trusted, and models that are run on them batch by batch."""

from __future__ import annotations

import contextlib
import io
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import GraphoptError
from graphopt.verify.evaluate import Samples, read_samples, score
from tests.helpers.text_models import parse

LINEAR = "g (float[{b},4] x, float[4,3] w) => (float[{b},3] y) {{ y = MatMul(x, w) }}"


def linear(batch: object) -> Any:
    return parse(LINEAR.format(b=batch), {"w": (4, 3)})


@pytest.mark.parametrize("batch", [1, 2, 3, 7, 9, "n"])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_samples_run_in_batches_of_the_model(batch: object, count: int) -> None:
    x = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    model = linear(batch)
    found = score(model, Samples(Path("x.npz"), {"x": x}))
    weight = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_allclose(found.values, x @ weight, rtol=1e-5)
    assert (found.output, found.softmax) == ("y", False)


def test_rows_of_tokens_are_dropped_with_their_sample() -> None:
    text = (
        "g (float[2,3,4] x, float[4,3] w) => (float[6,3] y) <int64[2] s = {6, 3}> "
        "{ t = MatMul(x, w) y = Reshape(t, s) }"
    )
    model = parse(text, {"w": (4, 3)})
    x = np.random.default_rng(0).standard_normal((3, 3, 4)).astype(np.float32)
    found = score(model, Samples(Path("x.npz"), {"x": x}))
    weight = model.graph.initializers["w"].const_value.numpy()
    np.testing.assert_allclose(found.values, (x @ weight).reshape(9, 3), rtol=1e-5)


def test_an_array_of_the_inputs_shape_goes_to_every_run() -> None:
    text = "g (float[1,4] x, float[4,3] table) => (float[1,3] z) { y = MatMul(x, table) z = Softmax(y) }"
    x = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    table = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    found = score(parse(text), Samples(Path("x.npz"), {"x": x, "table": table}))
    assert found.values.shape == (5, 3)
    assert found.softmax


def test_scores_are_the_first_output_of_floats_or_the_one_named() -> None:
    text = (
        "g (float[1,4] x) => (int64[1,1] a, float[1,1] b, float[1,4] c, float[1,4] d) "
        "{ a = ArgMax <axis = 1>(x) b = ReduceMax(x) c = Relu(x) d = Softmax(x) }"
    )
    samples = Samples(Path("x.npz"), {"x": np.ones((1, 4), np.float32)})
    assert score(parse(text), samples).output == "c"
    assert score(parse(text), samples, "d").softmax
    with pytest.raises(GraphoptError, match="--eval-output names 'e', and the outputs are a, b, c, d"):
        score(parse(text), samples, "e")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"z": np.ones((2, 4), np.float32)}, "'z', which is no input; inputs are x"),
        ({}, "lacks the input 'x'"),
        ({"x": np.ones((2, 4))}, "is float64, and float32 is expected"),
        ({"x": np.ones((2, 5), np.float32)}, r"has shape \(2, 5\), and samplesx4 is expected"),
        ({"x": np.ones(4, np.float32)}, "and samplesx4 is expected"),
        ({"x": np.ones((0, 4), np.float32)}, "is empty"),
    ],
)
def test_arrays_that_do_not_fit_are_named(arrays: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        score(linear(1), Samples(Path("x.npz"), arrays))


def archive(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def test_labels_are_set_apart(tmp_path: Path) -> None:
    big = np.arange(3.0).astype(">f4")
    (tmp_path / "a.npz").write_bytes(archive(x=np.asfortranarray(np.arange(6.0).reshape(2, 3)), big=big, labels=[1, 0]))
    found = read_samples(tmp_path / "a.npz")
    assert found.arrays["x"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found.arrays["big"].dtype.isnative
    assert found.labels is not None
    assert found.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read"),
        (b"hello", "cannot be read"),
        (archive(), "holds no array"),
        (archive(x=np.array([{}], object)), "holds Python objects"),
    ],
)
def test_other_files_are_refused(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(GraphoptError, match=sentence):
        read_samples(tmp_path / "a.npz")
    with pytest.raises(GraphoptError, match="is not a file"):
        read_samples(tmp_path)


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    stream = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)}
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as written:
        written.writestr("x.npy", stream.getvalue())
    with pytest.raises(GraphoptError, match="is shorter or longer than its header says"):
        read_samples(tmp_path / "a.npz")


@given(st.integers(0, 10_000), st.integers(0, 255), st.booleans())
@settings(max_examples=80, deadline=None)
def test_damage_is_one_sentence(place: int, byte: int, cut: bool) -> None:
    content = bytearray(archive(x=np.arange(40, dtype=np.float32), labels=np.arange(3)))
    place %= len(content)
    content[place] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        path.write_bytes(content[:place] if cut else content)
        with contextlib.suppress(GraphoptError):  # anything else fails the test
            assert isinstance(read_samples(path), Samples)
