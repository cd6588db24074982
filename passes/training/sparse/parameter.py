"""A parameter of which a step keeps some groups: their numbers and places, and how they become the dense tensor.

dense w  <->  values [slots, numbers of a group] and places [slots] among the groups; place = groups: an empty slot
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.state import states
from graphopt.passes.prune.granularity import Shape

SPARSE = "graphopt.sparse"
"""Metadata key of a parameter that holds groups of another one: a `SparseParameter` as JSON."""


@dataclass(frozen=True, slots=True)
class SparseParameter:
    """Names and geometry. `axes` put the dense tensor as [outputs, inputs, taps...], of which `group` are extents."""

    name: str
    values: str
    places: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    group: Shape

    @property
    def extents(self) -> Shape:
        """[outputs, inputs, taps] of the dense tensor."""
        outputs, inputs, *taps = (*(self.shape[axis] for axis in self.axes), 1)
        return outputs, inputs, math.prod(taps)

    @property
    def grid(self) -> Shape:
        """Groups along outputs, inputs and taps."""
        outputs, inputs, taps = (extent // each for extent, each in zip(self.extents, self.group, strict=True))
        return outputs, inputs, taps

    @property
    def groups(self) -> int:
        """Number of groups of the dense tensor."""
        return math.prod(self.grid)

    @property
    def size(self) -> int:
        """Numbers of a group."""
        return math.prod(self.group)

    @property
    def order(self) -> tuple[int, ...]:
        """Axes of [grid..., group...] in the order in which the dense tensor is stored."""
        logical = dict.fromkeys(min(axis, 2) for axis in np.argsort(self.axes).tolist())
        return tuple(each for axis in (*logical, 2)[:3] for each in (axis, axis + 3))

    def split(self, dense: NDArray[Any]) -> NDArray[Any]:
        """[groups, numbers of a group] of a dense tensor."""
        stored = [(*self.grid, *self.group)[axis] for axis in self.order]
        split: NDArray[Any] = dense.reshape(stored).transpose(np.argsort(self.order))
        return split.reshape(self.groups, self.size)

    def dense(self, values: NDArray[Any], places: NDArray[Any]) -> NDArray[Any]:
        """The dense tensor, zero where no group is kept."""
        blocks = np.zeros((self.groups + 1, self.size), values.dtype)
        blocks[places] = values
        joined: NDArray[Any] = blocks[:-1].reshape(*self.grid, *self.group).transpose(self.order)
        return joined.reshape(self.shape)

    def to_json(self) -> str:
        """The text that metadata holds."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> SparseParameter:
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        lists = {key: tuple(fields[key]) for key in ("shape", "axes", "group")}
        return SparseParameter(**{**fields, **lists})


def sparse_parameters(graph: ir.Graph) -> list[SparseParameter]:
    """The sparse parameters of a step model, in the order of its initializers."""
    return [SparseParameter.from_json(v.metadata_props[SPARSE]) for v in states(graph) if SPARSE in v.metadata_props]


def restored(graph: ir.Graph, state: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """`state` with dense parameters, by their own names, in place of values and places."""
    found = dict(state)
    for each in sparse_parameters(graph):
        if each.values in state and each.places in state:
            found[each.name] = each.dense(found.pop(each.values), found.pop(each.places))
    return found
