"""Move the groups of sparse parameters between steps: the weak ones go, as many new ones come, total unchanged.

Mostafa and Wang 2019, "Parameter efficient training of deep convolutional neural networks by dynamic sparse
reparameterization", algorithm 1: groups below a threshold, which all layers share, are pruned. The threshold doubles
or halves where much fewer or more than wanted fall below it. Layers get new groups in proportion to what survives in
them, as far as they have slots; new groups begin at zero, at random places.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graphopt.errors import GraphoptError
from graphopt.passes.prune.masks import Criterion, scores
from graphopt.passes.training.sparse.parameter import SparseParameter

Arrays = MutableMapping[str, NDArray[Any]]
TOLERANCE = 0.1
"""The threshold stays while the number pruned is within this share of the number wanted."""


@dataclass(frozen=True, slots=True)
class Reallocation:
    """Options, and the threshold that one reallocation leaves for the next.

    Attributes:
        fraction: share of all groups that is wanted to move each time.
        threshold: groups whose mean absolute weight is below it go; 0 takes the one that `fraction` means.
        number: reallocations made, which with `seed` draws the random places.
    """

    fraction: float = 0.3
    threshold: float = 0.0
    number: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the fraction.

        Raises:
            GraphoptError: it is no share.
        """
        if not 0 < self.fraction < 1:
            raise GraphoptError(f"the fraction of groups that move must be between 0 and 1, not {self.fraction:g}")


def reallocate(
    parameters: Sequence[SparseParameter], state: Arrays, moved_along: Sequence[str], options: Reallocation
) -> tuple[Reallocation, dict[str, tuple[int, int]]]:
    """Reallocate once; `state` gets new arrays of values and places.

    Args:
        parameters: `sparse_parameters` of the step model.
        state: the state of the step model by name.
        moved_along: names of state values of the shape of a sparse parameter (`<values>.momentum`, ...), which become
            zero where groups are new.
        options: what the last reallocation returned.

    Returns:
        The options for the next one; and for each parameter how many groups went and came.
    """
    worth = {each.name: _worth(state[each.values]) for each in parameters}
    used = {each.name: state[each.places] < each.groups for each in parameters}
    total = sum(int(mask.sum()) for mask in used.values())
    if not total:
        return options, {}
    threshold = options.threshold or _quantile([worth[name][used[name]] for name in used], options.fraction)
    weak = {name: used[name] & ~(worth[name] >= threshold) for name in used}  # NaN is weak too
    for name, mask in weak.items():
        if mask.any() and np.array_equal(mask, used[name]):  # a layer keeps its best group
            mask[np.argmax(np.where(used[name], np.nan_to_num(worth[name]), -1.0))] = False
    gone = {name: int(mask.sum()) for name, mask in weak.items()}
    left = {name: int(used[name].sum()) - gone[name] for name in used}
    room = {each.name: min(len(state[each.places]), each.groups) - left[each.name] for each in parameters}
    come = _shares(sum(gone.values()), left, room)
    for place, each in enumerate(parameters):
        generator = np.random.default_rng([options.seed, options.number, place])
        _move(each, state, weak[each.name], come[each.name], moved_along, generator)
    count = sum(gone.values())
    wanted = options.fraction * total
    factor = 2.0 if count < (1 - TOLERANCE) * wanted else 0.5 if count > (1 + TOLERANCE) * wanted else 1.0
    following = Reallocation(options.fraction, threshold * factor, options.number + 1, options.seed)
    return following, {name: (gone[name], come[name]) for name in gone}


def _worth(values: NDArray[Any]) -> NDArray[np.float64]:
    """The mean absolute weight of every slot."""
    grid = scores(values[:, :, None], (1, values.shape[1], 1), Criterion.MAGNITUDE)
    return grid.reshape(-1).astype(np.float64)


def _quantile(worth: Sequence[NDArray[np.float64]], fraction: float) -> float:
    numbers = np.concatenate(worth)
    finite = numbers[np.isfinite(numbers)]
    return float(np.quantile(finite, fraction)) if finite.size else 0.0


def _shares(count: int, left: dict[str, int], room: dict[str, int]) -> dict[str, int]:
    """`count` split in proportion to `left`, none beyond its `room`; what rounding leaves goes where most room is."""
    shares = dict.fromkeys(left, 0)
    while missing := count - sum(shares.values()):
        open_ = {name: left[name] or 1 for name in left if shares[name] < room[name]}
        weight = sum(open_.values())
        extra = {name: min(room[name] - shares[name], missing * each // weight) for name, each in open_.items()}
        if not any(extra.values()):
            for name in sorted(open_, key=lambda name: shares[name] - room[name])[:missing]:
                shares[name] += 1
            continue
        for name, more in extra.items():
            shares[name] += more
    return shares


def _move(
    parameter: SparseParameter,
    state: Arrays,
    weak: NDArray[np.bool_],
    come: int,
    moved_along: Sequence[str],
    generator: np.random.Generator,
) -> None:
    """Empty the `weak` slots, and fill as many slots as `come` with zeros at free places; slots stay in order."""
    places = state[parameter.places].copy()
    places[weak] = parameter.groups
    taken = np.zeros(parameter.groups + 1, np.bool_)
    taken[places] = True
    free = np.flatnonzero(~taken[:-1])
    empty = np.flatnonzero(places == parameter.groups)
    new = empty[:come]
    places[new] = generator.choice(free, come, replace=False)
    order = np.argsort(places, kind="stable")
    state[parameter.places] = places[order]
    for name in (parameter.values, *(each for each in moved_along if each.startswith(f"{parameter.values}."))):
        numbers = state[name].copy()
        numbers[empty] = 0
        state[name] = numbers[order]
