"""GPU kernels run here without a GPU: their schedules are built for OpenCL and executed on the CPU by PoCL."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from graphopt.runtime.devices.opencl import OpenClDevice
from graphopt.targets.gpu import code, devices, rules

Array = NDArray[Any]
Run = Callable[..., list[Array]]

POISON, FENCE, GUARD = 0xFF, 0xA5, 256
"""NaN in every float type; what stands behind a tensor, and how many bytes of it."""

SMALL = dataclasses.replace(devices.OPENCL, threads_per_block=64, shared_per_block=16 << 10)
"""A device of small work-groups."""


@pytest.fixture(params=[devices.OPENCL, SMALL], ids=["256 threads", "64 threads"])
def device(request: pytest.FixtureRequest) -> devices.GpuSpec:
    found: devices.GpuSpec = request.param
    return found


@pytest.fixture
def execute(opencl: OpenClDevice) -> Run:
    """Execute a PrimFunc whose loops are bound, (inputs..., outputs...), and give its outputs, poisoned before."""

    def execute(
        function: Any,
        inputs: Sequence[Array],
        outputs: Sequence[Array],
        device: devices.GpuSpec = devices.OPENCL,
        prelude: str = "",
    ) -> list[Array]:
        made = code.generate("kernel", function, device)
        source = (prelude + made.source).encode()
        assert all(np.prod(launch.block) <= device.threads_per_block for launch in made.launches)
        scratch = [np.empty(shape, dtype) for dtype, shape in made.scratch]
        for array in (*outputs, *scratch):
            array.reshape(-1).view(np.uint8)[...] = POISON
        arrays = [*map(np.asarray, map(np.ascontiguousarray, inputs)), *outputs, *scratch]
        pointers = [opencl.allocate(array.nbytes + GUARD) for array in arrays]
        for pointer, array in zip(pointers, arrays, strict=True):
            opencl.fill(pointer, FENCE, array.nbytes + GUARD)
            opencl.upload(pointer, array.reshape(-1).view(np.uint8))
        for launch in made.launches:
            opencl.kernel(source, launch, [pointers[place] for place in launch.arguments])()
        for pointer, array in zip(pointers, arrays, strict=True):
            whole = np.empty(array.nbytes + GUARD, np.uint8)
            opencl.download(whole, pointer)
            opencl.synchronize()
            assert set(whole[array.nbytes :]) == {FENCE}, "a kernel wrote behind a tensor"
            if any(array is output for output in outputs):
                array.reshape(-1).view(np.uint8)[...] = whole[: array.nbytes]
        return list(outputs)

    return execute


@pytest.fixture
def run(execute: Run, device: devices.GpuSpec) -> Run:
    """Schedule a PrimFunc of (inputs..., outputs...), and `execute` it."""

    def run(function: Any, inputs: Sequence[Array], outputs: Sequence[Array], note: str = "") -> list[Array]:
        scheduled = rules.apply(function, device)
        assert scheduled.note == note
        return execute(scheduled.function, inputs, outputs, device)

    return run
