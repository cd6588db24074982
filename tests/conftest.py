"""What holds for every test."""

import os
import shutil
import tempfile
from pathlib import Path

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
