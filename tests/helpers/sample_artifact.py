"""An artifact of every kind of part, without a compiler."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from graphopt.artifact import Artifact
from graphopt.program import schedule
from graphopt.program.program import FallbackSegment, Place, Port, Program, Stage, Value
from graphopt.program.weights import weights_bytes


def sample(manifest: dict[str, object] | None = None) -> Artifact:
    """A program of one fallback segment with a weight beside it (which nothing uses)."""
    weights = {"w": np.arange(5, dtype=np.float32), "b": np.ones((2, 3), np.bool_)}
    stage = Stage(
        index=0,
        values=(
            Value("x", "float32", (4,), Place.ARENA, 0),
            Value("y", "float32", (4,), Place.ARENA, 64),
            Value("w", "float32", (5,), Place.WEIGHT),
        ),
        inputs=("x",),
        outputs=("y",),
        segments=(FallbackSegment("fallback/0.onnx", ("x",), ("y",), ()),),
        arena_bytes=128,
        arena_lower_bound=128,
        weights="weights_0.safetensors",
    )
    ports = (Port("x", "float32", (4,)),), (Port("y", "float32", (4,)),)
    program = Program((stage,), schedule.build((stage,), ["x"]), *ports)
    files: dict[str, bytes | Path] = {
        "weights_0.safetensors": weights_bytes(weights),
        "fallback/0.onnx": b"model",
        "empty.txt": b"",
    }
    return Artifact.create(program, files, manifest if manifest is not None else {"pipeline": "fuse"})


def contents(artifact: Artifact) -> dict[str, bytes]:
    return {name: bytes(data) for name, data in artifact.files.items()}
