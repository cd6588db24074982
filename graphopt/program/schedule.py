"""When each rank runs, sends and receives: builds the action lists, prints them as a grid, finds deadlocks.

Values that skip stages are forwarded: a value computed in stage 0 and needed in stage 3 is an input and an output of
stages 1 and 2 as well. So ranks talk only to their neighbours, one message per boundary and micro-batch, and a rank
never has to keep a value for a receiver that is several micro-batches behind (as a direct send would require).
Graph inputs are not sent: every rank is given the feeds and takes those that its stage names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graphopt.errors import GraphoptError
from graphopt.program.program import Action, Stage, Verb

Actions = tuple[tuple[Action, ...], ...]

_ACTION = re.compile(r"(?:(\d+)F(\d+)|(\d+)SEND(\d+)>(\d+)|(\d+)RECV(\d+)<(\d+))", re.ASCII)
_EDGE = re.compile(r"(\d+)>(\d+) (\[.*\])", re.ASCII)
_IDLE = "."
_STUCK = "!"


@dataclass(frozen=True, slots=True)
class Boundary:
    """Input and output value names of one stage."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Simulation:
    """Result of executing the action lists with rendezvous sends.

    `steps[t][rank]` is the action of that rank in step t (None: idle); `waiting[rank]` the action it never completed.
    """

    steps: tuple[tuple[Action | None, ...], ...]
    waiting: tuple[Action | None, ...]

    @property
    def deadlocked(self) -> bool:
        """Whether some rank never completes its actions."""
        return any(action is not None for action in self.waiting)


def boundaries(
    makes: Sequence[Iterable[str]], needs: Sequence[Iterable[str]], fed: Iterable[str], wanted: Iterable[str]
) -> tuple[Boundary, ...]:
    """Inputs and outputs of each stage; values that skip stages pass through the stages between.

    Args:
        makes: per stage, the names of the values it computes.
        needs: per stage, the names it reads and does not compute.
        fed: the graph inputs, which every rank is given.
        wanted: the graph outputs.

    Raises:
        GraphoptError: a stage needs a value that no earlier stage computes.
    """
    makes = [tuple(names) for names in makes]
    needs = [tuple(names) for names in needs]
    fed, wanted = set(fed), tuple(wanted)
    crossing: list[tuple[str, ...]] = []
    for stage in range(len(makes)):
        later = {name for names in needs[stage + 1 :] for name in names} - fed
        made_so_far = [*(crossing[-1] if crossing else ()), *makes[stage]]
        crossing.append(tuple(dict.fromkeys(name for name in made_so_far if name in later)))
    result = []
    for stage, (computed, needed) in enumerate(zip(makes, needs, strict=True)):
        received = crossing[stage - 1] if stage else ()
        for name in needed:
            if name not in fed and name not in received:
                raise GraphoptError(f"stage {stage} needs value {name!r}, which no earlier stage computes")
        inputs = dict.fromkeys([*(name for name in needed if name in fed), *received])
        here = {*computed, *(name for name in wanted if name in fed and name in needed)}
        outputs = dict.fromkeys([*(name for name in wanted if name in here), *crossing[stage]])
        result.append(Boundary(tuple(inputs), tuple(outputs)))
    return tuple(result)


def build(stages: Sequence[Stage], fed: Iterable[str], micro_batches: int = 1) -> Actions:
    """The fill-drain schedule: every rank, for each micro-batch in order, receives, runs and sends.

    The values sent from stage s to s + 1 are the outputs of s that are inputs of s + 1 and not graph inputs (`fed`).
    """
    fed = set(fed)
    crossing = []
    for stage, following in zip(stages, stages[1:], strict=False):
        wanted = set(following.inputs) - fed
        crossing.append(tuple(name for name in stage.outputs if name in wanted))
    ranks = []
    for rank in range(len(stages)):
        actions: list[Action] = []
        for micro_batch in range(micro_batches):
            if rank and crossing[rank - 1]:
                actions.append(Action(Verb.RECV, rank, micro_batch, rank - 1, crossing[rank - 1]))
            actions.append(Action(Verb.RUN, rank, micro_batch))
            if rank + 1 < len(stages) and crossing[rank]:
                actions.append(Action(Verb.SEND, rank, micro_batch, rank + 1, crossing[rank]))
        ranks.append(tuple(actions))
    return tuple(ranks)


def simulate(actions: Actions) -> Simulation:
    """Execute the lists in lock-step with rendezvous sends: a send completes only in the same step as its receive.

    Buffers can only help, so a schedule that completes here completes on every transport that keeps messages in order.
    """
    position = [0] * len(actions)
    steps: list[tuple[Action | None, ...]] = []

    def current(rank: int) -> Action | None:
        mine = actions[rank]
        return mine[position[rank]] if position[rank] < len(mine) else None

    while True:
        now = [current(rank) for rank in range(len(actions))]
        done = tuple(action if action is not None and _can_go(action, now) else None for action in now)
        if not any(done):
            return Simulation(tuple(steps), tuple(now))
        steps.append(done)
        for rank, action in enumerate(done):
            position[rank] += action is not None


def deadlock(actions: Actions) -> str | None:
    """None if the schedule always completes; else a sentence on which rank waits for what, and the grid with marks."""
    outcome = simulate(actions)
    if not outcome.deadlocked:
        return None
    step = len(outcome.steps)
    waits = []
    for rank, action in enumerate(outcome.waiting):
        if action is None:
            continue
        other = outcome.waiting[action.peer] if 0 <= action.peer < len(actions) else None
        doing = f"which is at {other}" if other is not None else "which has ended"
        waits.append(f"rank {rank} at {action} waits for rank {action.peer}, {doing}")
    return f"the schedule stops at step {step}: " + "; ".join(waits) + "\n" + render(actions)


def render(actions: Actions) -> str:
    """The rank x step grid, then one line per edge with the names of the values it carries. `parse` reads it back.

        step    0    1         2
        rank 0  0F0  0SEND0>1  .
        rank 1  .    1RECV0<0  1F0
        0>1 ["relu1"]

    An action that can never complete is marked with `!`; the actions after it follow in the next columns.
    """
    outcome = simulate(actions)
    rows = []
    for rank, mine in enumerate(actions):
        cells = [_IDLE if step[rank] is None else str(step[rank]) for step in outcome.steps]
        done = sum(step[rank] is not None for step in outcome.steps)
        cells += [(_STUCK if offset == 0 else "") + str(action) for offset, action in enumerate(mine[done:])]
        rows.append(cells)
    columns = max(map(len, rows), default=0)
    table = [["step", *map(str, range(columns))]]
    table += [[f"rank {rank}", *cells, *[_IDLE] * (columns - len(cells))] for rank, cells in enumerate(rows)]
    widths = [max(len(row[column]) for row in table) for column in range(columns + 1)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    edges = {edge: names for edge, names in sorted(carried(actions).items()) if names}
    lines += [f"{source}>{target} {json.dumps(names)}" for (source, target), names in edges.items()]
    return "\n".join(lines)


def carried(actions: Actions) -> dict[tuple[int, int], tuple[str, ...]]:
    """Per (sending stage, receiving stage) the names of the values that one micro-batch sends."""
    edges: dict[tuple[int, int], tuple[str, ...]] = {}
    for mine in actions:
        for action in mine:
            if action.verb is not Verb.RUN:
                edges.setdefault(_edge(action), action.values)
    return edges


def parse_action(text: str, values: tuple[str, ...] = ()) -> Action:
    """`1F0`, `0SEND0>1` or `1RECV0<0` as an Action. `values` are the names it carries, which the text does not hold."""
    match = _ACTION.fullmatch(text)
    if match is None:
        raise GraphoptError(f"{text!r} is not an action: write 1F0, 0SEND0>1 or 1RECV0<0")
    numbers = [int(group) for group in match.groups() if group is not None]
    if len(numbers) == 2:
        return Action(Verb.RUN, numbers[0], numbers[1])
    verb = Verb.SEND if ">" in text else Verb.RECV
    return Action(verb, numbers[0], numbers[1], numbers[2], values)


def parse(text: str) -> Actions:
    """The action lists of a grid printed by `render`.

    Raises:
        GraphoptError: a line is neither the header, nor a rank in order, nor an edge; or a cell is no action.
    """
    rows: list[list[str]] = []
    edges: dict[tuple[int, int], tuple[str, ...]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        edge = _EDGE.fullmatch(line)
        if edge is not None:
            edges[int(edge[1]), int(edge[2])] = _names(line, edge[3])
        elif line.startswith(f"rank {len(rows)} ") or line == f"rank {len(rows)}":
            rows.append(line.split()[2:])
        elif not line.startswith("step"):
            raise GraphoptError(
                f"{line!r} is not a line of a schedule: rank {len(rows)} or an edge like 0>1 was expected"
            )
    ranks = []
    for cells in rows:
        bare = [parse_action(cell.removeprefix(_STUCK)) for cell in cells if cell != _IDLE]
        ranks.append(tuple(_with_values(action, edges) for action in bare))
    return tuple(ranks)


def _names(line: str, text: str) -> tuple[str, ...]:
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise GraphoptError(f"{line!r} must carry a JSON list of value names")
    return tuple(names)


def _with_values(action: Action, edges: dict[tuple[int, int], tuple[str, ...]]) -> Action:
    if action.verb is Verb.RUN:
        return action
    return Action(action.verb, action.stage, action.micro_batch, action.peer, edges.get(_edge(action), ()))


def _edge(action: Action) -> tuple[int, int]:
    return (action.stage, action.peer) if action.verb is Verb.SEND else (action.peer, action.stage)


def _can_go(action: Action, now: Sequence[Action | None]) -> bool:
    if action.verb is Verb.RUN:
        return True
    if not 0 <= action.peer < len(now):
        return False
    other = now[action.peer]
    return (
        other is not None
        and {action.verb, other.verb} == {Verb.SEND, Verb.RECV}
        and (other.stage, other.peer) == (action.peer, action.stage)
        and other.micro_batch == action.micro_batch
        and other.values == action.values
    )
