"""Passes and pipelines: a pass rewrites a model in place and says what it did; a pipeline is passes in order.

pipeline = Pipeline.parse("normalize,fuse,select-conv{max-workspace=256MiB},layout")
result = pipeline.run(model, observers=[Check(), Dump(directory)])
str(pipeline)     # the spelling again, options at their defaults left out
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
import math
import re
import time
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import onnx_ir as ir

from graphopt.cost.model import CostModel
from graphopt.errors import GraphoptError, PipelineError


class ByteSize(int):
    """A number of bytes that is spelled with a unit: `256MiB`, `1GiB`, `4096B`."""

    UNITS: ClassVar[dict[str, int]] = {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "B": 1}

    @classmethod
    def parse(cls, text: str) -> ByteSize:
        """Read a spelling; a bare number is bytes. Raises ValueError."""
        match = re.fullmatch(r"(\d+)(GiB|MiB|KiB|B)?", text)
        if not match:
            raise ValueError("a size such as 256MiB")
        return cls(int(match[1]) * cls.UNITS[match[2] or "B"])

    def __str__(self) -> str:
        unit, size = next((u, s) for u, s in self.UNITS.items() if int(self) % s == 0 and (int(self) or s == 1))
        return f"{int(self) // size}{unit}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A node that a pass looked at and left alone, and why, in a sentence."""

    node: str
    reason: str


@dataclass(frozen=True, slots=True)
class Alternative:
    """What a cost-driven pass could have done: seconds if it was possible, and why it was not taken."""

    algorithm: str
    seconds: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What a cost-driven pass did with a node, at which cost (measured or estimated), and what it rejected."""

    node: str
    algorithm: str
    seconds: float
    alternatives: tuple[Alternative, ...]
    tile: str = ""
    measured: bool = False


@dataclass
class PassResult(ir.passes.PassResult):
    """onnx_ir's result (`model`, `modified`) with the refusals and choices of the pass, and sentences about them."""

    refusals: tuple[Refusal, ...] = ()
    choices: tuple[Choice, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a pass, as its spelling shows it."""

    name: str
    kind: str
    default: str
    help: str


def option(default: Any, help: str) -> Any:
    """A dataclass field that is an option of its pass; fields made otherwise are set from Python only."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """Base of all passes: a frozen dataclass whose `option(...)` fields are its options.

    A subclass defines `name` and `call(model) -> PassResult`. Options may be bool, int, float, str, ByteSize, a
    StrEnum, or a tuple of a StrEnum (spelled `a+b`).
    """

    name: ClassVar[str]

    def on(self, costs: CostModel) -> Pass:
        """The same pass with other costs; passes that weigh none are the same with all."""
        del costs
        return self

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """Name, kind, default and help of every option, for listings."""
        hints = typing.get_type_hints(cls)
        return tuple(
            Option(_spelled(f.name), _kind(hints[f.name]), _print_value(f.default), f.metadata["help"])
            for f in _option_fields(cls)
        )

    @classmethod
    def from_options(cls, texts: dict[str, str]) -> Self:
        """The pass with the given option texts; "" is the text of a bare option and means true.

        Raises:
            PipelineError: unknown option, or a value of the wrong kind.
        """
        hints = typing.get_type_hints(cls)
        fields = {_spelled(f.name): f for f in _option_fields(cls)}
        values: dict[str, Any] = {}
        for name, text in texts.items():
            if name not in fields:
                raise PipelineError(f"pass {cls.name} has no option {name}; {_suggest(name, fields)}")
            try:
                values[fields[name].name] = _parse_value(hints[fields[name].name], text)
            except ValueError as error:
                raise PipelineError(f"option {name} of pass {cls.name} is {text!r}; it must be {error}") from None
        return cls(**values)

    def __str__(self) -> str:
        texts = [
            f"{_spelled(f.name)}={_print_value(getattr(self, f.name))}"
            for f in _option_fields(type(self))
            if getattr(self, f.name) != f.default
        ]
        return f"{self.name}{{{','.join(texts)}}}" if texts else self.name


def _option_fields(cls: type[Pass]) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(cls) if "help" in f.metadata]


def _spelled(name: str) -> str:
    return name.replace("_", "-")


def _suggest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 3, 0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(known)}" if known else "it has none"


def _item_type(kind: Any) -> type[enum.StrEnum]:
    """The enum of a tuple[Enum, ...] option."""
    item: type[enum.StrEnum] = typing.get_args(kind)[0]
    return item


def _kind(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "+".join(_item_type(kind))
    if issubclass(kind, enum.StrEnum):
        return "|".join(kind)
    return {bool: "true|false", ByteSize: "size"}.get(kind, str(kind.__name__))


def _parse_value(kind: Any, text: str) -> Any:
    """`text` as a value of `kind`; ValueError says what it must be."""
    if typing.get_origin(kind) is tuple:
        return tuple(_parse_value(_item_type(kind), part) for part in text.split("+"))
    if issubclass(kind, enum.StrEnum):
        if text not in list(kind):
            raise ValueError(f"one of {', '.join(kind)}")
        return kind(text)
    if kind is bool:
        if text not in ("", "true", "false"):
            raise ValueError("true or false")
        return text != "false"
    if kind is ByteSize:
        return ByteSize.parse(text)
    try:
        value = kind(text)
    except ValueError:
        raise ValueError(f"of type {kind.__name__}") from None
    if isinstance(value, float) and not math.isfinite(value):  # nan compares false with every limit
        raise ValueError("a finite number")
    return value


def _print_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass of a run did. `index` counts from 1; 0 is the input."""

    index: int
    name: str
    spelling: str
    modified: bool
    refusals: tuple[Refusal, ...]
    choices: tuple[Choice, ...]
    seconds: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """What observers see: the model before the first pass (index 0, no step) and after every pass."""

    index: int
    name: str
    model: ir.Model
    step: Step | None


Observer = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class PipelineResult:
    """The model (the same object, rewritten) and what each pass did."""

    model: ir.Model
    steps: tuple[Step, ...]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order; prints and parses its spelling."""

    passes: tuple[Pass, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read `name{option=value,...},name,...`; the empty text is the empty pipeline.

        Raises:
            PipelineError: bad spelling, unknown pass or option; close names are offered.
        """
        passes = []
        for name, texts in _split(text):
            passes.append(load_pass(name).from_options(texts))
        return cls(tuple(passes))

    def __str__(self) -> str:
        return ",".join(map(str, self.passes))

    def on(self, costs: CostModel) -> Pipeline:
        """The same passes, with these costs."""
        return Pipeline(tuple(each.on(costs) for each in self.passes))

    def run(self, model: ir.Model, observers: Sequence[Observer] = ()) -> PipelineResult:
        """Run every pass on `model`, in place, and call every observer before the first pass and after each.

        Raises:
            PipelineError: a pass failed on this model; the message names it.
            GraphoptError: what a pass or an observer raised.
        """
        _notify(observers, Event(0, "input", model, None))
        steps: list[Step] = []
        for index, each in enumerate(self.passes, 1):
            start = time.perf_counter()
            result = _run_pass(each, model)
            seconds = time.perf_counter() - start
            refusals = getattr(result, "refusals", ())
            choices = getattr(result, "choices", ())
            notes = getattr(result, "notes", ())
            steps.append(Step(index, each.name, str(each), result.modified, refusals, choices, seconds, notes))
            _notify(observers, Event(index, each.name, model, steps[-1]))
        return PipelineResult(model, tuple(steps))


def _run_pass(each: Pass, model: ir.Model) -> ir.passes.PassResult:
    try:
        return each(model)
    except GraphoptError:
        raise
    except Exception as error:
        raise PipelineError(
            f"pass {each} failed on this model ({type(error).__name__}: {error}); leave it out of --passes"
        ) from error


def _notify(observers: Sequence[Observer], event: Event) -> None:
    for observer in observers:
        observer(event)


_ITEM = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(?:\{([^{}]*)\})?\s*(,|$)")


def _split(text: str) -> list[tuple[str, dict[str, str]]]:
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
    table: types.ModuleType = importlib.import_module("graphopt.passes")
    known: dict[str, tuple[str, str]] = table.PASSES
    if name not in known:
        raise PipelineError(f"there is no pass {name}; {_suggest(name, known)}")
    module, attribute = known[name]
    loaded: type[Pass] = getattr(importlib.import_module(module), attribute)
    return loaded
