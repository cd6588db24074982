"""Artifacts that somebody changed, digests included: they open or are refused, and nothing else."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from graphopt.artifact import open_artifact
from graphopt.errors import ArtifactError
from graphopt.program import container
from graphopt.program import json as program_json
from graphopt.program.check import problems
from graphopt.program.files import write_file
from graphopt.program.manifest import manifest_bytes, own_digest
from tests.helpers.sample_artifact import contents, sample


def forge(path: Path, files: dict[str, bytes], manifest: dict[str, Any]) -> None:
    """Write a file in which every digest and the whole container is right, whatever stands in it."""
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in files.items()}
    signed = {**manifest, "files": listed}
    signed["sha256"] = own_digest(signed)
    everything = {"manifest.json": manifest_bytes(signed), **files}
    write_file(path, *container.pieces({name: memoryview(data) for name, data in everything.items()}))


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({"target": {"features": ["avx4096"]}}, "a processor with avx4096"),
        ({"target": {"arch": "pdp11"}}, "built for pdp11"),
        ({"versions": {"apache-tvm": "0.0.1"}}, "built with apache-tvm 0.0.1"),
        ({"format": 2}, "has format 2"),
    ],
)
def test_a_consistent_forgery_is_refused_for_its_manifest(
    tmp_path: Path, manifest: dict[str, Any], reason: str
) -> None:
    good = sample()
    forge(tmp_path / "a.gopt", contents(good), dict(good.manifest))
    assert open_artifact(tmp_path / "a.gopt").manifest == good.manifest
    forge(tmp_path / "a.gopt", contents(good), {**good.manifest, **manifest})
    with pytest.raises(ArtifactError, match=reason):
        open_artifact(tmp_path / "a.gopt")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"offset": 1 << 20}, "does not fit"),
        ({"offset": -64}, "not a whole number"),
        ({"offset": 1}, "does not fit"),
        ({"shape": [-4]}, "not a whole number"),
        ({"shape": [1 << 40]}, "impossible shape|does not fit"),
        ({"dtype": "float33"}, "unknown type 'float33'"),
        ({"name": "z"}, "unknown value|not a value"),
        ({"place": "view", "of": "y", "offset": 0}, "leads to no value"),
        ({"place": "nowhere"}, "nowhere"),
    ],
)
def test_a_consistent_forgery_is_refused_for_its_program(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    files = contents(sample())
    document = json.loads(files["program.json"])
    value = next(value for value in document["stages"][0]["values"] if value["name"] == "y")
    value.update(change)
    forge(tmp_path / "a.gopt", {**files, "program.json": json.dumps(document).encode()}, dict(sample().manifest))
    with pytest.raises(ArtifactError, match=reason):
        open_artifact(tmp_path / "a.gopt")


def test_forged_programs_open_or_are_refused_and_nothing_else(tmp_path: Path) -> None:
    """Some hundred forgeries with one or two odd things put anywhere into program.json."""
    files, manifest = contents(sample()), dict(sample().manifest)
    chance = random.Random(11)
    odd = [-1, 0, 1, 63, 64, 128, 1 << 45, 1 << 63, 1 << 70, 0.5, None, True, "", "x", "y", "w", "../x", [], {}, [[]]]
    opened = 0
    refused: list[str] = []
    for _ in range(400):
        document = json.loads(files["program.json"])
        for _ in range(chance.randrange(1, 3)):
            spots: list[tuple[Any, Any]] = []
            left = [document]
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
        data = json.dumps(document).encode()
        forge(tmp_path / "a.gopt", {**files, "program.json": data}, manifest)
        try:
            found = open_artifact(tmp_path / "a.gopt")
        except ArtifactError as error:
            refused.append(str(error))
        else:
            opened += 1
            assert program_json.loads(program_json.dumps(found.program)) == found.program
            assert problems(found.program) == []
    assert opened < 200
    assert not any("\n" in reason for reason in refused)
