"""The models of the zoo become machine code for two architectures, without a GPU: what the assembler says of it."""

from __future__ import annotations

from typing import Any

import pytest

from graphopt import models
from graphopt.compiler import compile_model, rewrite
from graphopt.cost.workload import KernelPlan
from graphopt.frontend.expand import expand_functions
from graphopt.frontend.load import load
from graphopt.options import Options
from graphopt.program.program import KernelCall
from graphopt.runtime.devices.opencl import OpenClDevice
from graphopt.targets.gpu import code, devices, nvrtc, target
from graphopt.verify.oracle import random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.occupancy import occupancy

LIKE_OTHERS = ("vgg16", "resnet50", "mlp", "wideresnet28-2")
"""Models whose kinds of layers others have too: alexnet and unet, resnet18, mlp-b128, resnet18."""

BUILT = [name for name in models.names() if models.describe(name).source == "built" and name not in LIKE_OTHERS]
NAMES = [*BUILT, "light/inception_v2", "light/shufflenet"]  # the other light ones are like the built

CASES = [
    *((name, "fp32", "a100") for name in NAMES),
    *((name, "fp16", "h100") for name in NAMES),
    *((name, "fp16", "a100") for name in ("mobilenetv2", "unet", "bert-base")),
    *((name, "fp32", "h100") for name in ("resnet18", "bert-base")),
    ("resnet18", "tf32", "h100"),
    ("resnet18", "bf16", "a100"),
    ("bert-base", "bf16", "h100"),
]
"""Every model for both architectures, and in both precisions; what is written otherwise elsewhere by some models."""


def lowered(
    name: str, precision: str, level: str
) -> tuple[list[KernelCall], dict[str, code.DeviceCode], dict[str, KernelPlan]]:
    """Calls, functions and plans of a model, all of whose nodes are native, as one segment."""
    made = rewrite(f"zoo:{name}", Options(target="cuda", level=level, costs="roofline", precision=precision))
    backend: Any = made.target
    expand_functions(made.model, backend.supports)
    opsets = made.model.opset_imports
    assert [reason for node in made.model.graph if (reason := backend.supports(node, opsets)) is not None] == []
    graph = made.model.graph
    found = backend.lower(list(graph), list(graph.inputs), list(graph.outputs), opsets, "s_")
    assert not found.notes
    return found.calls, found.functions, found.plans


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision", "level"), CASES)
def test_machine_code(name: str, precision: str, level: str, record_property: Any) -> None:
    calls, functions, plans = lowered(name, precision, level)
    assert {call.symbol for call in calls} == set(functions)
    device = devices.DEVICES[level]
    backend = target.GpuTarget("cuda", device, cache=True)  # models share kernels: each is compiled once in a run
    least = 1.0
    for symbol, made in functions.items():
        found: nvrtc.Compiled = backend.compiled(made)
        for launch in made.launches:
            used = found.resources[launch.entry]
            threads = launch.block[0] * launch.block[1] * launch.block[2]
            assert used.shared + launch.shared <= device.shared_per_block, launch.entry
            assert used.blocks(threads, launch.shared, device) >= 1, launch.entry
            if plans[symbol].algorithm == "product":
                assert used.spilled == 0, f"{launch.entry} of {plans[symbol].tile} spills {used.spilled} bytes"
                least = min(least, occupancy(used, threads, launch.shared, device))
    record_property(f"least occupancy of a product on {device.name}", round(least, 3))
    assert least >= 0.06


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["lenet5", "resnet18", "mobilenetv2", "unet", "bert-base", "lstm", "seeded/shufflenet"]
)
def test_the_same_schedules_compute_the_model(opencl: OpenClDevice, name: str) -> None:
    """For OpenCL, on this CPU."""
    model = load(f"zoo:{name}").model
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(model, feeds)
    made = compile_model(f"zoo:{name}", target="opencl", fallback=False).artifact
    session = made.session()
    (touched,) = session.measure_arena(feeds)
    assert touched <= made.program.stages[0].arena_bytes
    require_equal(expected, session.run(feeds), "on PoCL")
