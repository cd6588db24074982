"""Broadcasting of operands, as opsets below 7 do it."""

from __future__ import annotations

import numpy as np

from graphopt.frontend.opsets.site import NoRule, Site, rank


def binary(site: Site) -> None:
    """Add, And, Equal and others since 7 line up shapes at their ends, as numpy does; before, they may begin at `axis`.

    Add<broadcast=1, axis=1>(a[N,C,H,W], b[C])  ->  Add(a, Unsqueeze(b, [1, 2]))
    """
    site.take("consumed_inputs")
    broadcast, axis = site.take("broadcast"), site.take("axis")
    second = site.input(1)
    if second is None or broadcast is None or not broadcast.as_int() or axis is None:
        return
    left, right = rank(site.x()), rank(second)
    if left is None or right is None:
        raise NoRule("the ranks of its operands are not known")
    start = axis.as_int() + (left if axis.as_int() < 0 else 0)
    _trailing(site, right, left - start - right)


def prelu(site: Site) -> None:
    """PRelu 7: slopes line up with the ends of the operand; before, they are one for each channel or one for all."""
    second = site.input(1)
    assert second is not None
    dims, slopes = rank(site.x()), rank(second)
    if second.shape is not None and all(dim == 1 for dim in second.shape):
        return
    if dims is None or slopes is None:
        raise NoRule("the ranks of its operands are not known")
    if slopes == 1 and dims > 1:
        _trailing(site, slopes, dims - 2)


def _trailing(site: Site, present: int, more: int) -> None:
    if more > 0:
        axes = site.constant(np.arange(present, present + more))
        site.node.replace_input_with(1, site.op("Unsqueeze", site.node.inputs[1], axes))
