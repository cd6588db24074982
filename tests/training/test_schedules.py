"""Schedules: their values at known moments, their spelling, and what is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import GraphoptError
from graphopt.training.schedules import SCHEDULES, GrowingBatch, MultiStep, Schedule, parse


def _rates(schedule: Schedule, steps: int, epochs: int, base: float = 1.0, batch: int = 32) -> list[float]:
    return [schedule.rate(base, at / steps, 1 / steps, epochs, batch) for at in range(steps * epochs)]


@pytest.mark.parametrize(
    ("spelling", "moments"),
    [
        ("constant", {0: 1, 9.9: 1}),
        ("cosine", {0: 1, 5: 0.5, 10: 0}),
        ("cosine{least=0.2}", {0: 1, 5: 0.6, 10: 0.2}),
        ("cosine{warmup=2}", {2: 1, 6: 0.5, 10: 0}),
        ("step{every=3,decay=0.5}", {0: 1, 2.99: 1, 3: 0.5, 6: 0.25}),
        ("multi-step{at=2+5}", {1.9: 1, 2: 0.1, 5: 0.01}),
        ("exponential{decay=0.5}", {0: 1, 1: 0.5, 2: 0.25}),
        ("polynomial", {0: 1, 5: 0.5, 10: 0}),
        ("polynomial{power=2.0}", {5: 0.25}),
    ],
)
def test_values(spelling: str, moments: dict[float, float]) -> None:
    schedule = parse(spelling)
    for moment, expected in moments.items():
        assert schedule.rate(1.0, moment, 0.1, 10, 32) == pytest.approx(expected, abs=1e-12), moment


def test_warm_up_rises_in_a_line_to_the_full_rate() -> None:
    rates = _rates(parse("constant{warmup=2}"), steps=4, epochs=3)
    assert rates[:8] == pytest.approx([k / 8 for k in range(1, 9)])
    assert rates[8:] == [1.0] * 4


def test_the_rate_grows_with_the_batch() -> None:
    """0.1 for 256 samples, as in the paper on large minibatches, is 3.2 for 8192."""
    assert parse("constant{base-batch=256}").rate(0.1, 0, 1, 1, 8192) == pytest.approx(3.2)


def test_like_pytorch() -> None:
    import torch

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    ours = parse("cosine")
    for epoch in range(20):
        assert ours.rate(0.3, epoch, 1, 20, 1) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_the_batch_grows_instead() -> None:
    schedule = parse("growing-batch{every=2,times=3,most=10}")
    assert [schedule.micro_batches(epoch) for epoch in range(7)] == [1, 1, 3, 3, 9, 9, 9]
    assert GrowingBatch(times=1).micro_batches(10**9) == 1


@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.floats(0, 5),
    st.integers(1, 40),
    st.integers(1, 9),
    st.floats(0, 10),
)
def test_rates_stay_between_zero_and_the_base(name: str, warmup: float, epochs: int, steps: int, base: float) -> None:
    schedule = MultiStep(warmup, at=(3, 7)) if name == "multi-step" else SCHEDULES[name](warmup)
    for rate in _rates(schedule, steps, epochs, base):
        assert math.isfinite(rate)
        assert 0 <= rate <= base * (1 + 1e-12)


@pytest.mark.parametrize(
    "spelling", ["constant", "cosine{warmup=5.0}", "step{base-batch=256,every=10,decay=0.2}", "multi-step{at=30+60+80}"]
)
def test_spelling_goes_both_ways(spelling: str) -> None:
    assert str(parse(spelling)) == spelling
    assert parse(str(parse(spelling))) == parse(spelling)


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        ("cosin", "no schedule cosin; did you mean cosine"),
        ("", "cannot read the schedule"),
        ("cosine{", "cannot read the schedule"),
        ("cosine,step", "cannot read the schedule"),
        ("cosine{warm=3}", "has no option warm; did you mean warmup"),
        ("cosine{warmup=soon}", "warmup of schedule cosine is 'soon'; it must be a number"),
        ("cosine{warmup=nan}", "it must be a number"),
        ("cosine{warmup=-1}", "it must be 0 or more epochs"),
        ("step{every=0}", "it must be 1 or more epochs"),
        ("multi-step", "it must be epochs as 30"),
        ("multi-step{at=3;4}", "it must be epochs as 30"),
        ("exponential{decay=0.0}", "it must be a factor above 0"),
        ("polynomial{power=0}", "it must be above 0"),
        ("cosine{least=2}", "it must be a factor from 0 to 1"),
    ],
)
def test_nonsense_is_refused(spelling: str, message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        parse(spelling)
