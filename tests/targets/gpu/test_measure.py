"""Measuring on a device is tested for what it runs and returns, never for how long that takes.

Kernels for OpenCL run on this CPU; those for CUDA go to a driver of paper, whose clock always shows the same.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from graphopt.compiler import compile_model, rewrite
from graphopt.cost.model import MeasuredCosts
from graphopt.cost.workload import Operand, Workload
from graphopt.errors import GraphoptError
from graphopt.options import Options
from graphopt.program.program import ITEM_BYTES
from graphopt.runtime.devices.opencl import OpenClDevice
from graphopt.targets.common.measured_node import node_of
from graphopt.targets.gpu import measure
from graphopt.targets.gpu.measure import ALIGNED, MemoryLayout
from graphopt.targets.gpu.target import CudaTarget, GpuTarget, OpenClTarget
from graphopt.tune import tune

X, W, BIAS = Operand((1, 2, 9, 9, 16)), Operand((2, 2, 3, 3, 16, 16), constant=True), Operand((2, 16), constant=True)
WINDOW = (("strides", (1, 1)), ("pads", (1, 1, 1, 1)), ("dilations", (1, 1)), ("group", 1))
DIRECT = Workload("Conv2dBlocked", (X, W, BIAS), (1, 2, 9, 9, 16), WINDOW)
WINOGRAD = Workload(
    "Conv2dWinograd",
    (X, Operand((16, 2, 2, 16, 16), constant=True), BIAS),
    (1, 2, 9, 9, 16),
    (("m", 2), ("pads", (1, 1, 1, 1))),
)
TO_BLOCKED = Workload("ToBlocked", (Operand((1, 20, 8, 8)),), (1, 2, 8, 8, 16), (("block", 16),))
PRODUCT = Workload("MatMul", (Operand((24, 64)), Operand((64, 96), constant=True)), (24, 96), domain="")
UNKNOWN = Workload("NoSuchOperator", (X,), (1, 2, 9, 9, 16))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few runs: what is timed here is not looked at."""
    monkeypatch.setattr(measure, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(measure, "BLOCK_SECONDS", 1e-5)
    monkeypatch.setattr(measure, "LEAST_POOL", 1 << 16)
    monkeypatch.setattr(measure, "MOST_POOL", 1 << 16)


@pytest.fixture
def target(opencl: OpenClDevice, quick: None) -> OpenClTarget:
    return OpenClTarget()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def model() -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 20]>
        g (float[1,16,8,8] x, float[16,16,3,3] w, float[8,96] v) => (float[1,16,8,96] y) {
            c = Conv<pads=[1,1,1,1]>(x, w)  y = MatMul(c, v)
        }"""
    )
    del parsed.graph.input[1:]
    for name, shape in (("w", (16, 16, 3, 3)), ("v", (8, 96))):
        array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return parsed


def test_every_work_gets_its_seconds(target: OpenClTarget) -> None:
    groups = [[(DIRECT, ""), (WINOGRAD, ""), (UNKNOWN, "")], [(TO_BLOCKED, "")], [(PRODUCT, "32x32x8/4x4")], []]
    said: list[str] = []
    found = target.measure(groups, said.append)
    assert [len(group) for group in found] == [3, 1, 1, 0]
    assert found[0][2] is None
    for timing in (*found[0][:2], *found[1], *found[2]):
        assert timing is not None
        assert 0 < timing.low <= timing.seconds <= timing.high < math.inf
    assert found[2][0] is not None
    assert found[2][0].tile == "32x32x8/4x4"
    assert said[0] == "building 5 kernels to measure"
    assert said[-1] == "measuring kernels, 4 of 4 groups"


def test_nothing_is_timed_where_nothing_can_be_built(target: OpenClTarget) -> None:
    assert target.measure([[(UNKNOWN, ""), (UNKNOWN, "")], []]) == [[None, None], []]


def test_a_kernel_that_the_device_does_not_take_has_no_time(
    target: OpenClTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = GpuTarget.image

    def spoilt(self: GpuTarget, made: Any) -> bytes:
        return b"no OpenCL" if "winograd" in made.source else image(self, made)

    monkeypatch.setattr(GpuTarget, "image", spoilt)
    ((first, second),) = target.measure([[(WINOGRAD, ""), (DIRECT, "")]])
    assert first is None
    assert second is not None


def test_runs_read_their_weights_from_one_place_after_the_other(target: OpenClTarget) -> None:
    node = node_of(DIRECT)
    lowered = target.lower([node], [node.inputs[0]], list(node.outputs), {"": 20, "graphopt": 1}, "t_")
    pool = 5 * 2 * 2 * 9 * 256 * 4
    layout = MemoryLayout.of(lowered, pool)
    rotating = [spot for spot in layout.spots.values() if spot.count > 1]
    assert [spot.count for spot in rotating] == [5]
    (weights,) = rotating
    assert len({weights.at(run) for run in range(5)}) == 5
    assert weights.at(5) == weights.at(0)
    assert sum(array.size for array in layout.kept.values()) == 32  # the bias
    spans: dict[str, list[tuple[int, int]]] = {}
    for name, spot in layout.spots.items():
        value = lowered.values[name]
        assert spot.start % ALIGNED == spot.step % ALIGNED == 0
        assert spot.step >= math.prod(value.shape or ()) * ITEM_BYTES[value.dtype]
        spans.setdefault(spot.region, []).append((spot.start, spot.start + spot.count * spot.step))
    for region, found in spans.items():
        found.sort()
        assert all(end <= start for (_, end), (start, _) in zip(found, found[1:], strict=False))
        assert found[-1][1] == layout.sizes[region]
    assert weights.count * weights.step >= pool


def test_compiling_measures_once_and_says_on_what(
    target: OpenClTarget, table: None, opencl: OpenClDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rewrite(model(), Options(target="opencl", costs="measured"))
    assert f"costs are measured on {opencl.name}" in made.notes
    assert isinstance(made.costs, MeasuredCosts)
    assert made.costs.measured > 0
    choices = [choice for step in made.result.steps for choice in step.choices]
    assert {choice.algorithm for choice in choices} > {"gemm"}
    assert all(choice.measured for choice in choices)
    again = rewrite(model(), Options(target="opencl", costs="measured"))
    assert isinstance(again.costs, MeasuredCosts)
    assert again.costs.measured == 0
    assert [choice for step in again.result.steps for choice in step.choices] == choices


def test_an_artifact_gives_its_measurements_back(
    target: OpenClTarget, table: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = compile_model(model(), target="opencl", costs="measured", verify="ends").artifact
    made.save(tmp_path / "a.gopt")
    monkeypatch.setattr(GpuTarget, "measure", None)
    again = compile_model(model(), target="opencl", costs=str(tmp_path / "a.gopt")).artifact
    assert again.manifest["costs"] == made.manifest["costs"]
    assert len(again.manifest["costs"]) > 2
    assert again.manifest["choices"] == made.manifest["choices"]
    assert {name: bytes(data) for name, data in again.files.items()} == {
        name: bytes(data) for name, data in made.files.items()
    }


def test_estimates_leave_the_choice_of_tiles_to_the_schedule() -> None:
    made = rewrite(model(), Options(target="opencl", costs="roofline"))
    (step,) = [step for step in made.result.steps if step.spelling == "choose-tiles"]
    assert not step.modified
    assert not step.choices


def test_tuning_tries_tiles(target: OpenClTarget, table: None) -> None:
    found = list(tune(model(), trials=2, top=1, target="opencl"))
    assert [each.tried >= 2 for each in found] == [True]


def test_facts_tell_devices_apart(opencl: OpenClDevice) -> None:
    facts = OpenClTarget().cost_facts()
    assert set(facts) == {"gpu", "driver", "level", "compiler", "tvm", "kernels"}
    assert facts["gpu"] == opencl.name


def test_without_a_device_costs_are_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, arch: str | None = None) -> Any:
        raise GraphoptError("there is no NVIDIA driver here; install it, or run this on a machine with a GPU")

    monkeypatch.setattr("graphopt.targets.gpu.target.open_any", absent)
    assert CudaTarget().cannot_measure() == "there is no NVIDIA driver here"
    made = rewrite(model(), Options(target="cuda", costs="measured"))
    assert "costs are estimates: there is no NVIDIA driver here" in made.notes
    with pytest.raises(GraphoptError, match="^nothing can be tuned here: there is no NVIDIA driver here$"):
        list(tune(model(), target="cuda"))


def test_another_architecture_is_not_measured(driver: Any) -> None:
    assert CudaTarget("h100").cannot_measure() is None
    assert CudaTarget("sm_90").cannot_measure() is None
    reason = CudaTarget("a100").cannot_measure()
    assert reason == "Paper GPU is no sm_80; compile for it with --level sm_90a to measure"
    facts = CudaTarget("sm_90").cost_facts()
    assert facts["gpu"] == "Paper GPU"
    assert facts["driver"].endswith("CUDA 13.0")
    assert facts != CudaTarget("h100").cost_facts()


def test_a_block_of_runs_is_one_graph(driver: Any, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a candidate's kernels, and nothing between them; each run on other weights."""
    monkeypatch.setattr(measure, "MOST_POOL", 300_000)
    monkeypatch.setattr(measure, "LEAST_POOL", 300_000)
    ((timing,),) = CudaTarget("sm_90").measure([[(DIRECT, "")]])
    assert timing is not None
    runs = measure.LEAST_RUNS
    assert timing.seconds == pytest.approx(2.5e-3 / runs)
    assert len(driver.named("cuStreamBeginCapture")) == 2  # one run, and a block of them
    launched = driver.named("cuLaunchKernel")
    entries = [driver.names[arguments[0]] for arguments in launched]
    kernels = len(set(entries))
    assert entries == entries[:kernels] * (1 + runs)
    block = [set(arguments[9][0]) for arguments in launched[kernels::kernels]]
    assert len(set.union(*block) - set.intersection(*block)) == runs
    released = [name for name, *_ in driver.calls if name in ("cuMemFree", "cuGraphExecDestroy")]
    allocated = driver.named("cuMemAlloc")
    assert released.count("cuMemFree") == len(allocated)


def test_a_device_that_fails_is_said_with_what_it_did(driver: Any, quick: None) -> None:
    driver.fails["cuStreamSynchronize"] = driver.real.CUresult.CUDA_ERROR_ILLEGAL_ADDRESS
    with pytest.raises(GraphoptError, match="ILLEGAL_ADDRESS"):
        CudaTarget("sm_90").measure([[(DIRECT, "")]])


def test_a_device_that_fails_on_a_kernel(driver: Any, quick: None) -> None:
    driver.fails["cuGraphLaunch"] = driver.real.CUresult.CUDA_ERROR_LAUNCH_FAILED
    with pytest.raises(GraphoptError, match="while Conv2dBlocked was measured; compile with --costs roofline"):
        CudaTarget("sm_90").measure([[(DIRECT, "")]])


def test_where_nothing_can_be_measured_a_note_says_so(
    target: OpenClTarget, table: None, opencl: OpenClDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        OpenClTarget, "measure", lambda _, groups, progress=None: [[None] * len(group) for group in groups]
    )
    made = rewrite(model(), Options(target="opencl", costs="measured"))
    assert any("kernels could be measured: their costs are estimates" in note for note in made.notes)
