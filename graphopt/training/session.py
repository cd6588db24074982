"""`graphopt.TrainingSession`: train a model from Python.

session = graphopt.TrainingSession("model.onnx", loss="cross-entropy", optimizer="sgd", lr=0.05, batch=32)
history = session.fit({"image": images, "labels": labels}, epochs=10)
session.export("trained.onnx")
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import FeedError, GraphoptError, Interrupted
from graphopt.frontend.load import read as read_model
from graphopt.graph.state import Role
from graphopt.training.build import StepModel, build_step, spelled_options
from graphopt.training.compiled import compile_step
from graphopt.training.data.batches import Augment, Batches, LoaderBatches, ShuffledBatches, feeds_of, parts_of
from graphopt.training.data.dataset import Dataset
from graphopt.training.data.sources import read as read_data
from graphopt.training.engine import Array, Engine
from graphopt.training.evaluate import Evaluator
from graphopt.training.fit import Plan, Silence, Watch, train
from graphopt.training.records import checkpoint as files
from graphopt.training.records.export import is_external, trained, write
from graphopt.training.records.folder import CheckpointFolder
from graphopt.training.records.history import History, StepRecord
from graphopt.training.records.metrics import Metrics, check_folder
from graphopt.training.reference import ReferenceEngine
from graphopt.training.schedules import Schedule, parse
from graphopt.training.sparse import SparseTraining
from graphopt.training.trainer import Trainer, check_rate

ENGINES = ("compiled", "onnxruntime")


class TrainingSession:
    """One training: a step model, the engine that runs it, and what has happened so far.

    Attributes:
        step_model: the ONNX model of one step, and the sentences on what was assumed.
        notes: sentences on what was assumed or changed, also by resuming.
    """

    def __init__(
        self,
        model: Any,
        *,
        loss: str = "cross-entropy",
        output: str | None = None,
        optimizer: str = "sgd",
        lr: float = 0.01,
        batch: int = 32,
        schedule: str | Schedule = "constant",
        freeze: Sequence[str] = (),
        micro_batches: int = 1,
        precision: str = "fp32",
        sparse: str | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        example_inputs: Any = None,
        engine: str = "compiled",
        threads: int | None = None,
        costs: str | None = None,
        memory_budget: int | None = None,
        seed: int = 0,
        **optimizer_options: Any,
    ) -> None:
        """Make the step model and open the engine.

        Args:
            model: what `graphopt.load` takes: the inference model; or a finished step model, or a `StepModel`.
            loss: kind of the loss, as the pass `loss` names it, with options of it in braces.
            output: the output that the loss compares with the labels; None lets the pass choose.
            optimizer: kind of the optimizer, as the pass `optimizer` names it: `sgd`, `adamw{beta2=0.99}`.
            lr: base learning rate.
            batch: samples of one update.
            schedule: factor of the rate over time, as `cosine{warmup=5}`.
            freeze: patterns of the names of parameters that stay as they are.
            micro_batches: how many runs make one update, each of an equal part of the batch.
            precision: fp32, fp16 or bf16, with options of the pass `mixed-precision`: `fp16{master=false}`.
            sparse: options of the pass `sparse-training`, and when groups move: `density=0.1,every=500`.
            shapes: static shapes of inputs, beside the batch.
            example_inputs: as in `graphopt.load`, for a torch.nn.Module.
            engine: "compiled", or "onnxruntime", which is the reference.
            threads: of each kernel; None takes one per physical core.
            costs: what algorithms are chosen by, as in `compile`.
            memory_budget: bytes that state and arena may take together; None sets no bound.
            seed: of the order of the samples.
            optimizer_options: further options of the pass `optimizer`: `momentum=0.9`, `weight_decay=1e-4`.

        Raises:
            GraphoptError: the model cannot be trained, or an option is unknown or out of range.
        """
        if engine not in ENGINES:
            raise GraphoptError(f"there is no engine {engine!r}; choose one of {', '.join(ENGINES)}")
        self.seed, self._lr, self._micro_batches = seed, lr, micro_batches
        self._schedule = parse(schedule) if isinstance(schedule, str) else schedule
        self._engine, self._threads, self._costs, self._memory_budget = engine, threads, costs, memory_budget
        if memory_budget is not None and engine != "compiled":
            raise GraphoptError(f"a memory budget bounds compiled programs, not the engine {engine}; leave one out")
        extra = {name.replace("_", "-"): _text(value) for name, value in optimizer_options.items()}
        self._sparse = None if sparse is None else SparseTraining.parse(sparse)
        options = spelled_options(
            batch=batch,
            micro_batches=micro_batches,
            loss=loss,
            optimizer=optimizer,
            precision=precision,
            optimizer_options=extra,
            output=output,
            freeze=tuple(freeze),
            shapes=shapes,
            sparse_options=None if self._sparse is None else self._sparse.options,
        )
        if self._schedule.grows and micro_batches == 1:
            options = replace(options, micro_batches=2)  # of which any number makes an update
        step_model = model if isinstance(model, StepModel) else build_step(model, options, example_inputs)
        self.step_model = step_model
        self.notes = list(step_model.notes)
        self._evaluator: Evaluator | None = None
        check_rate(lr)

    @functools.cached_property
    def _trainer(self) -> Trainer:
        """Opened when it is first needed: data are checked before the step is compiled."""
        return Trainer(
            self.step_model,
            self._open(self.step_model),
            lr=self._lr,
            schedule=self._schedule,
            micro_batches=self._micro_batches,
            settings={"seed": self.seed},
            sparse=self._sparse,
        )

    @property
    def history(self) -> History:
        """Steps and epochs so far."""
        return self._trainer.history

    @property
    def position(self) -> files.Position:
        """Where the training is."""
        return self._trainer.position

    @property
    def engine(self) -> str:
        """The name of the engine."""
        return self._engine

    @property
    def batch(self) -> int:
        """Samples of one update, at the beginning."""
        return self.step_model.signature.batch * self._micro_batches

    def open(self) -> None:
        """Compile the step now, and not when it is first needed."""
        assert self._trainer is not None

    def parameters(self) -> dict[str, Array]:
        """Copies of the parameters that are trained, by name."""
        return self._trainer.learned(Role.PARAMETER)

    @property
    def memory(self) -> Mapping[str, int]:
        """Bytes by kind, as far as the engine knows them."""
        return self._trainer.engine.memory

    def state(self) -> dict[str, Array]:
        """Copies of all state values by name."""
        return self._trainer.state()

    def dataset(self, data: Mapping[str, Array] | str | Path, where: str = "the data") -> Dataset:
        """Arrays by input name, an .npz file, or a folder of .npy files, checked against the model.

        Raises:
            FeedError: they cannot be read or do not fit.
        """
        if isinstance(data, str | Path):
            return Dataset(read_data(Path(data), where), self.step_model.signature, str(data))
        arrays = {name: np.asarray(array) for name, array in data.items()}
        return Dataset(arrays, self.step_model.signature, where)

    def step(self, batch: Any) -> StepRecord:
        """One update on a batch: arrays or tensors by input name, or the inputs in order and the labels last.

        With micro-batches the batch holds all of them, one after the other on axis 0.

        Raises:
            GraphoptError: the batch does not fit, or the loss is no number.
        """
        trainer, signature = self._trainer, self.step_model.signature
        parts = parts_of(batch, trainer.micro_batches) if trainer.micro_batches > 1 else [batch]
        group = []
        for part in parts:
            feeds = feeds_of(part, signature, "the batch")
            if feeds is None:
                raise FeedError(f"the batch is shorter than {signature.batch} samples; give as many")
            group.append(feeds)
        position = trainer.position
        rate = trainer.rate(position.epoch, None, position.epoch + 1)
        loss, accuracy = trainer.update(group, rate)
        if not np.isfinite(loss):
            raise GraphoptError(f"the loss is {loss} in step {position.step + 1}; try a lower learning rate")
        trainer.position = files.Position(position.step + 1, position.epoch, position.batch + len(group))
        record = StepRecord(position.step + 1, position.epoch + 1, loss, accuracy, rate)
        trainer.history.steps.append(record)
        return record

    def fit(
        self,
        data: Mapping[str, Array] | str | Path | Dataset | Iterable[Any],
        epochs: int,
        *,
        test: Mapping[str, Array] | str | Path | Dataset | None = None,
        augment: Augment | None = None,
        checkpoint: str | Path | None = None,
        every: int | None = None,
        keep: int = 3,
        resume: bool = False,
        metrics: str | Path | None = None,
        rescue: str | Path | None = None,
        watch: Watch | None = None,
    ) -> History:
        """Train until `epochs` epochs are done, those of earlier calls and of a resumed training included.

        Args:
            data: as in `dataset`, or an iterable of batches, such as a torch DataLoader.
            epochs: of the whole training.
            test: data for an evaluation after each epoch.
            augment: changes a batch; not for iterables.
            checkpoint: a folder of checkpoints, written after each epoch.
            every: updates between further checkpoints.
            keep: how many of the last checkpoints stay.
            resume: go on from the last checkpoint of the folder, if there is one.
            metrics: a folder for `metrics.jsonl` and TensorBoard's events.
            rescue: a folder for a checkpoint if the training is interrupted and `checkpoint` is None.
            watch: who looks on.

        Raises:
            GraphoptError: data, files or options do not fit, or the loss is no number.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the step and a checkpoint; an `Interrupted` is its cause.
        """
        if epochs < 1:
            raise GraphoptError(f"epochs is {epochs}; give 1 or more")
        if every is not None and every < 1:
            raise GraphoptError(f"every is {every}; give 1 step or more")
        batches = self._batches(data, augment)
        tested = None if test is None else test if isinstance(test, Dataset) else self.dataset(test, "the test data")
        folder = None if checkpoint is None else CheckpointFolder(Path(checkpoint), keep)
        saved = None if rescue is None else CheckpointFolder(Path(rescue), keep)
        if folder is not None:
            self._prepare(folder, resume)
        if metrics is not None:
            check_folder(Path(metrics), resume)
        watch = watch or Silence()
        evaluator = None if tested is None else self._open_evaluator()
        watch.say("compiling the step" if self._engine == "compiled" else "opening the step")
        self._trainer.settings["data"] = dict(batches.description)
        resumed = self._resume(folder) if folder is not None and resume else None
        record = None if metrics is None else Metrics(Path(metrics), resumed)

        def evaluate(state: Mapping[str, Array], say: Any) -> tuple[float, float]:
            assert evaluator is not None
            assert tested is not None
            return evaluator(state, tested, say)

        plan = Plan(epochs, None if tested is None else evaluate, folder, every, saved, record)
        try:
            train(self._trainer, batches, plan, watch)
        except Interrupted as error:
            raise KeyboardInterrupt(str(error)) from error
        finally:
            if record is not None:
                record.close()
        return self.history

    def evaluate(self, data: Mapping[str, Array] | str | Path | Dataset) -> tuple[float, float]:
        """Mean loss and accuracy of the inference model with the parameters of now; NaN for what is not known.

        Raises:
            GraphoptError: the data do not fit, or there is no inference model.
        """
        dataset = data if isinstance(data, Dataset) else self.dataset(data)
        return self._open_evaluator()(self._trainer.learned(), dataset)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint.

        Raises:
            GraphoptError: it cannot be written.
        """
        files.save(Path(path), self._trainer.checkpoint())
        self._trainer.restore_from(Path(path))

    def load(self, path: str | Path) -> None:
        """Go on from a checkpoint.

        Raises:
            GraphoptError: it is damaged or of another training.
        """
        self.notes += self._trainer.resume(Path(path))

    def export(self, path: str | Path) -> onnx.ModelProto:
        """Write the user's model with the trained parameters and statistics; returns it.

        A step model that was given as such is written as one, which begins with the state of now.

        Raises:
            GraphoptError: it cannot be written.
        """
        original, folder = self.step_model.original, None
        if isinstance(original, Path):
            original, folder = read_model(original)
        if original is None:
            original = self.step_model.model
        model = ir.to_proto(original) if isinstance(original, ir.Model) else original
        state = self._trainer.learned() if self.step_model.original is not None else self.state()
        external = is_external(model)
        made = trained(model, state, folder)
        write(made, Path(path), external=external)
        return made

    def _open(self, step_model: StepModel) -> Engine:
        if self._engine == "onnxruntime":
            return ReferenceEngine(step_model.model, self._threads)
        roles = {name: str(each) for name, each in step_model.roles.items()}
        return compile_step(step_model.model, roles, self._threads, self._costs, self._memory_budget)

    def _batches(self, data: Any, augment: Augment | None) -> Batches:
        if isinstance(data, Mapping | str | Path):
            data = self.dataset(data)
        if isinstance(data, Dataset):
            return ShuffledBatches(data, self.step_model.signature.batch, self.seed, augment)
        if augment is not None:
            raise GraphoptError("augment is for arrays; let the loader change its batches itself")
        return LoaderBatches(data, self.step_model.signature)

    def _prepare(self, folder: CheckpointFolder, resume: bool) -> None:
        if folder.files() and not resume:
            raise GraphoptError(
                f"{folder.path} holds checkpoints of an earlier training; give --resume to go on with it, or name "
                "another folder"
            )
        folder.prepare()

    def _resume(self, folder: CheckpointFolder) -> files.Position:
        found = folder.files()
        if found:
            self.notes += self._trainer.resume(found[-1])
        else:
            self.notes.append(f"{folder.path} holds no checkpoint: the training begins at step 0")
        return self._trainer.position

    def _open_evaluator(self) -> Evaluator:
        if self._evaluator is None:
            step = self.step_model
            if step.original is None or step.output is None:
                raise GraphoptError("a step model has no scores to evaluate; give the model that it is made of")
            limits = step.signature.ranges.get(step.signature.labels or "")
            self._evaluator = Evaluator(
                step.original,
                step.learned,
                output=step.output,
                loss=step.kind,
                labels=step.signature.labels,
                ignored=None if limits is None else limits.ignored,
                batch=step.signature.batch,
                threads=self._threads,
            )
        return self._evaluator


def _text(value: object) -> str:
    """An option of a pass, spelled."""
    return str(value).lower() if isinstance(value, bool) else str(value)
