"""Choose the order of every class of channels in which the products that make and read them need the fewest blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphopt.cost.roofline import Machine
from graphopt.graph.edit import Editor
from graphopt.passes.sparse.carriers import Channels, Operand
from graphopt.passes.sparse.channels import classes
from graphopt.passes.sparse.layers import SparseLayer, grouped, read_layer
from graphopt.passes.sparse.permute import permute
from graphopt.solve import clustering

CLEAR, WORTH = 0.98, 0.95
"""A class is permuted if that leaves at most `CLEAR` of the estimated time of its layers; or, where all of them are
estimated to be faster dense, at most `WORTH` of their time as blocks: measurements may say otherwise."""

AGREED = 1.1
"""Producers of which the common order needs at most this many times the bound's vectors agree."""

ALONE = 4
"""Producers that disagree, the heaviest, whose own best order is tried."""

PERMUTED = ("outputs of ", "inputs of ")
"""How the sentences on what was permuted begin."""

NAMED = 6
"""Layers of a class that are named in its sentence."""

Order = NDArray[np.int64]


def cluster_channels(editor: Editor, machine: Machine, max_density: float) -> list[str]:
    """Permute every class of channels that its sparse layers want in another order; a sentence for each.

    Candidates are an order for all producers of a class, where these disagree the order of each of the heaviest, and
    one for producers and for the products that read the channels, whose square blocks are groups of inputs too. The
    least estimated time of all layers decides: nothing is paid for the order, but some layers may not get theirs.

    Args:
        editor: edits the graph.
        machine: gives estimates, and the outputs of a vector.
        max_density: the largest share of weights, and then of vectors, that may be other than zero.
    """
    sparse: dict[ir.Node, SparseLayer | None] = {}
    members = [_Class(channels, _ends(channels, sparse, machine, max_density)) for channels in classes(editor.graph)]
    members = [each for each in members if each.ends and each.channels.extent >= 2 * machine.group]
    moved = {each: each.reorder(machine, max_density, readers=False) for each in members}
    for each in members:
        moved[each] |= each.reorder(machine, max_density, readers=True)
    chosen = [each for each in members if moved[each]]
    if chosen:
        permute(editor, [(each.channels, each.order) for each in chosen])
    return list(_sentences(chosen, machine.group))


@dataclass(slots=True, eq=False)
class _Ends:
    """A layer whose outputs, inputs or both are channels of a class."""

    layer: SparseLayer
    outputs: Operand | None = None
    inputs: Operand | None = None

    @property
    def part(self) -> float:
        """The share of the layer's outputs or inputs that the channels are."""
        outputs, inputs = (0 if end is None else end.places.size for end in (self.outputs, self.inputs))
        n, k = self.layer.support.shape
        return float(max(outputs / n, inputs * self.layer.taps / k))

    def permuted(self, order: Order) -> NDArray[np.bool_]:
        """The support with the channels in another order."""
        outputs, inputs = (None if end is None else end.along(order) for end in (self.outputs, self.inputs))
        return self.layer.permuted(outputs, inputs)


def _ends(
    channels: Channels, sparse: dict[ir.Node, SparseLayer | None], machine: Machine, max_density: float
) -> list[_Ends]:
    """The layers that are sparse enough: the producers of a class, and the products that read it."""
    ends: dict[ir.Node, _Ends] = {}
    for operand in channels.operands:
        if not operand.produces and not operand.consumes:
            continue
        if operand.node not in sparse:
            read = read_layer(operand.node)
            sparse[operand.node] = read if read is not None and read.support.mean() <= max_density else None
        layer = sparse[operand.node]
        if layer is None or (operand.consumes and not layer.squares(machine)):
            continue
        end = ends.setdefault(operand.node, _Ends(layer))
        if operand.produces:
            end.outputs = operand
        else:
            end.inputs = operand
    return list(ends.values())


class _Seconds(NamedTuple):
    """Estimated time of layers, each dense or as blocks, and of all as blocks; `own` is the part of a class in it."""

    all: float
    as_blocks: float
    own: float
    own_as_blocks: float


class _Class:
    """A class of channels, the sparse layers at its ends, and the order found so far."""

    def __init__(self, channels: Channels, ends: list[_Ends]) -> None:
        self.channels, self.ends = channels, ends
        self.order: Order = np.arange(channels.extent)
        self.preferred: SparseLayer | None = None
        self.given = self.vectors = self.bound = 0

    @property
    def producers(self) -> list[_Ends]:
        """The layers whose outputs the channels are."""
        return [end for end in self.ends if end.outputs is not None]

    @property
    def readers(self) -> list[_Ends]:
        """The layers with square blocks that read the channels."""
        return [end for end in self.ends if end.inputs is not None]

    def reorder(self, machine: Machine, max_density: float, *, readers: bool) -> bool:
        """Take the candidate with the least estimated time; whether it is clearly better than the order so far."""
        candidates = list(self._for_readers(min(machine.squares)) if readers else self._for_producers(machine.group))
        if not candidates:
            return False
        same = np.arange(len(self.order))
        given = self._seconds(machine, same)
        timed = [(*self._seconds(machine, order)[:2], number) for number, (order, _) in enumerate(candidates)]
        seconds, as_blocks, number = min(timed)
        order, preferred = candidates[number]
        saved, saved_as_blocks = given.all - seconds, given.as_blocks - as_blocks
        clear = saved > (1 - CLEAR) * given.own
        may_be = saved >= 0 and saved_as_blocks > (1 - WORTH) * given.own_as_blocks
        if not clear and not (may_be and self._share(machine, order) <= max_density):
            return False
        self.preferred = preferred
        for end in self.ends:
            end.layer.support = end.permuted(order)
        self.order = self.order[order]
        return True

    def _for_producers(self, lanes: int) -> Iterator[tuple[Order, SparseLayer | None]]:
        """Orders, and the producer that one is for if it is not for all."""
        supports = [_rows(end) for end in self.producers]
        if not supports:
            return
        problem = clustering.Problem(np.concatenate(supports, axis=1), lanes)
        common = clustering.cluster(problem)
        self.given, self.bound = clustering.as_given(problem).columns, common.bound
        self.vectors = -(-len(problem.supports) // lanes) * problem.supports.shape[1]
        yield np.array(common.order), None
        if len(supports) == 1 or common.columns <= AGREED * common.bound:
            return
        weight = [end.layer.rows * np.count_nonzero(rows) for end, rows in zip(self.producers, supports, strict=True)]
        for number in np.argsort(weight, kind="stable")[::-1][:ALONE].tolist():
            solution = clustering.cluster(clustering.Problem(supports[number], lanes))
            yield np.array(solution.order), self.producers[number].layer

    def _for_readers(self, height: int) -> Iterator[tuple[Order, SparseLayer | None]]:
        """An order for producers and readers. A square block of a reader weighs as much as it has vectors."""
        columns = []
        for end in self.readers:
            assert end.inputs is not None
            groups = grouped(end.layer.support, height)
            columns += [np.repeat(groups[:, places].T, height, axis=1) for places in end.inputs.places.T]
        if columns:
            supports = np.concatenate([*(_rows(end) for end in self.producers), *columns], axis=1)
            yield np.array(clustering.cluster(clustering.Problem(supports, height)).order), self.preferred

    def _seconds(self, machine: Machine, order: Order) -> _Seconds:
        """Estimated time of the layers with the channels in another order."""
        blocks = [end.layer.sparse_seconds(machine, end.permuted(order)) for end in self.ends]
        best = [min(each, end.layer.dense_seconds(machine)) for each, end in zip(blocks, self.ends, strict=True)]
        own = [end.part for end in self.ends]
        return _Seconds(sum(best), sum(blocks), float(np.dot(best, own)), float(np.dot(blocks, own)))

    def _share(self, machine: Machine, order: Order) -> float:
        """Vectors of outputs of all producers that hold a weight, of all that there are."""
        groups = [grouped(_rows(end)[order], machine.group) for end in self.producers]
        return sum(int(each.sum()) for each in groups) / max(1, sum(each.size for each in groups))

    def columns(self, lanes: int) -> int:
        """Vectors of the channels that hold a weight, in the order found."""
        return sum(int(grouped(_rows(end), lanes).sum()) for end in self.producers)


def _rows(end: _Ends) -> NDArray[np.bool_]:
    """[channels, inputs]: the support of the channels of a class, of all its copies side by side.

    q and k of attention may be outputs of one product.
    """
    assert end.outputs is not None
    return np.concatenate([end.layer.support[places] for places in end.outputs.places.T], axis=1)


def _sentences(chosen: Sequence[_Class], lanes: int) -> Iterator[str]:
    """What was permuted; classes of the same layers are counted together."""
    together: dict[tuple[str, ...], list[_Class]] = {}
    for each in chosen:
        ends = each.producers or each.ends
        together.setdefault(tuple(str(end.layer.node.name) for end in ends), []).append(each)
    for all_names, group in together.items():
        left = len(all_names) - NAMED
        names = ", ".join(all_names) if left <= 1 else f"{', '.join(all_names[:NAMED])} and {left} more"
        parts = f", within {len(group)} parts each" if len(group) > 1 else ""
        if not group[0].producers:
            yield f"{PERMUTED[1]}{names} are permuted{parts}: their square blocks hold fewer zeros"
            continue
        vectors = sum(each.vectors for each in group)
        after, given, bound = (
            sum(counts) / vectors
            for counts in zip(*((each.columns(lanes), each.given, each.bound) for each in group), strict=True)
        )
        alone = dict.fromkeys(str(each.preferred.node.name) for each in group if each.preferred is not None)
        why = f", in the order of {', '.join(alone)} because they disagree" if alone else ""
        yield (
            f"{PERMUTED[0]}{names} are permuted{parts}{why}: {after:.1%} of the vectors of {lanes} hold a "
            f"weight, {given:.1%} did; no order leaves less than {bound:.1%}"
        )
