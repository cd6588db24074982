"""Files and paths that hold no model are refused."""

import os
import re
from pathlib import Path

import pytest

from graphopt.errors import GraphoptError, ModelError
from graphopt.frontend.load import load
from tests.helpers.model_proto import text


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty; export or copy the model again"),
        (b"<html>not found</html>\n", "is text, not an ONNX protobuf"),
        (b"PK\x03\x04" + bytes(60), "is a zip archive, perhaps a PyTorch checkpoint"),
        (bytes(range(256)) * 4, "is not an ONNX protobuf or is damaged"),
        (b"\x00" * 100, "is not an ONNX protobuf or is damaged"),
    ],
)
def test_files_that_are_no_models(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"^{re.escape(str(path))} {re.escape(sentence)}"):
        load(path)


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx: does not exist; give the path"):
        load(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="is a directory; give the path"):
        load(tmp_path)
    with pytest.raises(ModelError, match="is not a file name"):
        load("a\0b")
    os.mkfifo(tmp_path / "pipe.onnx")
    with pytest.raises(ModelError, match="is not a regular file"):
        load(tmp_path / "pipe.onnx")
    with (tmp_path / "large.onnx").open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(ModelError, match="is larger than 2 GiB"):
        load(tmp_path / "large.onnx")


def test_errors_of_libraries_become_model_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RecursionError("deep\nwithin.")

    monkeypatch.setattr("graphopt.frontend.load.fix_inputs", fail)
    with pytest.raises(GraphoptError, match=r"^the model cannot be loaded \(RecursionError: deep within\); check it"):
        load(text("g (float[2] x) => (float[2] y) { y = Relu(x) }"))
