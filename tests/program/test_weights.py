"""Weights are stored as safetensors, and hostile headers are refused."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from graphopt.errors import ArtifactError
from graphopt.program.weights import read_index, save_weights, weights_bytes


def test_weights_are_safetensors_that_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "a": np.arange(7, dtype=np.float32).reshape(1, 7),
        "half": np.ones(3, np.float16),
        "empty": np.zeros((0, 4), np.int64),
        "brain": np.linspace(-1, 1, 9).astype(ml_dtypes.bfloat16),
        "scalar": np.array(5, np.int32),
        "yes": np.array([True, False]),
        "back": np.arange(6, dtype=np.float64)[::-2],
        "last": np.arange(3, dtype=np.uint8),
    }
    path = tmp_path / "w.safetensors"
    save_weights(path, tensors)
    assert path.read_bytes() == weights_bytes(tensors)
    loaded = safetensors.numpy.load_file(path)
    assert {name for name in loaded if not name.startswith("__pad_")} == set(tensors)
    data = memoryview(path.read_bytes())
    index = read_index(data, "w")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(loaded[name], tensor)
        assert (index[name].dtype, index[name].shape) == (tensor.dtype.name, tensor.shape)
        assert index[name].start % 64 == 0
        assert bytes(data[index[name].start : index[name].start + index[name].nbytes]) == tensor.tobytes()


def test_weights_that_cannot_be_stored() -> None:
    with pytest.raises(ArtifactError, match="names with '__' in front are reserved"):
        weights_bytes({"__pad_0": np.zeros(1)})
    with pytest.raises(ArtifactError, match="complex128 is not supported"):
        weights_bytes({"c": np.zeros(1, complex)})


def header(**tensors: object) -> memoryview:
    text = json.dumps(tensors).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return memoryview(len(text).to_bytes(8, "little") + text + bytes(64))


@pytest.mark.parametrize(
    "data",
    [
        memoryview(b""),
        memoryview(b"\xff" * 16),
        memoryview((100).to_bytes(8, "little") + b"{}"),
        memoryview((2).to_bytes(8, "little") + b"[]"),
        header(t=[]),
        header(t={"dtype": "F32", "shape": [1]}),
        header(t={"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}),
        header(t={"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}),
        header(t={"dtype": "F32", "shape": [17], "data_offsets": [0, 68]}),
        header(t={"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}),
        header(t={"dtype": "F32", "shape": [1], "data_offsets": [-64, -60]}),
        header(t={"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}),
        header(t={"dtype": "F32", "shape": [1 << 62, 1 << 62], "data_offsets": [0, 1 << 126]}),
        header(t={"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}),
        header(t={"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}),
        header(t={"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}),
    ],
)
def test_hostile_weights_headers(data: memoryview) -> None:
    with pytest.raises(ArtifactError, match="w is damaged"):
        read_index(data, "w")
