"""What is said and drawn of a training."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET

import pytest

from graphopt.report.document import Facts, Table, plain
from graphopt.report.training import ROWS, Summary, blocks, document, svg
from graphopt.training.records.history import EpochRecord, History, StepRecord

SUMMARY = Summary("m.onnx", "compiled", 1234, 32, 1437, 0.0012, 5.5, {"parameter": 4936, "arena": 2048})


def _history(epochs: int, steps: int = 4, test: bool = True, first: float = 2.0) -> History:
    history = History()
    for epoch in range(1, epochs + 1):
        loss = math.nan
        for _ in range(steps):
            number = len(history.steps) + 1
            loss = first / number
            history.steps.append(StepRecord(number, epoch, loss, 1 - 1 / number, 0.1))
        score = epoch / epochs if epoch < 3 else 0.5
        tests = (loss * 1.1, score) if test else (math.nan, math.nan)
        history.epochs.append(EpochRecord(epoch, len(history.steps), loss, 0.9, *tests))
    return history


def test_the_table_and_the_facts() -> None:
    table, facts = blocks(_history(2), SUMMARY)
    assert isinstance(table, Table)
    assert table.columns == ("epoch", "steps", "loss", "accuracy", "test loss", "test accuracy")
    assert table.rows[1] == ("2 (best)", "8", "0.2500", "90.00%", "0.2750", "100.00%")
    assert isinstance(facts, Facts)
    assert "m.onnx, 1.23 k parameters that are trained" in plain([facts])
    assert "6.82 KiB: parameter 4.82 KiB, arena 2.00 KiB" in plain([facts])


def test_what_is_not_known_has_no_column() -> None:
    table = blocks(_history(2, test=False), SUMMARY)[0]
    assert isinstance(table, Table)
    assert table.columns == ("epoch", "steps", "loss", "accuracy")


@pytest.mark.parametrize("epochs", [1, ROWS, ROWS + 1, 300])
def test_many_epochs_are_a_short_table_with_the_best_and_the_last(epochs: int) -> None:
    history = _history(epochs)
    table = blocks(history, SUMMARY)[0]
    assert isinstance(table, Table)
    assert len(table.rows) <= ROWS + 2
    shown = [row[0].removesuffix(" (best)") for row in table.rows]
    assert history.best is not None
    assert {str(history.best.epoch), str(epochs)} <= set(shown)


def test_the_document_is_json() -> None:
    found = json.loads(json.dumps(document(_history(2, test=False), SUMMARY), allow_nan=False))
    assert found["epochs"][1]["test_loss"] is None
    assert (found["best_epoch"], found["steps"], found["memory_bytes"]["arena"]) == (2, 8, 2048)


def test_nothing_was_done() -> None:
    assert document(History(), SUMMARY)["best_epoch"] is None
    assert "no step was done" in svg("t", History())
    ET.fromstring(svg("t", History()))


@pytest.mark.parametrize(("steps", "first"), [(4, 2.0), (1, 2.0), (3000, 2.0), (4, 0.0), (4, -3.0), (4, 1e-30)])
def test_all_of_the_picture_is_inside_its_frame(steps: int, first: float) -> None:
    picture = svg("<a & b>", _history(3, steps, first=first))
    root = ET.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    points = [
        tuple(map(float, pair.split(",")))
        for line in root.iter(f"{space}polyline")
        for pair in (line.get("points") or "").split()
    ]
    points += [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in root.iter(f"{space}circle")]
    assert len(points) > 3
    assert all(80 <= x <= 920.1 and 75.9 <= y <= 396.1 for x, y in points)
    assert len(picture) < 100_000


def test_a_loss_that_falls_far_is_on_a_log_scale() -> None:
    far = {text.text for text in ET.fromstring(svg("t", _history(3, 100))).iter("{http://www.w3.org/2000/svg}text")}
    near = {text.text for text in ET.fromstring(svg("t", _history(1, 2))).iter("{http://www.w3.org/2000/svg}text")}
    assert {"0.001", "0.01", "0.1", "1", "10"} <= far
    assert "0.001" not in near
