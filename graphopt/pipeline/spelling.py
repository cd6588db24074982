"""How pipelines are spelled: `name{option=value,...},name,...`, and which class a name means."""

from __future__ import annotations

import importlib
import re

from graphopt.errors import PipelineError
from graphopt.passes import PASSES
from graphopt.pipeline.pass_base import Pass, suggest

_ITEM = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)")


def split(text: str) -> list[tuple[str, dict[str, str]]]:
    """[(pass name, {option: text})] of a spelling."""
    items: list[tuple[str, dict[str, str]]] = []
    position = 0
    while text.strip() and (position < len(text) or text.rstrip().endswith(",")):
        match = _ITEM.match(text, position)
        if not match:
            raise PipelineError(
                f"cannot read the pipeline at {text[position:]!r}; write name{{option=value,...}},name,..."
            )
        pairs = [pair.partition("=") for pair in (match[2] or "").split(",") if pair.strip()]
        items.append((match[1], {key.strip(): value.strip() for key, _, value in pairs}))
        position = match.end()
    return items


def load_pass(name: str) -> type[Pass]:
    """The class of the pass called `name`, imported now.

    Raises:
        PipelineError: no such pass.
    """
    if name not in PASSES:
        raise PipelineError(f"there is no pass {name}; {suggest(name, PASSES)}")
    module, attribute = PASSES[name]
    loaded: type[Pass] = getattr(importlib.import_module(module), attribute)
    return loaded
