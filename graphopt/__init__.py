"""A graph compiler: an ONNX model goes in, a verified program of generated kernels comes out.

    artifact = graphopt.compile("model.onnx")
    artifact.save("model.gopt")
    session = graphopt.open("model.gopt").session(threads=2)
    outputs = session.run({"x": x})

Names are resolved when they are first used, so that `import graphopt` stays light.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# In a source tree the folders of the subpackages stand beside this one, not in it: without this, `python -m graphopt`
# and `python` would find half a package there, even where graphopt is installed.
if not os.path.isdir(os.path.join(__path__[0], "passes")):
    __path__.append(os.path.dirname(__path__[0]))

if TYPE_CHECKING:
    from graphopt.compiler import compile as compile
    from graphopt.frontend.load import load as load
    from graphopt.pipeline.pass_base import Pass as Pass
    from graphopt.pipeline.pipeline import Pipeline as Pipeline
    from graphopt.program.artifact import Artifact as Artifact
    from graphopt.program.artifact import open_artifact as open

__version__ = "0.1.0"

_HOMES = {
    "Artifact": ("graphopt.program.artifact", "Artifact"),
    "Pass": ("graphopt.pipeline.pass_base", "Pass"),
    "Pipeline": ("graphopt.pipeline.pipeline", "Pipeline"),
    "compile": ("graphopt.compiler", "compile"),
    "load": ("graphopt.frontend.load", "load"),
    "open": ("graphopt.program.artifact", "open_artifact"),
}

__all__ = ["Artifact", "Pass", "Pipeline", "compile", "load", "open"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "errors", "program"])
