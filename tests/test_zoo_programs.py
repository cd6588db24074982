"""Every model of the zoo becomes a program that agrees with ONNX Runtime, natively, in the memory that it must have."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt import models
from graphopt.compiler import compile_model

# The `light/` models are the same graphs as `seeded/` with constant weights, whose outputs are all alike.
LIKE_SEEDED = ("alexnet", "densenet121", "resnet50", "vgg16")
"""Models whose layers seeded ones of the same family have too."""

LIKE_OTHERS = ("seeded/vgg19",)
"""Models whose kinds of layers (3x3 convolutions, 2x2 pools, Gemm) unet and seeded/bvlc_alexnet have too."""

LEFT_OUT = {*LIKE_SEEDED, *LIKE_OTHERS}
NAMES = [name for name in models.names() if not name.startswith("light/") and name not in LEFT_OUT]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_program(name: str) -> None:
    compilation = compile_model(f"zoo:{name}", verify="ends")
    assert not compilation.fallbacks
    assert not [note for note in compilation.notes if "does not fit" in note or "no schedule" in note]
    for stage in compilation.artifact.program.stages:
        assert stage.arena_bytes <= 1.1 * stage.arena_lower_bound


@pytest.mark.parametrize("name", ["seeded/squeezenet", "mobilenetv2", "lenet-digits"])
def test_planned_and_measured_arena_agree(name: str) -> None:
    artifact = compile_model(f"zoo:{name}").artifact
    session = artifact.session(threads=2)
    draw = np.random.default_rng(0)
    feeds = {port.name: draw.random(port.shape or (), np.float32) for port in session.inputs}
    assert session.measure_arena(feeds) == tuple(stage.arena_bytes for stage in artifact.program.stages)
    assert session.measure_arena(feeds) == (session.arena_bytes,)
