"""External data stays inside the folder of the model, and is as long as it says."""

import os
import re
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import ModelError
from graphopt.frontend.load import load
from tests.helpers.model_proto import text


def external(tmp_path: Path, location: str, offset: str = "0", length: str = "4096") -> Path:
    """A model in its own folder whose weight w[32, 32] lies at `location`."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "outside.data").write_bytes(bytes(8192))
    (folder / "inside.data").write_bytes(bytes(8192))
    (folder / "link.data").symlink_to(tmp_path / "outside.data")
    (folder / "way").symlink_to(tmp_path)
    (folder / "good.data").symlink_to("inside.data")
    (tmp_path / "shared.data").write_bytes(bytes(8192))
    os.link(tmp_path / "shared.data", folder / "hard.data")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[32, 32], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=value)
    model = text("g (float[1,32] x) => (float[1,32] y) { y = MatMul(x, w) }")
    model.graph.initializer.append(tensor)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("location", "offset", "length", "sentence"),
    [
        ("/etc/passwd", "0", "4096", "keeps its data at '/etc/passwd', outside the model's folder"),
        ("C:\\w.data", "0", "4096", "outside the model's folder"),
        ("../outside.data", "0", "4096", "keeps its data at '../outside.data', outside the model's folder"),
        ("a/../inside.data", "0", "4096", "outside the model's folder"),
        ("link.data", "0", "4096", "a link that leaves the model's folder"),
        ("way/outside.data", "0", "4096", "a link that leaves the model's folder"),
        ("hard.data", "0", "4096", "a file with several hard links"),
        ("absent.data", "0", "4096", "needs the data file 'absent.data', which is not beside the model"),
        (".", "0", "4096", "which is not a regular file"),
        ("", "0", "4096", "names no file for its external data"),
        ("inside.data", "4097", "4096", "needs the bytes 4097 to 8193 of 'inside.data', which has 8192"),
        (
            "inside.data",
            "99999999999999999999",
            "4096",
            "has the external offset '99999999999999999999', not a byte count",
        ),
        ("inside.data", "-8", "4096", "has the external offset '-8', not a byte count"),
        ("inside.data", "0", "4095", "needs 4096 bytes and declares 4095"),
    ],
)
def test_external_data_is_refused(tmp_path: Path, location: str, offset: str, length: str, sentence: str) -> None:
    path = external(tmp_path, location, offset, length)
    with pytest.raises(ModelError, match=f"initializer w .*{re.escape(sentence)}"):
        load(path)


@pytest.mark.parametrize("location", ["inside.data", "./inside.data", "good.data"])
def test_external_data_inside_the_folder_loads(tmp_path: Path, location: str) -> None:
    path = external(tmp_path, location, "4096")
    tensor = load(path).model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    assert not tensor.numpy().any()


def test_external_data_of_an_ir_model_is_checked_too(tmp_path: Path) -> None:
    path = external(tmp_path, "../outside.data")
    model = ir.load(path)
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(model)
