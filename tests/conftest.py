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

# `python -m pytest` puts the current folder first on the path, where `graphopt/` without the folders beside it would
# hide the installed package.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parents[1]]

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


_SECONDS: dict[str, float] = {}
"""Of the tests of each folder; with workers, in the process that they report to."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up where the time goes."""
    parts = Path(report.location[0]).parts[1:-1]
    folder = "/".join(parts[:3]) or "."
    _SECONDS[folder] = _SECONDS.get(folder, 0.0) + report.duration


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show it, so that a suite that grows is seen to."""
    terminalreporter.section("seconds by folder")
    for folder, seconds in sorted(_SECONDS.items(), key=lambda item: -item[1]):
        terminalreporter.write_line(f"{seconds:8.1f}  tests/{folder}")


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
