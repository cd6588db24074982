"""The identity of a kernel, independent of its name: functions that compute the same in the same way get one symbol.

TVM's JSON of a function is a list of nodes that refer to each other by position, in the order in which they are first
met; only the names of variables tell where in a model the function came from. Without the numbers in those names equal
functions have equal texts, whichever layer, segment or model they stand in, and the function that is compiled is read
back from that text: the code depends on nothing that the text does not hold.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import tvm
from tvm_ffi.serialization import from_json_graph_str

from graphopt.targets.common.tir import ieee

_NUMBERS = re.compile(r"\d+")
_COUNTER = re.compile(r"(?<=[A-Za-z_])\d+(?=_|$)")
_COUNTS = ("ndim", "data_alignment", "offset_factor", "iter_type", "kind")
"""Fields of nodes that hold a number, not the position of another node."""

_PARAMETER = "operand"
_NAME_LENGTH = 40
_DIGEST_LENGTH = 12


@dataclass(frozen=True, slots=True)
class Identity:
    """A PrimFunc before any schedule: `text` is its JSON, `symbol` a readable name with a digest of the text."""

    symbol: str
    text: str

    @property
    def parts(self) -> tuple[str, str]:
        """The texts that a cache finds a kernel by."""
        return self.symbol, self.text

    def function(self) -> tvm.tirx.PrimFunc:
        """The PrimFunc, without a global symbol."""
        ieee.register()  # a function from a cache may hold its operators
        return from_json_graph_str(self.text)  # `tvm.ir.load_json` would first bring texts of older TVMs up to date


def identify(function: tvm.tirx.PrimFunc, name: str) -> Identity:
    """The identity of `function`, which the importer called `name`."""
    if "global_symbol" in function.attrs:
        function = function.without_attr("global_symbol")
    stem = readable(name)
    text = _plain(tvm.ir.save_json(function))
    digest = hashlib.sha256(f"{stem}\n{text}".encode()).hexdigest()
    return Identity(f"{stem}_{digest[:_DIGEST_LENGTH]}", text)


def readable(name: str) -> str:
    """`fused_conv_direct12_add3` -> `conv_direct_add`: without the numbers that keep a module's functions apart."""
    stem = _COUNTER.sub("", re.sub(r"\W", "_", name.removeprefix("fused_")))
    stem = stem[:_NAME_LENGTH].strip("_")
    return stem if stem[:1].isalpha() else f"kernel_{stem}".rstrip("_")


def _plain(text: str) -> str:
    """The JSON with variables named without numbers, and all parameters alike."""
    document = json.loads(text)
    nodes = document["nodes"]
    parameters = set(nodes[nodes[document["root_index"]]["data"]["params"]]["data"])
    originals = set()
    for position, node in enumerate(list(nodes)):
        if node["type"] == "ir.Var":
            old = node["data"]["name"]
            originals.add(old)
            name = _PARAMETER if position in parameters else _NUMBERS.sub("", nodes[old]["data"])
            node["data"]["name"] = len(nodes)
            nodes.append({"type": "ffi.String", "data": name})
    for unread in originals.difference(_references(nodes)):
        nodes[unread]["data"] = ""
    return json.dumps(document, separators=(",", ":"))


def _references(nodes: list[dict[str, Any]]) -> Iterator[int]:
    """Positions of nodes that others refer to, and perhaps a few more."""
    for node in nodes:
        data = node.get("data")
        if isinstance(data, list):
            yield from data
        elif isinstance(data, dict) and node["type"] != "ir.IntImm":
            yield from (field for name, field in data.items() if type(field) is int and name not in _COUNTS)
