"""The drawing: well formed, one dot per kernel that computes, names escaped, dots where their numbers are."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as tree

from graphopt.report import roofline

SPACE = "{http://www.w3.org/2000/svg}"


def document(*kernels: dict[str, Any]) -> dict[str, Any]:
    peak = {"flops": 1e11, "bandwidth": 1e10}
    return {"model": "<m> & co", "threads": 2, "peak": peak, "kernels": list(kernels)}


def kernel(flops: int, size: int, seconds: float) -> dict[str, Any]:
    return {
        "kernel": "k", "nodes": ["<a>"], "seconds": seconds, "flops": flops, "bytes": size,
        "flops_per_second": flops / seconds, "bound": "memory",
    }  # fmt: skip


def test_kernels_that_compute_are_dots() -> None:
    found = tree.fromstring(roofline.svg(document(kernel(10**8, 10**6, 2e-3), kernel(0, 10**6, 1e-3))))
    assert len(found.findall(f"{SPACE}circle")) == 1
    texts = [each.text or "" for each in found.iter(f"{SPACE}text")]
    assert any("1 kernels without operations" in text for text in texts)
    assert any("<m> & co" in text for text in texts)


def test_a_kernel_at_both_peaks_lies_on_the_ridge() -> None:
    found = tree.fromstring(roofline.svg(document(kernel(10**8, 10**7, 1e-3))))
    (dot,) = found.findall(f"{SPACE}circle")
    (roof,) = found.findall(f"{SPACE}polyline")
    assert roof.attrib["points"].split()[1] == f"{dot.attrib['cx']},{dot.attrib['cy']}"


def test_nothing_to_draw_is_a_drawing() -> None:
    assert tree.fromstring(roofline.svg(document())).findall(f"{SPACE}circle") == []
