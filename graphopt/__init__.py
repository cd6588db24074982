"""A graph compiler: an ONNX model goes in, a verified program of generated kernels comes out.

    artifact = graphopt.compile("model.onnx")
    artifact.save("model.gopt")
    session = graphopt.open("model.gopt").session(threads=2)
    outputs = session.run({"x": x})

Names are resolved when they are first used, so that `import graphopt` stays light.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from graphopt.version import VERSION

if TYPE_CHECKING:
    from graphopt.artifact import Artifact as Artifact
    from graphopt.artifact import open_artifact as open
    from graphopt.compiler import compile as compile
    from graphopt.frontend.load import load as load
    from graphopt.pipeline.pass_base import Pass as Pass
    from graphopt.pipeline.pipeline import Pipeline as Pipeline
    from graphopt.training.session import TrainingSession as TrainingSession

__version__ = VERSION

_HOMES = {
    "Artifact": ("graphopt.artifact", "Artifact"),
    "Pass": ("graphopt.pipeline.pass_base", "Pass"),
    "Pipeline": ("graphopt.pipeline.pipeline", "Pipeline"),
    "TrainingSession": ("graphopt.training.session", "TrainingSession"),
    "compile": ("graphopt.compiler", "compile"),
    "load": ("graphopt.frontend.load", "load"),
    "open": ("graphopt.artifact", "open_artifact"),
}

_COMPILING = {"Pass", "Pipeline", "TrainingSession", "compile", "load"}
"""Names that need the folders which lie beside this one in a checkout, and below it where graphopt is installed."""

__all__ = ["Artifact", "Pass", "Pipeline", "TrainingSession", "compile", "load", "open"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    if name in _COMPILING and importlib.util.find_spec(f"{__name__}.passes") is None:
        raise ImportError(
            f"{__path__[0]} is graphopt's source, not an installation, and hides the one that there may be: "
            "start Python in another folder, or install it with pip install -e ."
        )
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted([*__all__, "__version__", "errors", "program"])
