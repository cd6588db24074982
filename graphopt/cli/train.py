"""`graphopt train`: train a model on data."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli import drawing, options
from graphopt.cli.progress import Training, progress, training
from graphopt.cli.prune import is_onnx
from graphopt.errors import GraphoptError, Interrupted
from graphopt.report.document import Report

if TYPE_CHECKING:
    from graphopt.training.data.dataset import Dataset
    from graphopt.training.session import TrainingSession

EXAMPLES = (
    "graphopt train zoo:lenet5 --data digits --epochs 20 --lr 0.05 --momentum 0.9 -o trained.onnx --svg loss.svg",
    "graphopt train model.onnx --data train.npz --test test.npz --optimizer adamw --lr 1e-3 --schedule cosine",
    "graphopt train model.onnx --data folder/ --checkpoint run1 --resume --metrics run1-metrics -o trained.onnx",
)

DIGITS = "digits"


def command(
    model: options.Model,
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="SOURCE",
            parser=options.filled,
            help="An .npz file or a folder of .npy files with an array for each input, or x and y; or digits, the "
            "handwritten digits that come with graphopt.",
        ),
    ],
    test: Annotated[
        Path | None,
        typer.Option(
            "--test", metavar="SOURCE", parser=options.path, help="Data for an evaluation after each epoch, as --data."
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", metavar="N", min=1, help="Passes over the data.")] = 10,
    batch: Annotated[int, typer.Option("--batch", metavar="N", min=1, help="Samples of one update.")] = 32,
    micro_batches: Annotated[
        int,
        typer.Option(
            "--micro-batches", metavar="N", min=1, help="Parts of a batch that run one after the other, in less memory."
        ),
    ] = 1,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="SPEC",
            help="fp32, fp16 or bf16; fp16{master=false} keeps the parameters in 16 bits too.",
        ),
    ] = "fp32",
    sparse: Annotated[
        str | None,
        typer.Option(
            "--sparse",
            metavar="SPEC",
            help="Train a share of the weights, which moves every N updates: "
            "density=0.1,granularity=block:16x1,every=500.",
        ),
    ] = None,
    loss: Annotated[
        str, typer.Option("--loss", metavar="KIND", help="cross-entropy, mse, l1, bce-with-logits or nll.")
    ] = "cross-entropy",
    output_name: Annotated[
        str | None,
        typer.Option("--loss-output", metavar="NAME", help="The output that the loss compares with the labels."),
    ] = None,
    optimizer: Annotated[
        str,
        typer.Option("--optimizer", metavar="KIND", help="sgd, adagrad, rmsprop, adam, adamw, lars or lamb."),
    ] = "sgd",
    lr: Annotated[float, typer.Option("--lr", metavar="RATE", min=0.0, help="Learning rate.")] = 0.01,
    momentum: Annotated[float | None, typer.Option("--momentum", metavar="SHARE", min=0.0, help="Of sgd.")] = None,
    weight_decay: Annotated[
        float | None, typer.Option("--weight-decay", metavar="RATE", min=0.0, help="Weights shrink by this.")
    ] = None,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule",
            metavar="SPEC",
            help="Learning rate over time: constant, cosine, step{every=30,decay=0.1}, multi-step{at=30+60}, "
            "exponential, polynomial or growing-batch; each takes warmup=EPOCHS and base-batch=N.",
        ),
    ] = "constant",
    freeze: Annotated[
        list[str] | None,
        typer.Option("--freeze", metavar="PATTERN", help="Parameters that stay as they are (conv1*); repeat."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Of the order of the samples.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="OUT.onnx", parser=options.file, help="Where to write the trained model."
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint", metavar="DIR", parser=options.path, help="Write a checkpoint there after each epoch."
        ),
    ] = None,
    checkpoint_every: Annotated[
        int | None,
        typer.Option("--checkpoint-every", metavar="STEPS", min=1, help="And also after every so many steps."),
    ] = None,
    keep: Annotated[
        int, typer.Option("--keep", metavar="N", min=1, help="Checkpoints that stay, the best one besides.")
    ] = 3,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint; it ends with the same bits.")
    ] = False,
    metrics: Annotated[
        Path | None,
        typer.Option(
            "--metrics", metavar="DIR", parser=options.path, help="Write metrics.jsonl and TensorBoard events there."
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", parser=options.file, help="Draw loss and accuracy over the steps."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", metavar="NAME", help="compiled, or onnxruntime, which is the reference.")
    ] = "compiled",
    memory_budget: options.MemoryBudget = None,
    shapes: options.Shapes = None,
    costs: options.Costs = None,
    threads: options.Threads = None,
) -> Report:
    """Train a model and write it as ordinary ONNX, ready for `graphopt compile`.

    Ctrl-C finishes the step, writes a checkpoint and says how to go on.
    """
    _check_paths(model, output, svg, checkpoint, resume)
    began = time.perf_counter()
    with progress("reading the model") as say:
        from graphopt.training.session import TrainingSession

        optional = {"momentum": momentum, "weight_decay": weight_decay}
        session = TrainingSession(
            model,
            loss=loss,
            output=output_name,
            optimizer=optimizer,
            lr=lr,
            batch=batch,
            schedule=schedule,
            freeze=freeze or (),
            micro_batches=micro_batches,
            precision=precision,
            sparse=sparse,
            shapes=options.parse_shapes(shapes),
            engine=engine,
            threads=threads,
            costs=costs,
            memory_budget=memory_budget,
            seed=seed,
            **{name: value for name, value in optional.items() if value is not None},
        )
        say("reading the data")
        training_data, test_data, notes = _data(session, data, test)
    rescue = None if checkpoint is not None else _unused(f"{_stem(model)}.checkpoints")
    with training(epochs, lambda: session.memory) as watch:
        try:
            session.fit(
                training_data,
                epochs,
                test=test_data,
                checkpoint=checkpoint,
                every=checkpoint_every,
                keep=keep,
                resume=resume,
                metrics=metrics,
                rescue=rescue,
                watch=watch,
            )
        except KeyboardInterrupt as error:
            if isinstance(error.__cause__, Interrupted):
                raise error.__cause__ from None
            raise
    if output is not None:
        _export(session, output, rescue)
    total = time.perf_counter() - began
    return _report(session, watch, model, training_data, total, notes, output, svg)


def _report(
    session: TrainingSession,
    watch: Training,
    model: str,
    data: Dataset,
    total: float,
    notes: list[str],
    output: Path | None,
    svg: Path | None,
) -> Report:
    from graphopt.report import training as reporting

    history = session.history
    summary = reporting.Summary(
        model,
        session.engine,
        sum(array.size for array in session.parameters().values()),
        session.batch,
        len(data),
        statistics.median(watch.seconds) if watch.seconds else 0.0,
        total,
        session.memory,
    )
    if svg is not None:
        drawing.write(svg, reporting.svg(f"Training of {model}", history), "--svg")
    blocks = reporting.blocks(history, summary)
    every_note = [*notes, *session.notes]
    blocks += [f"note: {note}" for note in every_note]
    if output is not None:
        drawn = f" The curves are drawn in {svg}." if svg is not None else ""
        blocks.append(f"The trained model is in {output}: graphopt compile {output}.{drawn}")
    elif svg is not None:
        blocks.append(f"The curves are drawn in {svg}.")
    files = {"file": None if output is None else str(output), "svg": None if svg is None else str(svg)}
    return Report({**reporting.document(history, summary), **files, "notes": every_note}, blocks)


def _check_paths(model: str, output: Path | None, svg: Path | None, checkpoint: Path | None, resume: bool) -> None:
    if output is not None:
        options.check_output(output, "-o", is_onnx)
        options.check_apart(output, "-o", Path(model), "is the model itself, whose weights would be lost")
        options.check_apart(output, "-o", svg, "is what --svg names too")
    if svg is not None:
        options.check_output(svg, "--svg", options.is_drawing)
    if resume and checkpoint is None:
        raise GraphoptError("--resume goes on from the checkpoints of a folder; name it with --checkpoint DIR")


def _data(session: TrainingSession, data: str, test: Path | None) -> tuple[Dataset, Dataset | None, list[str]]:
    """The data sets, checked against the model, and notes on what was done to them."""
    tested = None if test is None else session.dataset(test, "--test")
    if data != DIGITS:
        found = session.dataset(Path(data), "--data")
        return found, tested, _left_out(len(found), session)
    from graphopt.models.samples import digits, training_digits
    from graphopt.training.data.dataset import Dataset
    from graphopt.training.data.resize import resize

    signature = session.step_model.signature
    pictures = [port for port in signature.ports if port.name != signature.labels]
    if len(pictures) != 1 or signature.labels is None:
        raise GraphoptError(f"--data digits has one picture and its label, and the model takes {len(pictures)} inputs")
    transform, note = resize((pictures[0].shape or ())[1:], 8)
    name, sets = pictures[0].name, []
    for arrays in (training_digits(), digits()):
        named: dict[str, Any] = dict(zip((name, signature.labels), arrays, strict=True))
        sets.append(Dataset(named, signature, "--data digits", {name: transform}))
    note += f"; {len(sets[0]):,} are trained on"
    if tested is None and session.step_model.original is not None:
        tested = sets[1]
        note += f", and {len(tested)} others are the test set"
    return sets[0], tested, [note, *_left_out(len(sets[0]), session)]


def _left_out(count: int, session: TrainingSession) -> list[str]:
    batch = session.batch
    rest = count % batch
    return [f"each epoch leaves out {rest} samples, others each time, which fill no batch of {batch}"] if rest else []


def _export(session: TrainingSession, output: Path, rescue: Path | None) -> None:
    """Write the trained model; where that fails, what was learned is saved in `rescue`."""
    try:
        session.export(output)
    except GraphoptError as error:
        if rescue is None:
            raise
        from graphopt.training.records.folder import CheckpointFolder

        session.save(CheckpointFolder(rescue).place(session.position))
        raise GraphoptError(f"{error}; what was learned is in {rescue}: --checkpoint {rescue} --resume") from error


def _unused(name: str) -> Path:
    """The first of `name`, `name-2`, ... that does not exist."""
    numbered = (Path(name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(path for path in numbered if not path.exists())


def _stem(model: str) -> str:
    return Path(model.removeprefix("zoo:")).stem
