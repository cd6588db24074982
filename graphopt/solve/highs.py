"""HiGHS without a word: its Python class prints a banner when it is made, into the middle of what a command prints."""

from __future__ import annotations

from typing import Any


def quiet() -> Any:
    """A solver that prints nothing and uses one thread, so that the answer is the same on every machine."""
    import highspy

    class Quiet(highspy.Highs):  # type: ignore[misc]
        """Made like its base class, but for the callbacks, whose registration prints the banner."""

        def __init__(self) -> None:
            super(highspy.Highs, self).__init__()
            self.callbacks: list[Any] = []
            self.silent()

    highs = Quiet()
    highs.setOptionValue("threads", 1)
    return highs
