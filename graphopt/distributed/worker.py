"""One rank of a distributed program: `python -m graphopt.distributed.worker MODEL.gopt --input x=x.npy --output out`.

torchrun or `graphopt.distributed.launch` starts one such process per stage, with RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT in the environment. Every rank is given all inputs and takes those its stage reads; the rank that computes
an output writes its file.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.artifact import Artifact, open_artifact
from graphopt.distributed.control import Reporter, Step, end_with
from graphopt.distributed.watch import LinkError, Store, Watch
from graphopt.errors import FeedError, GraphoptError, RankError
from graphopt.program.program import Program, Verb
from graphopt.program.weights import numpy_dtype
from graphopt.runtime import feeds, files
from graphopt.runtime.devices import device, host
from graphopt.runtime.session import fill, own

DEFAULT_LIMIT = 60.0
"""Seconds without a sign of life after which a rank counts as lost."""

_START_LIMIT = 120.0
_OPERATION_LIMIT = timedelta(days=7)  # the watch decides whether a peer lives, not the transport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one rank; the exit code is 0 if this rank did all its actions and all others did theirs."""
    options = _parser().parse_args(arguments)
    if options.launcher is not None:
        end_with(options.launcher)
    try:
        _run(options, Reporter(options.line))
    except GraphoptError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m graphopt.distributed.worker", description="Run one rank of an artifact."
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--input", action="append", default=[], metavar="NAME=FILE", help="an input as .npy; repeat")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where NAME.npy goes per output")
    parser.add_argument("--timeout", type=float, default=DEFAULT_LIMIT, help="seconds until a silent rank is lost")
    parser.add_argument("--threads", type=int, default=None, help="threads of this rank")
    parser.add_argument("--trace", action="store_true", help="name every action on stderr as it starts")
    parser.add_argument("--launcher", type=int, metavar="PID", help="end when this parent process ends")
    parser.add_argument(
        "--line", type=int, metavar="FD", help="a pipe to the launcher, see graphopt.distributed.control"
    )
    return parser


def _run(options: argparse.Namespace, reporter: Reporter) -> None:
    # Import torch first: it must be loaded before tvm_ffi in a process that uses both.
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    if options.timeout <= 0:
        raise RankError(f"--timeout {options.timeout} is not possible: give a number of seconds above 0")
    reporter.report(Step.MEETING)
    start_limit = max(options.timeout, _START_LIMIT)
    try:
        store, rank, ranks = next(rendezvous("env://", timeout=timedelta(seconds=start_limit)))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise RankError(f"the ranks did not find each other: {reason}; start them with torchrun") from error
    watch = Watch(store, rank, ranks, options.timeout, start_limit, lambda: reporter.report(Step.RUNNING))
    try:
        artifact = open_artifact(options.artifact)
        _agree(store, artifact, rank, ranks)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=_OPERATION_LIMIT)
        outputs = _execute(artifact, options, rank, watch)
        watch.doing = "writing its outputs"
        files.write(options.output, outputs)
    except Exception as error:
        if isinstance(error, LinkError):
            # If the watch finds out which rank failed first, it ends this process here.
            time.sleep(min(options.timeout, 5.0))
        reason = " ".join(str(error).split())
        watch.fail(reason)
        reporter.report(Step.ENDING)
        if isinstance(error, GraphoptError):
            raise
        raise RankError(f"rank {rank} (stage {rank}) failed in {watch.doing}: {reason}") from error
    watch.finish()
    reporter.report(Step.ENDING)
    dist.destroy_process_group()


def _agree(store: Store, artifact: Artifact, rank: int, ranks: int) -> None:
    """Check before the first action that all ranks have the same plan, and the edges the same types and shapes.

    Raises:
        RankError: another rank has another artifact, or the number of ranks is not the number of stages.
    """
    if ranks != len(artifact.program.stages):
        stages = len(artifact.program.stages)
        count = f"{stages} {'stage' if stages == 1 else 'stages'}"
        raise RankError(
            f"the artifact has {count}, and {ranks} {'rank was' if ranks == 1 else 'ranks were'} started: "
            f"start {stages}"
        )
    mine = {"plan": artifact.manifest["sha256"], "edges": edges(artifact.program)}
    store.set(f"plan/{rank}", json.dumps(mine))
    for other in range(ranks):
        theirs = json.loads(store.get(f"plan/{other}"))
        for key in ("edges", "plan"):
            if theirs[key] != mine[key]:
                raise RankError(
                    f"rank {other} and rank {rank} have different artifacts (their {key} differ): "
                    "give all ranks the same"
                )


def edges(program: Program) -> str:
    """A digest of the values that cross each boundary: names, dtypes and shapes."""
    from graphopt.program import schedule

    described = []
    for (source, target), names in sorted(schedule.carried(program.actions).items()):
        values = {value.name: value for value in program.stages[source].values}
        described.append([source, target, [[name, values[name].dtype, values[name].shape] for name in names]])
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _execute(artifact: Artifact, options: argparse.Namespace, rank: int, watch: Watch) -> dict[str, Any]:
    """Run this rank's actions; returns its part of the outputs."""
    from graphopt.distributed import transport
    from graphopt.runtime.runner import runners

    program = artifact.program
    given = feeds.check(
        program.inputs, _read_inputs(options.input), program.micro_batches, constants=artifact.constants
    )
    threads = options.threads if options.threads is not None else host.default_threads()
    stage = program.stages[rank]
    if stage.library and not device.needs_device(artifact.manifest):
        from graphopt.runtime.devices.library import Threads

        Threads(threads)
    (runner,) = runners([stage], artifact, threads)
    actions = program.actions[rank]
    links = transport.links(runner, actions)
    earlier = {name for other in program.stages[:rank] for name in other.outputs}
    mine = [port for port in program.outputs if port.name in stage.outputs and port.name not in earlier]
    parts: dict[str, list[Any]] = {port.name: [] for port in mine}
    for action in actions:
        watch.doing = str(action)
        if options.trace:
            sys.stderr.write(f"rank {rank}: {action}\n")
            sys.stderr.flush()
        if action.verb is Verb.RECV:
            links[Verb.RECV, action.peer].receive()
        elif action.verb is Verb.SEND:
            links[Verb.SEND, action.peer].send()
        else:
            fill(runner, given, action.micro_batch, program.micro_batches)
            runner.run()
            for port in mine:
                parts[port.name].append(own(runner, port.name))
    watch.doing = "sending its last values"
    for (verb, _), link in links.items():
        if verb is Verb.SEND:
            link.flush()
    return {
        port.name: parts[port.name][0]
        if program.micro_batches == 1
        else np.concatenate(parts[port.name], dtype=numpy_dtype(port.dtype))
        for port in mine
    }


def _read_inputs(given: Sequence[str]) -> dict[str, Any]:
    inputs = {}
    for item in given:
        name, equals, path = item.partition("=")
        if not equals:
            raise FeedError(f"--input {item} is not NAME=FILE")
        inputs[name] = files.read(Path(path), name)
    return inputs


if __name__ == "__main__":
    sys.exit(main())
