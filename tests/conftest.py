"""What holds for every test."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import types
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers import pocl
from tests.helpers.artifacts import kernels, mixed, one_stage, pipeline, slow_pipeline, weight
from tests.helpers.paper_driver import PaperDriver

__all__ = ["kernels", "mixed", "one_stage", "pipeline", "slow_pipeline", "weight"]

if TYPE_CHECKING:
    from graphopt.runtime.devices.opencl import OpenClDevice

_MADE = "GRAPHOPT_TEST_CODE_CACHE"


def pytest_configure() -> None:
    """Choose by estimates unless a test says otherwise: a measurement takes time and need not come out the same.

    Compiled code is kept in a folder of this run, which its worker processes share, and not in the user's cache.
    """
    os.environ.setdefault("GRAPHOPT_COSTS", "roofline")
    if _MADE not in os.environ:
        folder = tempfile.mkdtemp(prefix="graphopt-code-")
        os.environ["GRAPHOPT_CODE_CACHE"] = folder
        os.environ[_MADE] = str(os.getpid())


def pytest_unconfigure() -> None:
    """The process that made the folder removes it."""
    if os.environ.get(_MADE) == str(os.getpid()):
        shutil.rmtree(Path(os.environ["GRAPHOPT_CODE_CACHE"]), ignore_errors=True)
        del os.environ[_MADE], os.environ["GRAPHOPT_CODE_CACHE"]


@pytest.fixture(scope="session")
def opencl() -> OpenClDevice:
    """PoCL: OpenCL on this CPU, on which schedules for GPUs run without one."""
    from graphopt.runtime.devices.opencl import OpenClDevice

    pocl.name_processor()
    return OpenClDevice()


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> PaperDriver:
    """Stands in for NVIDIA's driver."""
    from cuda.bindings import nvrtc

    paper = PaperDriver()
    monkeypatch.setitem(sys.modules, "cuda.bindings", types.SimpleNamespace(driver=paper, nvrtc=nvrtc))
    return paper
