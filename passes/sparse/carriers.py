"""Slots: where the channels of all values lie, and which of them may change places.

A slot is one channel, on all axes of all values and constants that carry it. Two slots are of one class if they lie on
the same axes, as often on each: then they may change places everywhere at once, and nobody sees a difference. That is
the coarsest partition of the slots that no axis cuts, found by refining it with one axis after another.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.graph.constness import is_constant
from graphopt.graph.edit import dims

Slots = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Carrier:
    """Axes of a value that carry channels: the slot at each place of their product, the last of `axes` the fastest.

    The outputs of a product lie along one axis; split into heads, along two. An axis of no carrier keeps its order.
    """

    axes: tuple[int, ...]
    slots: Slots

    def along(self, axes: Sequence[int], shape: Sequence[int]) -> Slots:
        """The slots with the axes in the order `axes`; `shape` is that of the value."""
        if tuple(axes) == self.axes:
            return self.slots
        grid = self.slots.reshape([shape[axis] for axis in self.axes])
        return grid.transpose([self.axes.index(axis) for axis in axes]).reshape(-1)

    @property
    def repeats(self) -> bool:
        """Whether a slot lies at several places."""
        return len(np.unique(self.slots)) < len(self.slots)


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
    """Collects where slots lie while rules walk through a graph, and finds their classes."""

    def __init__(self) -> None:
        """Nothing is known yet: no value carries channels."""
        self._count = 0
        self._carriers: dict[int, list[Carrier]] = {}
        self._values: list[tuple[ir.Value, Slots]] = []
        self._equal: list[tuple[Slots, Slots]] = []
        self._together: list[Slots] = []
        self._fixed: list[Slots] = []
        self._operands: list[Operand] = []

    def of(self, value: ir.Value | None) -> Sequence[Carrier]:
        """The carriers of a value, whose axes are disjoint."""
        return () if value is None else self._carriers.get(id(value), ())

    def on(self, value: ir.Value | None, axis: int) -> Carrier | None:
        """The carrier of `value` that contains `axis`."""
        return next((each for each in self.of(value) if axis in each.axes), None)

    def fresh(self, count: int) -> Slots:
        """New slots."""
        self._count += count
        return np.arange(self._count - count, self._count)

    def carry(self, value: ir.Value, axes: Sequence[int], slots: Slots) -> Carrier | None:
        """Let `axes` of `value` carry `slots`. Axes of one element are left out; None if that leaves none."""
        shape = dims(value) or ()
        kept = tuple(axis for axis in axes if shape[axis] != 1)
        if not kept:
            self.fix(slots)
            return None
        carrier = Carrier(kept, slots)
        self._carriers.setdefault(id(value), []).append(carrier)
        self._values.append((value, slots))
        return carrier

    def join(self, value: ir.Value, axes: Sequence[int], slots: Slots) -> None:
        """As `carry`, where another operand may have carried slots to some of these axes: they are the same."""
        shape = dims(value) or ()
        kept = tuple(axis for axis in axes if shape[axis] != 1)
        there = [each for each in self.of(value) if set(each.axes) & set(kept)]
        new = Carrier(kept, slots)
        if not there:
            self.carry(value, axes, slots)
        elif set(there[0].axes) != set(kept) or (there[0].axes != kept and new.repeats):
            for slots in (new.slots, *(each.slots for each in there)):
                self.fix(slots)
        else:
            self.same(there[0].slots, new.along(there[0].axes, shape))

    def same(self, a: Slots, b: Slots) -> None:
        """The slots of two arrays are the same, place by place."""
        self._equal.append((a, b))

    def fix(self, slots: Slots) -> None:
        """These slots keep their places."""
        self._fixed.append(slots)

    def refuse(self, *values: ir.Value | None) -> None:
        """The slots of these values keep their places."""
        for value in values:
            for carrier in self.of(value):
                self.fix(carrier.slots)

    def apart(self, value: ir.Value, carrier: Carrier, axes: Iterable[int]) -> None:
        """Slots of `carrier` change no places across elements of those of its axes that are in `axes`."""
        shape = dims(value) or ()
        across = [axis for axis in carrier.axes if axis in set(axes)]
        if len(across) == len(carrier.axes):
            self.fix(carrier.slots)
        elif across:
            rest = [axis for axis in carrier.axes if axis not in across]
            rows = carrier.along([*across, *rest], shape).reshape(math.prod(shape[axis] for axis in across), -1)
            for row in rows:
                self.together(row)

    def together(self, slots: Slots) -> None:
        """These slots change places among themselves alone."""
        self._together.append(slots)

    def operand(
        self,
        node: ir.Node,
        index: int,
        axes: Sequence[int],
        slots: Slots,
        *,
        view: Sequence[int] | None = None,
        produces: bool = False,
        consumes: bool = False,
    ) -> None:
        """The constant operand `index` of `node` carries `slots` along `axes`."""
        shape = tuple(dims(node.inputs[index]) or ()) if view is None else tuple(view)
        self._operands.append(Operand(node, index, shape, tuple(axes), slots, produces, consumes))

    def classes(self) -> Iterator[Channels]:
        """The classes of at least two slots that nothing fixes and that some product or convolution produces."""
        root = _roots(self._count, self._equal)
        colour = self._colours(root)
        values: dict[int, dict[int, ir.Value]] = {}
        for value, slots in self._values:
            for each in np.unique(colour[root[slots]]).tolist():
                values.setdefault(each, {})[id(value)] = value
        operands: dict[int, list[Operand]] = {}
        for operand in self._operands:
            slots = root[operand.places]
            colours = colour[slots]
            by_slot = np.argsort(slots, kind="stable")
            for each in np.unique(colours[colours >= 0]).tolist():
                places = by_slot[colours[by_slot] == each]
                extent = len(np.unique(slots[places]))
                found = Operand(
                    operand.node,
                    operand.index,
                    operand.view,
                    operand.axes,
                    places.reshape(extent, -1),
                    operand.produces,
                    operand.consumes,
                )
                operands.setdefault(each, []).append(found)
        for each, found_all in operands.items():
            extent = len(found_all[0].places)
            if extent > 1 and any(operand.produces for operand in found_all):
                yield Channels(extent, tuple(found_all), tuple(values[each].values()))

    def _colours(self, root: Slots) -> NDArray[np.int64]:
        """The class of every slot, negative where it is fixed."""
        colour, following = np.zeros(self._count, np.int64), 1
        seen = set()
        for slots in (*(slots for _, slots in self._values), *self._together):
            here, times = np.unique(root[slots], return_counts=True)
            key = here.tobytes(), times.tobytes()
            if key in seen:
                continue
            seen.add(key)
            old = colour[here] * (int(times.max(initial=0)) + 1) + times
            _, new = np.unique(old, return_inverse=True)
            colour[here] = following + new
            following += int(new.max(initial=-1)) + 1
        for slots in self._fixed:
            colour[root[slots]] = -1
        return colour


def _roots(count: int, equal: Sequence[tuple[Slots, Slots]]) -> Slots:
    """For every slot the least one that it equals."""
    root = np.arange(count)
    if not equal:
        return root
    a, b = (np.concatenate(side) for side in zip(*equal, strict=True))
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
