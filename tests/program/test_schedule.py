from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import GraphoptError
from graphopt.program import schedule
from graphopt.program.program import Action, Stage, Verb


def stage(index: int, inputs: str, outputs: str) -> Stage:
    return Stage(index, (), tuple(inputs.split()), tuple(outputs.split()), (), 0, 0)


THREE = (stage(0, "x", "a s"), stage(1, "a s", "s b"), stage(2, "x b s", "y"))


GRID = """\
step    0    1         2    3         4         5    6         7
rank 0  0F0  0SEND0>1  0F1  .         0SEND1>1  .    .         .
rank 1  .    1RECV0<0  1F0  1SEND0>2  1RECV1<0  1F1  1SEND1>2  .
rank 2  .    .         .    2RECV0<1  2F0       .    2RECV1<1  2F1
0>1 ["a", "s"]
1>2 ["s", "b"]"""


def test_fill_drain_in_text() -> None:
    assert schedule.render(schedule.build(THREE, ["x"], 2)) == GRID


def test_graph_inputs_are_not_sent_and_skips_are_forwarded() -> None:
    actions = schedule.build(THREE, ["x"], 1)
    assert schedule.carried(actions) == {(0, 1): ("a", "s"), (1, 2): ("s", "b")}


def test_one_rank_only_runs() -> None:
    assert schedule.build((stage(0, "x", "y"),), ["x"], 3) == (tuple(Action(Verb.RUN, 0, m) for m in range(3)),)


def test_boundaries_without_values_send_nothing() -> None:
    actions = schedule.build((stage(0, "x", "y"), stage(1, "x", "z")), ["x"], 2)
    assert all(action.verb is Verb.RUN for rank in actions for action in rank)
    assert not schedule.simulate(actions).deadlocked


def test_boundaries_carry_values_through_the_stages_between() -> None:
    found = schedule.boundaries(
        makes=[["a", "s"], ["b"], ["c"], ["y", "z"]],
        needs=[["x"], ["a"], ["b", "x"], ["c", "s", "b"]],
        fed=["x"],
        wanted=["y", "b"],
    )
    assert [(item.inputs, item.outputs) for item in found] == [
        (("x",), ("a", "s")),
        (("a", "s"), ("b", "s")),
        (("x", "s", "b"), ("s", "b", "c")),
        (("s", "b", "c"), ("y",)),
    ]


def test_a_value_that_comes_from_nowhere() -> None:
    with pytest.raises(GraphoptError, match="stage 1 needs value 'q', which no earlier stage computes"):
        schedule.boundaries([["a"], ["b"]], [[], ["q"]], [], ["b"])


names = st.text(min_size=1, max_size=5)


@given(st.integers(1, 5), st.integers(1, 5), st.lists(names, min_size=5, max_size=5, unique=True))
def test_what_is_printed_parses_back(stages: int, micro_batches: int, values: list[str]) -> None:
    made = []
    for index in range(stages):
        inputs = (values[index - 1],) if index else ()
        made.append(Stage(index, (), inputs, (values[index],), (), 0, 0))
    actions = schedule.build(made, [], micro_batches)
    assert schedule.deadlock(actions) is None
    assert schedule.parse(schedule.render(actions)) == actions
    for action in (action for rank in actions for action in rank):
        assert schedule.parse_action(str(action), action.values) == action


CROSSED = (
    (Action(Verb.RUN, 0, 0), Action(Verb.SEND, 0, 0, 1, ("a",)), Action(Verb.RECV, 0, 0, 1, ("b",))),
    (Action(Verb.SEND, 1, 0, 0, ("b",)), Action(Verb.RECV, 1, 0, 0, ("a",)), Action(Verb.RUN, 1, 0)),
)


def test_a_deadlock_is_told_with_the_place_marked() -> None:
    report = schedule.deadlock(CROSSED)
    assert report is not None
    assert report.splitlines() == [
        "the schedule stops at step 1: rank 0 at 0SEND0>1 waits for rank 1, which is at 1SEND0>0; "
        "rank 1 at 1SEND0>0 waits for rank 0, which is at 0SEND0>1",
        "step    0    1          2         3",
        "rank 0  0F0  !0SEND0>1  0RECV0<1  .",
        "rank 1  .    !1SEND0>0  1RECV0<0  1F0",
        '0>1 ["a"]',
        '1>0 ["b"]',
    ]
    assert schedule.parse(report.partition("\n")[2]) == CROSSED


@pytest.mark.parametrize(
    "second",
    [
        (),
        (Action(Verb.RECV, 1, 1, 0, ("a",)),),
        (Action(Verb.RECV, 1, 0, 0, ("b",)),),
        (Action(Verb.RECV, 1, 0, 2, ("a",)),),
        (Action(Verb.RUN, 1, 0),),
    ],
)
def test_a_send_without_its_receive_is_a_deadlock(second: tuple[Action, ...]) -> None:
    report = schedule.deadlock(((Action(Verb.SEND, 0, 0, 1, ("a",)),), second))
    assert report is not None
    assert "rank 0 at 0SEND0>1 waits for rank 1" in report


def test_a_peer_that_does_not_exist_is_a_deadlock() -> None:
    assert schedule.deadlock(((Action(Verb.SEND, 0, 0, 5, ("a",)),),)) is not None


@pytest.mark.parametrize("text", ["", "F0", "1F", "1G0", "0SEND0", "0SEND0<1", "0RECV0>1", "1F0 ", "-1F0", "¹F0"])
def test_what_is_no_action(text: str) -> None:
    with pytest.raises(GraphoptError, match="is not an action"):
        schedule.parse_action(text)


@pytest.mark.parametrize(
    "text", ["rank 1  0F0", "hello", 'rank 0  0F0\n0>1 ["a"', "rank 0  0F0\n0>1 [1]", "rank 0  0F0  x", "rank 0  ?"]
)
def test_what_is_no_grid(text: str) -> None:
    with pytest.raises(GraphoptError):
        schedule.parse(text)
