"""A training from Python: it learns, resumes bit by bit, and no failure loses what was learned."""

from __future__ import annotations

import math
import re
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import graphopt
from graphopt.errors import FeedError, GraphoptError, Interrupted
from graphopt.training.build import from_step_model
from graphopt.training.data.dataset import Array
from graphopt.training.fit import Silence
from graphopt.training.records.history import StepRecord
from tests.helpers import step_models

TRAIN, TEST = step_models.digits_data()
SMALL = {name: each[:200] for name, each in TRAIN.items()}


def _session(**options: Any) -> graphopt.TrainingSession:
    settings = {"engine": "onnxruntime", "lr": 0.1, "threads": 1, **options}
    return graphopt.TrainingSession(step_models.digits_step(), **settings)


def _equal(a: graphopt.TrainingSession, b: graphopt.TrainingSession) -> bool:
    left, right = a.state(), b.state()
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_it_learns_and_the_exported_model_knows(tmp_path: Path) -> None:
    session = _session(schedule="cosine{warmup=1}")
    history = session.fit(TRAIN, 6, test=TEST)
    assert history.epochs[-1].test_accuracy > 0.93
    assert history.epochs[-1].accuracy > history.epochs[0].accuracy
    session.export(tmp_path / "trained.onnx")
    (scores,) = onnxruntime.InferenceSession(tmp_path / "trained.onnx").run(None, {"image": TEST["image"]})
    assert float((scores.argmax(1) == TEST["labels"]).mean()) == pytest.approx(history.epochs[-1].test_accuracy)
    onnx.checker.check_model(onnx.load(tmp_path / "trained.onnx"), full_check=True)


def test_the_losses_are_pytorch_s() -> None:
    """The same batches, the same updates: momentum 0.9 on the weights, none on the bias."""
    session = _session(seed=3)
    weight, bias = (torch.zeros(shape, requires_grad=True) for shape in ((64, 10), (10,)))
    optimizer = torch.optim.SGD([{"params": [weight], "momentum": 0.9}, {"params": [bias]}], lr=0.1)
    losses = []

    def watched(feeds: dict[str, Array], _: np.random.Generator) -> dict[str, Array]:
        scores = torch.from_numpy(feeds["image"]).reshape(-1, 64) @ weight + bias
        loss = torch.nn.functional.cross_entropy(scores, torch.from_numpy(feeds["labels"]))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(float(loss.detach()))
        return feeds

    history = session.fit(SMALL, 5, augment=watched)
    assert len(losses) == len(history.steps) == 30
    np.testing.assert_allclose([step.loss for step in history.steps], losses, rtol=1e-4)


def test_two_calls_of_fit_are_one() -> None:
    whole, parts = _session(), _session()
    whole.fit(SMALL, 4)
    for epochs in (1, 3, 4):
        parts.fit(SMALL, epochs)
    assert _equal(whole, parts)
    assert whole.history == parts.history or repr(whole.history) == repr(parts.history)


@pytest.mark.parametrize("every", [None, 1, 4])
def test_a_resumed_training_ends_with_the_same_bits(every: int | None, tmp_path: Path) -> None:
    options = {"schedule": "cosine{warmup=1}", "seed": 9}
    whole = _session(**options)
    whole.fit(SMALL, 4, test=TEST, checkpoint=tmp_path / "whole", every=every)
    for steps in (9, 13, 99):  # each time a new process would begin
        part = _session(**options)
        try:
            part.fit(SMALL, 4, test=TEST, checkpoint=tmp_path / "parts", every=every, resume=True, watch=_Dies(steps))
        except _DeathError:
            continue
        assert _equal(whole, part)
        assert repr(whole.history) == repr(part.history)
    names = sorted(each.name for each in (tmp_path / "whole").iterdir())
    assert names == sorted(each.name for each in (tmp_path / "parts").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


class _DeathError(Exception):
    """Nobody catches it: what is left is what a killed process leaves."""


class _Dies(Silence):
    """Ends the training when so many steps are done."""

    def __init__(self, steps: int) -> None:
        self._steps = steps

    def step(self, record: StepRecord, seconds: float) -> None:
        if record.step == self._steps:
            raise _DeathError


def test_the_last_ones_and_the_best_are_kept(tmp_path: Path) -> None:
    session = _session()
    session.fit(SMALL, 5, checkpoint=tmp_path / "run", keep=2)
    names = {each.name for each in (tmp_path / "run").iterdir()}
    assert names == {"best.safetensors", "step-0000000024.safetensors", "step-0000000030.safetensors"}
    again = _session()
    with pytest.raises(GraphoptError, match="holds checkpoints of an earlier training; give --resume"):
        again.fit(SMALL, 6, checkpoint=tmp_path / "run")


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({"seed": 1}, SMALL, "was begun with --seed 0, and now it is 1; give the same"),
        ({}, {name: each[:199] for name, each in SMALL.items()}, "was begun with the data .*200.*now it is .*199"),
    ],
)
def test_other_batches_are_refused(options: dict[str, Any], data: Any, message: str, tmp_path: Path) -> None:
    _session().fit(SMALL, 1, checkpoint=tmp_path / "run")
    with pytest.raises(GraphoptError, match=message):
        _session(**options).fit(data, 2, checkpoint=tmp_path / "run", resume=True)


def test_another_rate_goes_on_with_a_note(tmp_path: Path) -> None:
    _session().fit(SMALL, 1, checkpoint=tmp_path / "run")
    slower = _session(lr=0.01)
    slower.fit(SMALL, 2, checkpoint=tmp_path / "run", resume=True)
    assert slower.notes == ["lr is 0.01 from here on; the training began with 0.1"]


def test_another_engine_goes_on_with_a_note(tmp_path: Path) -> None:
    """Its sums are in another order, so the bits are no longer those of one training."""
    _session().fit(SMALL, 1, checkpoint=tmp_path / "run")
    other = _session(threads=2)
    other.fit(SMALL, 2, checkpoint=tmp_path / "run", resume=True)
    assert re.fullmatch(r"engine is onnxruntime \S+ on 2 threads from here on; .* 1 threads", other.notes[0])


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    _session().save(tmp_path / "c.safetensors")
    other = graphopt.TrainingSession(step_models.linear(), engine="onnxruntime")
    with pytest.raises(GraphoptError, match="checkpoint of another model"):
        other.load(tmp_path / "c.safetensors")


def test_a_folder_without_checkpoints_begins_anew(tmp_path: Path) -> None:
    session = _session()
    session.fit(SMALL, 1, checkpoint=tmp_path / "run", resume=True)
    assert session.notes == [f"{tmp_path / 'run'} holds no checkpoint: the training begins at step 0"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_finishes_the_step_and_saves(number: signal.Signals, tmp_path: Path) -> None:
    class Interrupts(Silence):
        def step(self, record: StepRecord, seconds: float) -> None:
            if record.step == 8:
                signal.raise_signal(number)

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    session = _session()
    with pytest.raises(KeyboardInterrupt, match="after step 8 .epoch 2.: everything is saved; go on with") as caught:
        session.fit(SMALL, 3, checkpoint=tmp_path / "run", watch=Interrupts())
    assert isinstance(caught.value.__cause__, Interrupted)
    assert {each: signal.getsignal(each) for each in before} == before
    whole, rest = _session(), _session()
    whole.fit(SMALL, 3)
    rest.fit(SMALL, 3, checkpoint=tmp_path / "run", resume=True)
    assert len(rest.history.steps) == 18
    assert _equal(whole, rest)


def test_without_a_folder_an_interrupt_saves_where_it_is_told(tmp_path: Path) -> None:
    class Interrupts(Silence):
        def step(self, record: StepRecord, seconds: float) -> None:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="--checkpoint .*rescue --resume"):
        _session().fit(SMALL, 2, rescue=tmp_path / "rescue", watch=Interrupts())
    assert len(list((tmp_path / "rescue").iterdir())) == 1
    with pytest.raises(KeyboardInterrupt, match="the session holds the state"):
        _session().fit(SMALL, 2, watch=Interrupts())


@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background"])
def test_a_second_interrupt_acts_at_once(before: Any, request: pytest.FixtureRequest) -> None:
    old = signal.signal(signal.SIGINT, before)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, old))

    class Impatient(Silence):
        def step(self, record: StepRecord, seconds: float) -> None:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        _session().fit(SMALL, 2, watch=Impatient())
    assert caught.value.__cause__ is None


def test_in_another_thread_signals_are_left_alone() -> None:
    session = _session()
    thread = threading.Thread(target=lambda: session.fit(SMALL, 1))
    thread.start()
    thread.join()
    assert len(session.history.steps) == 6


def test_a_loss_that_is_no_number_names_its_origin_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Poisons(Silence):
        """After the first epoch the rate explodes."""

        def begin(self, epoch: int, done: int, steps: int | None) -> None:
            session._trainer.lr = 0.1 if epoch == 1 else 1e38

    session = _session()
    with pytest.raises(
        GraphoptError, match=r"the loss is (inf|nan) in step \d+ \(epoch 2\): node \w+ \(\w+\) made"
    ) as caught:
        session.fit(SMALL, 3, checkpoint=tmp_path / "run", watch=Poisons())
    assert "try a lower learning rate; the last good checkpoint is" in str(caught.value)
    assert "step-0000000006.safetensors" in str(caught.value)
    assert session.position.step == 6  # back where all was well
    assert all(np.isfinite(each).all() for each in session.state().values())
    session._trainer.lr = 0.1
    session.fit(SMALL, 2)
    assert math.isfinite(session.history.epochs[-1].loss)


def test_a_state_that_overflows_long_before_is_traced_to_its_step(tmp_path: Path) -> None:
    """The loss stays a number: nothing of this step reads the statistic."""
    text = """
    m (float[4,3] x, float[4,1] y, float lr, float[3,1] w, float[3,1] seen)
        => (float loss, float[3,1] w_next, float[3,1] seen_next)
    {
        p = MatMul (x, w)
        d = Sub (p, y)
        q = Mul (d, d)
        loss = ReduceMean <keepdims = 0> (q)
        u = Mul (w, lr)
        w_next = Sub (w, u)
        many = Constant <value_float = 1e13> ()
        seen_next = Mul (seen, many)
    }
    """
    ones = np.ones((3, 1), np.float32)
    model = step_models.step_model(text, {"w": ("parameter", "w_next", ones), "seen": ("statistic", "seen_next", ones)})
    session = graphopt.TrainingSession(from_step_model(model), engine="onnxruntime", lr=0.1)
    data = {"x": np.ones((40, 3), np.float32), "y": np.ones((40, 1), np.float32)}
    with pytest.raises(
        GraphoptError, match=r"no finite number in step 10 .epoch 1.: node mul7 .Mul. .* in step 3; try"
    ):
        session.fit(data, 1)


def test_bad_data_are_named_as_the_origin() -> None:
    bad = {**SMALL, "image": SMALL["image"].copy()}
    bad["image"][17, 0, 3, 3] = np.nan
    with pytest.raises(GraphoptError, match=r"the loss is nan in step \d \(epoch 1\): input image holds NaN"):
        _session().fit(bad, 1)


def test_parameters_that_overflow_in_the_last_step_are_not_saved(tmp_path: Path) -> None:
    class Explodes(Silence):
        def step(self, record: StepRecord, seconds: float) -> None:
            if record.step == 5:
                session._trainer.lr = math.inf

    session = _session()
    with pytest.raises(GraphoptError, match=r"a parameter is no finite number in step 6 \(epoch 1\)"):
        session.fit(SMALL, 2, checkpoint=tmp_path / "run", watch=Explodes())
    assert list((tmp_path / "run").iterdir()) == []


def test_a_full_disk_ends_the_training_and_keeps_the_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from graphopt.training.records import checkpoint as files

    session, real = _session(), files.write_file

    def full(path: Path, *pieces: Any) -> None:
        if "0000000012" in path.name:
            raise OSError(28, "No space left on device")
        real(path, *pieces)

    monkeypatch.setattr(files, "write_file", full)
    with pytest.raises(GraphoptError, match="No space left on device"):
        session.fit(SMALL, 3, checkpoint=tmp_path / "run")
    assert sorted(each.name for each in (tmp_path / "run").iterdir()) == [
        "best.safetensors",
        "step-0000000006.safetensors",
    ]


def test_a_torch_loader_trains() -> None:
    tensors = torch.utils.data.TensorDataset(*(torch.from_numpy(SMALL[name]) for name in ("image", "labels")))
    session, arrays = _session(), _session()
    session.fit(torch.utils.data.DataLoader(tensors, batch_size=32), 2, test=TEST)
    assert len(session.history.steps) == 12
    for start in range(0, 192, 32):
        record = arrays.step({name: each[start : start + 32] for name, each in SMALL.items()})
    assert record.loss == session.history.steps[5].loss


def test_step_checks_its_batch() -> None:
    session = _session()
    with pytest.raises(FeedError, match="the batch is shorter than 32 samples"):
        session.step((SMALL["image"][:9], SMALL["labels"][:9]))
    with pytest.raises(FeedError, match="the batch: 'labels' holds 10 in sample 0"):
        session.step((SMALL["image"][:32], np.full(32, 10)))
    assert session.position.step == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "gpu"}, "no engine 'gpu'; choose one of compiled, onnxruntime"),
        ({"lr": math.nan}, "the learning rate is nan"),
        ({"lr": -1.0}, "the learning rate is -1"),
        ({"batch": 0}, "batch is 0; give 1 or more"),
        ({"batch": 32, "micro_batches": 3}, "a batch of 32 has no 3 equal parts"),
        ({"schedule": "cosin"}, "did you mean cosine"),
    ],
)
def test_options_of_nonsense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphoptError, match=message):
        _session(**options)


def test_a_step_model_has_nothing_to_evaluate() -> None:
    session = graphopt.TrainingSession(step_models.digits_step(original=False), engine="onnxruntime")
    with pytest.raises(GraphoptError, match="a step model has no scores to evaluate"):
        session.evaluate(TEST)


def test_evaluation_is_that_of_the_history() -> None:
    session = _session()
    history = session.fit(SMALL, 1, test=TEST)
    assert session.evaluate(TEST) == (history.epochs[-1].test_loss, history.epochs[-1].test_accuracy)


def test_a_step_model_goes_on_from_its_export(tmp_path: Path) -> None:
    first = graphopt.TrainingSession(step_models.digits_step(original=False), engine="onnxruntime", lr=0.1)
    first.fit(SMALL, 1)
    first.export(tmp_path / "step.onnx")
    second = graphopt.TrainingSession(tmp_path / "step.onnx", engine="onnxruntime", lr=0.1)
    assert _equal(first, second)
