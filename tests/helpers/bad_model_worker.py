"""Loads seeded mutations of models, one line per case, in a process of its own: a crash or a hang ends only this one.

    python bad_model_worker.py SECONDS MODEL FIRST_SEED LAST_SEED

prints `start SEED KIND` and `loaded SEED` or `refused SEED MESSAGE` for each seed; anything else is a defect.
"""

import resource
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

MEMORY_BYTES = 3 << 30  # of address space beyond what the imports took


def mutate(content: bytes, seed: int) -> tuple[str, bytes]:
    """One damaged copy of the model `content`; the same for the same seed."""
    rng = np.random.default_rng(seed)
    kinds = [truncate, flip_bits, swap_bytes, duplicate, erase, change_fields]
    kind = kinds[seed % len(kinds)]
    return kind.__name__, kind(content, rng)


def truncate(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(len(content)))]


def flip_bits(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 9))):
        damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
    return bytes(damaged)


def swap_bytes(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        a, b = (int(place) for place in rng.integers(len(damaged), size=2))
        damaged[a], damaged[b] = damaged[b], damaged[a]
    return bytes(damaged)


def duplicate(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content)))
    piece = content[start : start + int(rng.integers(1, 200))]
    place = int(rng.integers(len(content)))
    return content[:place] + piece + content[place:]


def erase(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content)))
    return content[:start] + content[start + int(rng.integers(1, 64)) :]


def change_fields(content: bytes, rng: np.random.Generator) -> bytes:
    """Well-formed protobuf, ill-formed model: fields of nodes, tensors and types get values of other fields."""
    model = onnx.ModelProto.FromString(content)
    for _ in range(int(rng.integers(1, 4))):
        message: Any = model
        while True:
            fields = [(field, value) for field, value in message.ListFields() if field.name not in ("raw_data",)]
            if not fields:
                break
            if message is model:
                fields = [pair for pair in fields if pair[0].name == "graph"] * 9 + fields
            field, value = fields[rng.integers(len(fields))]
            if field.message_type is None:
                _change(message, field, value, rng)
                break
            if not hasattr(value, "append") and not hasattr(value, "add"):
                message = value
            elif rng.random() < 0.1:
                _rearrange(value, rng)
                break
            else:
                message = value[rng.integers(len(value))]
    return model.SerializeToString()


ODD = [-1, 0, 1, 2, 7, 16, 255, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 40, (1 << 62) + 1, -(1 << 63)]
NAMES = [
    "",
    "x",
    "Reshape",
    "Loop",
    "LSTM",
    "Einsum",
    "Resize",
    "\x00",
    "é" * 9,
    "data_0",
    "axis",
    "Concat",
    "Split",
    "Pad",
]


def _change(message: Any, field: Any, value: Any, rng: np.random.Generator) -> None:
    def other(old: Any) -> Any:
        if isinstance(old, bool):
            return not old
        if isinstance(old, int):
            return ODD[rng.integers(len(ODD))]
        if isinstance(old, float):
            return float(rng.choice([0.0, -1.0, np.inf, np.nan, 1e38]))
        if isinstance(old, bytes):
            return old[: len(old) // 2]
        return NAMES[rng.integers(len(NAMES))]

    try:
        if hasattr(value, "append"):
            place = rng.integers(len(value))
            if rng.random() < 0.2:
                del value[place]
            elif rng.random() < 0.2:
                value.append(value[place])
            else:
                value[place] = other(value[place])
        elif rng.random() < 0.2:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, other(value))
    except (ValueError, TypeError):
        pass  # the value does not fit the field


def _rearrange(repeated: Any, rng: np.random.Generator) -> None:
    place = int(rng.integers(len(repeated)))
    if rng.random() < 0.5:
        repeated.add().CopyFrom(repeated[place])
    elif rng.random() < 0.5:
        del repeated[place]
    else:
        source = repeated[place]
        repeated[int(rng.integers(len(repeated)))].MergeFrom(type(source).FromString(source.SerializeToString()))


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> None:
    from graphopt.errors import GraphoptError
    from graphopt.frontend.load import load

    seconds, path, first, last = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    load(path)  # imports and caches; the model itself is good
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    content = path.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        damaged = Path(folder, "model.onnx")
        for seed in range(first, last):
            kind, mutated = mutate(content, seed)
            damaged.write_bytes(mutated)
            say(f"start {seed} {kind}")
            # The default action ends the process: a hang inside C++ cannot be interrupted otherwise.
            signal.alarm(seconds)
            try:
                load(damaged)
            except GraphoptError as error:
                say(f"refused {seed} {error}")
            else:
                say(f"loaded {seed}")
            signal.alarm(0)
            if [item.name for item in Path(folder).iterdir()] != ["model.onnx"]:
                raise AssertionError("load wrote a file")


if __name__ == "__main__":
    main()
