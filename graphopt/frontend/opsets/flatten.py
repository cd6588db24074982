"""Softmax, LogSoftmax and Hardmax below 13 take a matrix: axes before `axis` are its rows, all others its columns."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.frontend.opsets.site import Site, rank


def flattened(site: Site) -> None:
    """Softmax<axis=1>(x)  ->  Reshape(Softmax<axis=1>(Flatten<axis=1>(x)), Shape(x)); the last axis needs no matrix."""
    x, axis = site.x(), site.node.attributes.get_int("axis", 1)
    dims = rank(x)
    if axis == -1 or (dims is not None and axis == dims - 1):
        site.node.attributes["axis"] = ir.AttrInt64("axis", -1)
        return
    rows = site.op("Flatten", x, axis=axis)
    y = site.op(site.node.op_type, rows, axis=1)
    site.replace(site.reshape_like(y, x))
