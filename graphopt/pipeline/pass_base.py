"""A pass rewrites a model in place and says what it did; its fields are its options.

str(SelectConv(max_workspace=ByteSize(1 << 28)))     # "select-conv{max-workspace=256MiB}"
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import onnx_ir as ir

from graphopt.cost.model import CostModel
from graphopt.errors import PipelineError


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
        """The size in the largest unit that divides it."""
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
    """A dataclass field that is an option of its pass; other fields are set from Python only."""
    return dataclasses.field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Pass(ir.passes.InPlacePass):
    """Base of all passes: a frozen dataclass whose `option(...)` fields are its options.

    A subclass defines `name` and `call(model) -> PassResult`. Options may be bool, int, float, str, ByteSize, a
    StrEnum, or a tuple of a StrEnum (spelled `a+b`); one of these or None,
    which is spelled `-` and stands for an option not given.
    """

    name: ClassVar[str]

    def on(self, costs: CostModel) -> Pass:
        """The same pass with other costs; a pass that weighs no costs returns itself."""
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
                raise PipelineError(f"pass {cls.name} has no option {name}; {suggest(name, fields)}")
            try:
                values[fields[name].name] = _parse_value(hints[fields[name].name], text)
            except ValueError as error:
                raise PipelineError(f"option {name} of pass {cls.name} is {text!r}; it must be {error}") from None
        return cls(**values)

    def __str__(self) -> str:
        """The spelling of the pass, options at their defaults left out."""
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


def _given(kind: Any) -> Any:
    """The type of an option once it is given: `float` for `float | None`."""
    kinds = [each for each in typing.get_args(kind) if each is not types.NoneType]
    return kinds[0] if typing.get_origin(kind) is types.UnionType else kind


def _item_type(kind: Any) -> type[enum.StrEnum]:
    """The enum of a tuple[Enum, ...] option."""
    item: type[enum.StrEnum] = typing.get_args(kind)[0]
    return item


def _kind(kind: Any) -> str:
    kind = _given(kind)
    if typing.get_origin(kind) is tuple:
        return "+".join(_item_type(kind))
    if issubclass(kind, enum.StrEnum):
        return "|".join(kind)
    return {bool: "true|false", ByteSize: "size"}.get(kind, str(kind.__name__))


def _parse_value(kind: Any, text: str) -> Any:
    """`text` as a value of `kind`; ValueError says what it must be."""
    if text == "-" and _given(kind) is not kind:
        return None
    kind = _given(kind)
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
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)


def suggest(name: str, known: Iterable[str]) -> str:
    """What to write instead of `name`, as the end of a sentence."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, 3, 0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there are {', '.join(known)}" if known else "it has none"
