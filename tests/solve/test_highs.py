"""HiGHS prints nothing, also not past Python's streams."""

from __future__ import annotations

import subprocess
import sys

CODE = """
from graphopt.solve.highs import quiet
highs = quiet()
one, two = highs.addBinary(obj=1.0), highs.addBinary(obj=2.0)
highs.addConstr(one + two >= 1)
highs.run()
assert highs.getSolution().col_value == [1.0, 0.0]
"""


def test_nothing_is_printed() -> None:
    done = subprocess.run([sys.executable, "-P", "-c", CODE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
