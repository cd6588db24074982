"""Sparse training: which layers keep how many groups, and when the groups move.

density=0.1,granularity=block:16x1,every=500,prune-fraction=0.3
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graphopt.errors import GraphoptError
from graphopt.graph.state import Role
from graphopt.passes.training.sparse.parameter import sparse_parameters
from graphopt.passes.training.sparse.reallocate import Reallocation, reallocate
from graphopt.training.build import StepModel
from graphopt.training.engine import Engine


@dataclass(frozen=True, slots=True)
class SparseTraining:
    """Options of the pass `sparse-training`, and after how many updates groups move (0: never), and how many of them.

    The threshold is found anew each time, so that a training that goes on from a checkpoint moves the same groups.
    """

    options: Mapping[str, str]
    every: int = 0
    fraction: float = 0.3
    seed: int = 0

    @staticmethod
    def parse(text: str) -> SparseTraining:
        """Read a spelling; an option is `name=value`, and commas stand between them.

        Raises:
            GraphoptError: it is not spelled so, or a number is none.
        """
        pairs = [part.partition("=") for part in text.split(",")]
        if bad := next(("".join(pair) for pair in pairs if not pair[0].strip() or not pair[2].strip()), None):
            raise GraphoptError(f"cannot read the sparse option {bad!r}; write density=0.1,granularity=block:16x1")
        given = {name.strip(): value.strip() for name, _, value in pairs}
        try:
            every = int(given.pop("every", "0"))
            fraction = float(given.pop("prune-fraction", "0.3"))
            seed = int(given.get("seed", "0"))
        except ValueError as error:
            raise GraphoptError(f"a number of the sparse options cannot be read: {error}") from None
        if every < 0:
            raise GraphoptError(f"groups of sparse weights cannot move every {every} updates; give 0 for never")
        Reallocation(fraction)
        return SparseTraining(given, every, fraction, seed)

    def move(self, step_model: StepModel, engine: Engine, step: int) -> None:
        """Move groups if they are to move after update number `step`."""
        parameters = sparse_parameters(step_model.model.graph) if self.every and step % self.every == 0 else []
        if parameters:
            state = engine.state()
            kept = {name for name, each in step_model.roles.items() if each in (Role.OPTIMIZER, Role.GRADIENT)}
            reallocate(parameters, state, sorted(kept), Reallocation(self.fraction, number=step, seed=self.seed))
            engine.load_state(state)
