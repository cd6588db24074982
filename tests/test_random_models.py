"""A sample of the random models; `tests/random_models.py` runs as many as one likes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.random_control import random_graph

SCRIPT = Path(__file__).with_name("random_models.py")
SEED, COUNT = 103, 9

BAD = """
import os, sys, time
sys.path.append({root!r})
from tests import random_models
for what in (os.abort, lambda: time.sleep(60), lambda: 1 / 0):
    random_models.outcome = lambda seed, keep, what=what: what()
    print(random_models.apart(0, 1))
"""


def test_models_are_right_or_refused_in_a_sentence() -> None:
    options = ["--seed", str(SEED), "--count", str(COUNT)]
    done = subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.splitlines()[-1].startswith(f"models of seed {SEED} to {SEED + COUNT - 1} ({COUNT}): ")


def test_a_seed_is_one_model() -> None:
    for seed in range(3):
        first, second = (random_graph(seed).model().SerializeToString() for _ in range(2))
        assert first == second


def test_crashes_and_hangs_are_failures() -> None:
    script = BAD.format(root=str(SCRIPT.parent.parent))
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=120)
    crash, hang, error = done.stdout.splitlines()
    assert crash == "crashed with signal 6"
    assert hang == "took more than 1 s"
    assert error == "ZeroDivisionError: division by zero"
