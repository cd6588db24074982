"""Slots: where the channels of all values lie, and which of them may change places.

A slot is one channel, at all places of all values and constants that hold it. Two slots are of one class if they look
alike: they lie on the same carriers, as often on each, and what links the carriers links the first place of one as it
links the first place of the other, and so on. Then they may change places everywhere at once, the first place with the
first one, and nobody sees a difference. The classes are found by refining one class of all with one fact after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import is_constant
from graphopt.graph.edit import dims

Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Carrier:
    """Axes of a value that carry channels, flattened, the last of `axes` the fastest: the number of each place.

    The outputs of a product lie along one axis; split into heads, along two. An axis of no carrier keeps its order.
    """

    axes: tuple[int, ...]
    places: Places

    def along(self, axes: Sequence[int], shape: Sequence[int]) -> Places:
        """The places with the axes in the order `axes`; `shape` is that of the value."""
        if tuple(axes) == self.axes:
            return self.places
        grid = self.places.reshape([shape[axis] for axis in self.axes])
        return grid.transpose([self.axes.index(axis) for axis in axes]).reshape(-1)


@dataclass(frozen=True, slots=True, eq=False)
class Operand:
    """Places of a constant operand of `node` that follow the channels of a class.

    The constant, reshaped to `view`, carries them along `axes`, flattened. `places` [channels, copies] are theirs.
    `produces` where they are the outputs of a product or convolution, `consumes` where they are its inputs.
    """

    node: ir.Node
    index: int
    view: tuple[int, ...]
    axes: tuple[int, ...]
    places: NDArray[np.int64]
    produces: bool = False
    consumes: bool = False

    def along(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each place along the axes, the place that what stands there comes from: the channels in `order`."""
        sources = np.arange(math.prod(self.view[axis] for axis in self.axes))
        sources[self.places] = self.places[order]
        return sources


@dataclass(frozen=True, slots=True, eq=False)
class Channels:
    """A class of `extent` channels, the constants that would follow, and the values that carry them."""

    extent: int
    operands: tuple[Operand, ...]
    values: tuple[ir.Value, ...]


class Finder:
    """Collects how the places of values are linked while rules walk through a graph, and finds the classes of slots."""

    def __init__(self) -> None:
        """Nothing is known yet: no value carries channels."""
        self._count = 0
        self._carriers: dict[int, list[Carrier]] = {}
        self._values: list[tuple[ir.Value, Places]] = []
        self._links: list[tuple[Places, Places]] = []
        self._together: list[Places] = []
        self._fixed: list[Places] = []
        self._operands: list[Operand] = []

    def of(self, value: ir.Value | None) -> Sequence[Carrier]:
        """The carriers of a value, whose axes are disjoint."""
        return () if value is None else self._carriers.get(id(value), ())

    def on(self, value: ir.Value | None, axis: int) -> Carrier | None:
        """The carrier of `value` that contains `axis`."""
        return next((each for each in self.of(value) if axis in each.axes), None)

    def new(self, count: int) -> Places:
        """Numbers of new places."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def carry(self, value: ir.Value, axes: Sequence[int], places: Places | None = None) -> Carrier | None:
        """Let `axes` of `value` carry what is at `places`, or channels of their own.

        Axes of one element are left out; None if that leaves none.
        """
        shape = dims(value) or ()
        kept = tuple(axis for axis in axes if shape[axis] != 1)
        if not kept:
            if places is not None:
                self.fix(places)
            return None
        carrier = Carrier(kept, self.new(math.prod(shape[axis] for axis in kept)))
        if places is not None:
            self.same(places, carrier.places)
        self._carriers.setdefault(id(value), []).append(carrier)
        self._values.append((value, carrier.places))
        return carrier

    def join(self, value: ir.Value, axes: Sequence[int], places: Places) -> None:
        """As `carry`, where another operand may have carried channels to some of these axes: they are the same."""
        shape = dims(value) or ()
        kept = tuple(axis for axis in axes if shape[axis] != 1)
        there = [each for each in self.of(value) if set(each.axes) & set(kept)]
        if not there:
            self.carry(value, axes, places)
        elif set(there[0].axes) != set(kept):
            for each in (places, *(carrier.places for carrier in there)):
                self.fix(each)
        else:
            self.same(there[0].places, Carrier(kept, places).along(there[0].axes, shape))

    def same(self, a: Places, b: Places) -> None:
        """The channels of two arrays are the same, place by place."""
        self._links.append((a, b))

    def fix(self, places: Places) -> None:
        """The channels at these places keep them."""
        self._fixed.append(places)

    def refuse(self, *values: ir.Value | None) -> None:
        """The channels of these values keep their places."""
        for value in values:
            for carrier in self.of(value):
                self.fix(carrier.places)

    def apart(self, value: ir.Value, carrier: Carrier, axes: Iterable[int]) -> None:
        """Channels of `carrier` change no places across elements of those of its axes that are in `axes`."""
        shape = dims(value) or ()
        across = [axis for axis in carrier.axes if axis in set(axes)]
        if len(across) == len(carrier.axes):
            self.fix(carrier.places)
        elif across:
            rest = [axis for axis in carrier.axes if axis not in across]
            rows = carrier.along([*across, *rest], shape).reshape(math.prod(shape[axis] for axis in across), -1)
            for row in rows:
                self.together(row)

    def together(self, places: Places) -> None:
        """What is at these places changes places among itself alone."""
        self._together.append(places)

    def operand(
        self,
        node: ir.Node,
        index: int,
        axes: Sequence[int],
        carrier: Carrier | None,
        *,
        view: Sequence[int] | None = None,
        produces: bool = False,
        consumes: bool = False,
    ) -> None:
        """The constant operand `index` of `node` has the channels of `carrier` along `axes`, flattened in its order."""
        if carrier is not None:
            shape = tuple(dims(node.inputs[index]) or ()) if view is None else tuple(view)
            self._operands.append(Operand(node, index, shape, tuple(axes), carrier.places, produces, consumes))

    def classes(self) -> Iterator[Channels]:
        """The classes of at least two slots that nothing fixes and that some product or convolution produces."""
        slot = _roots(self._count, self._links)
        colour = self._colours(slot)
        values: dict[int, dict[int, ir.Value]] = {}
        for value, places in self._values:
            for each in np.unique(colour[slot[places]]).tolist():
                values.setdefault(each, {})[id(value)] = value
        operands: dict[int, list[Operand]] = {}
        for operand in self._operands:
            slots = slot[operand.places]
            colours = colour[slots]
            by_slot = np.argsort(slots, kind="stable")
            for each in np.unique(colours[colours >= 0]).tolist():
                found = by_slot[colours[by_slot] == each]
                extent = len(np.unique(slots[found]))
                operands.setdefault(each, []).append(replace(operand, places=found.reshape(extent, -1)))
        for each, followers in operands.items():
            extent = len(followers[0].places)
            if extent > 1 and any(operand.produces for operand in followers):
                yield Channels(extent, tuple(followers), tuple(values[each].values()))

    def _colours(self, slot: Places) -> NDArray[np.int64]:
        """The class of every slot, negative where it is fixed."""
        times = np.zeros(self._count, np.int64)  # how often a carrier had the slot of a place before
        for _, places in self._values:
            times[places] = _occurrence(slot[places])
        partition = _Partition(self._count)
        for places in (*(places for _, places in self._values), *self._together):
            partition.refine(slot[places], times[places])
        for a, b in self._links:
            if times[a].any() or times[b].any():
                partition.refine(slot[a], times[a] * (int(times[b].max()) + 1) + times[b])
        for places in self._fixed:
            partition.colour[slot[places]] = -1
        return partition.colour


class _Partition:
    """The classes of slots that look alike in all that is known so far: their numbers are `colour`."""

    def __init__(self, count: int) -> None:
        self.colour = np.zeros(count, np.int64)
        self._following = 1
        self._seen: set[tuple[bytes, bytes]] = set()

    def refine(self, slots: NDArray[np.int64], facts: NDArray[np.int64]) -> None:
        """Slots stay in one class only if these facts about them, several on one slot, are the same."""
        key = slots.tobytes(), facts.tobytes()
        if key in self._seen:
            return
        self._seen.add(key)
        order = np.lexsort((facts, slots))
        here, starts, counts = np.unique(slots[order], return_index=True, return_counts=True)
        old = self.colour[here]
        for count in np.unique(counts).tolist():
            chosen = counts == count
            rows = facts[order][starts[chosen, None] + np.arange(count)]
            new = old[chosen]
            if rows.any():
                _, kind = np.unique(rows, axis=0, return_inverse=True)
                new = new * (int(kind.max()) + 1) + kind.reshape(-1)
            _, number = np.unique(new, return_inverse=True)
            self.colour[here[chosen]] = self._following + number
            self._following += len(number)


def _occurrence(slots: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each place, how many places before it have the same slot."""
    order = np.argsort(slots, kind="stable")
    _, starts, counts = np.unique(slots[order], return_index=True, return_counts=True)
    times = np.empty(len(slots), np.int64)
    times[order] = np.arange(len(slots)) - np.repeat(starts, counts)
    return times


def _roots(count: int, links: Sequence[tuple[Places, Places]]) -> NDArray[np.int64]:
    """The slot of every place: the least place that is linked to it, directly or not."""
    root = np.arange(count)
    if not links:
        return root
    a, b = (np.concatenate(side) for side in zip(*links, strict=True))
    while True:
        high, low = np.maximum(root[a], root[b]), np.minimum(root[a], root[b])
        if np.array_equal(high, low):
            return root
        np.minimum.at(root, high, low)
        while not np.array_equal(root, root[root]):
            root = root[root]


def is_static(node: ir.Node) -> bool:
    """Whether all operands and results have static shapes."""
    return all(value is None or dims(value) is not None for value in (*node.inputs, *node.outputs))


def is_variable(value: ir.Value | None) -> bool:
    """Whether `value` is there and differs from run to run."""
    return value is not None and not is_constant(value)
