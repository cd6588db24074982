"""The quality of a change as text, JSON and a plot."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from graphopt.report import quality as reporting
from graphopt.report.document import Table, plain
from graphopt.verify.quality import Quality, compare

SVG = "{http://www.w3.org/2000/svg}"


def quality(labelled: bool) -> Quality:
    generator = np.random.default_rng(0)
    dense = 4 * generator.standard_normal((200, 8))
    labels = dense.argmax(1) if labelled else None
    return compare(dense, dense + generator.standard_normal((200, 8)), labels, energy={"fc": 0.5})


def test_without_labels_only_what_needs_none() -> None:
    (table, meaning) = reporting.blocks(quality(False), "logits", "pruned")
    assert isinstance(table, Table)
    assert table.columns == ("", "dense", "pruned", "change")
    names = [row[0] for row in table.rows]
    assert names[:2] == ["mean top-1 probability", "entropy, nats"]
    assert not {"top-1", "negative log likelihood, nats", "expected calibration error"} & set(names)
    assert "there is no accuracy" in str(meaning)
    assert "8 classes; output logits holds logits" in table.title
    document = reporting.document(quality(False))
    assert document["dense"]["top1"] is None
    assert json.loads(json.dumps(document, allow_nan=False))["energy"] == {"fc": 0.5}


def test_changes_are_differences() -> None:
    found = quality(True)
    text = plain(reporting.blocks(found, "", "pruned"))
    line = next(each for each in text.splitlines() if each.startswith("top-1"))
    assert line.split() == ["top-1", "100.00%", f"{found.changed.top1:.2%}", f"{found.changed.top1 - 1:+.2%}"]
    assert f"worst class ({found.worst_class})" in text


@pytest.mark.parametrize("labelled", [False, True])
def test_the_plot_shows_every_sample_of_both(labelled: bool) -> None:
    tree = ElementTree.fromstring(reporting.svg("a <b> & c", quality(labelled), "pruned"))
    texts = [each.text or "" for each in tree.iter(f"{SVG}text")]
    assert texts[0] == "a <b> & c"
    titles = [each.text or "" for each in tree.iter(f"{SVG}title")]
    shares = [float(title.rpartition(" ")[2].rstrip("%")) for title in titles]
    assert sum(shares) == pytest.approx(400, abs=2)  # two plots of two models
    for bar in tree.iter(f"{SVG}rect"):
        assert float(bar.get("height", 0)) >= 0
