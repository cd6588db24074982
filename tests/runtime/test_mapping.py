"""A session reads its weights where they stand in the mapped file: nothing is copied."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from graphopt.artifact import Artifact
from graphopt.program.weights import weights_bytes

_RUN = """
import json, sys
import numpy as np
import graphopt
session = graphopt.open(sys.argv[1]).session(threads=1)
y = session.run({"x": np.ones(1000, np.float32)})["y"]
found, inside = {}, False
for line in open("/proc/self/smaps"):
    name, _, value = line.partition(":")
    if "-" in line.split()[0]:
        inside = line.split()[-1] == sys.argv[1]
    elif inside and value.endswith("kB\\n"):
        found[name] = found.get(name, 0) + 1024 * int(value.split()[0])
print(json.dumps({"sum": float(y.sum()), **found}))
"""


def test_weights_are_mapped_and_not_copied(one_stage: Artifact, weight: np.ndarray, tmp_path: Path) -> None:
    files: dict[str, bytes | Path] = {name: bytes(data) for name, data in one_stage.files.items()}
    del files["program.json"]
    large = 64 << 20
    files["weights_0.safetensors"] = weights_bytes({"w": weight, "large": np.zeros(large, np.uint8)})
    path = Artifact.create(one_stage.program, files, {"pipeline": ""}).save(tmp_path / "model.gopt")
    command = [sys.executable, "-P", "-c", _RUN, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["Size"] >= large
    assert found["Private_Dirty"] == found["Anonymous"] == 0
    assert found["sum"] == float(np.maximum(weight + 1, 0).sum())
