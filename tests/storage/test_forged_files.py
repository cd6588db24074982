"""Compressed models that were damaged, or forged with right digests: they open or are refused in a sentence."""

from __future__ import annotations

import hashlib
import json
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphopt.errors import ArtifactError, GraphoptError
from graphopt.frontend.load import load
from graphopt.program import container
from graphopt.program.files import map_file, write_file
from graphopt.program.manifest import manifest_bytes, own_digest
from graphopt.storage.archive import MANIFEST, MODEL
from graphopt.storage.model import write
from graphopt.storage.restore import restore
from tests.helpers.model_proto import text


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A product with one layer in columns, one in a bitmap and one dense."""
    model = text("g (float[1, 60] x) => (float[1, 60] y) { a = MatMul(x, u) b = MatMul(a, v) y = MatMul(b, w) }")
    generator = np.random.default_rng(0)
    for name, density in (("u", 0.04), ("v", 0.4), ("w", 1.0)):
        weights = np.round(generator.standard_normal((60, 60)) * 3).astype(np.float32) + np.float32(0.25)
        weights[generator.random((60, 60)) >= density] = 0
        model.graph.initializer.append(numpy_helper.from_array(weights, name))
    path = tmp_path_factory.mktemp("good") / "m.gopz"
    write(model, None, path)
    return path


def opened(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    contents = {name: bytes(data) for name, data in container.read(map_file(path), str(path)).items()}
    return json.loads(contents.pop(MANIFEST)), contents


def forge(path: Path, manifest: dict[str, Any], contents: dict[str, bytes]) -> Path:
    """A file in which every digest of a member and the whole container is right, whatever stands in it."""
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in contents.items()}
    signed = {**manifest, "files": listed}
    signed["sha256"] = own_digest(signed)
    everything = {MANIFEST: manifest_bytes(signed), **contents}
    write_file(path, *container.pieces({name: memoryview(data) for name, data in everything.items()}))
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ArtifactError) as caught:
        restore(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_changed_or_missing_byte_is_found(good: Path, tmp_path: Path) -> None:
    data, chance, bad = good.read_bytes(), random.Random(3), tmp_path / "bad.gopz"
    for _ in range(60):
        at = chance.randrange(64, len(data))
        bad.write_bytes(data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :])
        assert "bad.gopz" in refusal(bad)
        bad.write_bytes(data[:at])
        assert "compress the model again" in refusal(bad)
        with pytest.raises(GraphoptError, match=r"bad\.gopz"):
            load(bad)


def test_forged_streams_are_found_by_the_digest_of_the_tensor(good: Path, tmp_path: Path) -> None:
    manifest, contents = opened(good)
    chance = random.Random(5)
    for _ in range(150):
        changed = dict(contents)
        name = chance.choice([each for each in contents if each != MODEL])
        stream = bytearray(changed[name])
        for _ in range(chance.randrange(1, 4)):
            stream[chance.randrange(len(stream))] ^= 1 << chance.randrange(8)
        changed[name] = bytes(stream[: chance.choice([len(stream), chance.randrange(len(stream))])])
        if changed != contents:
            assert " is damaged: " in refusal(forge(tmp_path / "bad.gopz", manifest, changed))


def test_forged_manifests_open_or_are_refused_and_nothing_else(good: Path, tmp_path: Path) -> None:
    manifest, contents = opened(good)
    wanted, chance = restore(good), random.Random(11)
    odd = [-1, 0, 1, 3, 8, 60, 3600, 1 << 45, 1 << 63, 0.5, None, True, "", "dense", "columns", "packed", "huffman"]
    odd += ["bitmap", "tensors/0", "../x", "DOUBLE", "INT4", [], {}, [[]], [60, 60], [1 << 40]]
    refused = 0
    for _ in range(300):
        document = json.loads(json.dumps(manifest))
        for _ in range(chance.randrange(1, 3)):
            spots: list[tuple[Any, Any]] = []
            left: list[Any] = [document["tensors"], document["model"]]
            while left:
                item = left.pop()
                keys = list(item) if isinstance(item, dict) else list(range(len(item)))
                spots += [(item, key) for key in keys]
                left += [item[key] for key in keys if isinstance(item[key], dict | list)]
            item, key = chance.choice(spots)
            if chance.random() < 0.2:
                del item[key]
            else:
                item[key] = chance.choice(odd)
        forge(tmp_path / "bad.gopz", document, contents)
        try:
            assert restore(tmp_path / "bad.gopz") == wanted
        except ArtifactError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 200


def test_a_small_file_does_not_fill_the_memory(good: Path, tmp_path: Path) -> None:
    """Zeros take no bytes: how large a tensor is that is nothing else, only the manifest says."""
    manifest, contents = opened(good)
    tensor = manifest["tensors"][0]
    tensor["shape"] = [1 << 18, 1 << 18]
    tensor["form"] |= {"layout": "columns", "columns": 1 << 18, "length": 1 << 18, "codebook": 0, "pieces": []}
    assert "more than 1000 times as many" in refusal(forge(tmp_path / "bad.gopz", manifest, contents))


def test_a_model_that_inflates_to_another_size(good: Path, tmp_path: Path) -> None:
    manifest, contents = opened(good)
    deflate = zlib.compressobj(9, wbits=-15)
    contents[MODEL] = deflate.compress(bytes(1 << 26)) + deflate.flush()
    assert "its model is not the one that it names" in refusal(forge(tmp_path / "bad.gopz", manifest, contents))
    contents[MODEL] = b"\xff" * 100
    assert "its model cannot be inflated" in refusal(forge(tmp_path / "bad.gopz", manifest, contents))


@pytest.mark.parametrize("location", ["tensors/0", "tensors/7", "/etc/passwd", "", "../m.gopz"])
def test_a_model_that_names_other_members(good: Path, tmp_path: Path, location: str) -> None:
    manifest, contents = opened(good)
    model = onnx.ModelProto()
    model.ParseFromString(zlib.decompress(contents[MODEL], wbits=-15))
    model.graph.initializer[1].external_data[0].value = location
    raw = model.SerializeToString()
    deflate = zlib.compressobj(9, wbits=-15)
    contents[MODEL] = deflate.compress(raw) + deflate.flush()
    manifest["model"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    assert "no member holds the tensor 'v'" in refusal(forge(tmp_path / "bad.gopz", manifest, contents))


def test_other_formats_are_refused(good: Path, tmp_path: Path) -> None:
    manifest, contents = opened(good)
    assert "has format 2 and this graphopt reads 1" in refusal(
        forge(tmp_path / "bad.gopz", {**manifest, "format": 2}, contents)
    )
    assert "disagree" in refusal(forge(tmp_path / "bad.gopz", manifest, {**contents, "more": b""}))


def test_columns_of_no_elements_are_refused(good: Path, tmp_path: Path) -> None:
    """They would take memory for their number, which the size of the tensor does not bound."""
    manifest, contents = opened(good)
    forged = next(each for each in manifest["tensors"] if each["form"]["layout"] == "columns")
    forged["shape"] = [0]
    forged["form"] |= {"columns": 1 << 28, "length": 0}
    assert "its manifest does not describe tensor" in refusal(forge(tmp_path / "bad.gopz", manifest, contents))
