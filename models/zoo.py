"""The models by name: one literal table, and the cache in which they are built once.

A built model lies in the user's cache directory as `NAME-KEY.onnx`; the key covers torch's version, the sources that
build the model and the seed, so that a file under that name is never out of date.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib
import importlib.util
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graphopt.errors import ModelError
from graphopt.models import sparse

if TYPE_CHECKING:
    import onnx_ir as ir
    from torch import nn

HERE = Path(__file__).parent
TRAINED = HERE / "trained"
SEED = 2026
EXTERNAL_BYTES = 1_500_000_000
"""Above this the weights go into a file beside the model: one protobuf message holds 2 GB at most."""


@dataclass(frozen=True)
class TensorInfo:
    """An input: its name, dtype, shape, and for integers the number of values it may take (0 .. high - 1)."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "float16", "int64"] = "float32"
    high: int | None = None


@dataclass(frozen=True)
class ModelInfo:
    """Description of a model that is not built yet.

    `source` says where it comes from: `built` with torch and seeded weights, `trained` and committed, in `onnx`,
    `seeded`: the graph of the model in `onnx`, with seeded weights, or a single `layer` with seeded weights.
    """

    name: str
    family: str
    title: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    source: Literal["built", "trained", "onnx", "seeded", "layer"] = "built"
    builder: str = ""


PHOTO = (TensorInfo("image", (1, 3, 224, 224)),)
LOGITS = ("logits",)
TOKENS = (1, 128)
BERT_INPUTS = (
    TensorInfo("input_ids", TOKENS, "int64", 30_522),
    TensorInfo("attention_mask", TOKENS, "int64", 2),
    TensorInfo("token_type_ids", TOKENS, "int64", 2),
)


def _light(name: str, title: str, data: str, output: str) -> ModelInfo:
    return ModelInfo(f"light/{name}", "light", title, (TensorInfo(data, (1, 3, 224, 224)),), (output,), "onnx")


def _seeded(light: ModelInfo) -> ModelInfo:
    name = light.name.replace("light/", "seeded/")
    return replace(light, name=name, family="seeded", title=f"{light.title}, seeded weights", source="seeded")


def _layer(
    name: str, title: str, shape: tuple[int, ...], dtype: Literal["float32", "float16"] = "float32"
) -> ModelInfo:
    return ModelInfo(f"layer/{name}", "layers", title, (TensorInfo("x", shape, dtype),), ("y",), "layer")


_LAYERS = (
    _layer("conv3x3-64x56", "Convolution 3 x 3, 64 channels", (1, 64, 56, 56)),
    _layer("conv3x3-128x28", "Convolution 3 x 3, 128 channels", (1, 128, 28, 28)),
    _layer("conv3x3-256x14", "Convolution 3 x 3, 256 channels", (1, 256, 14, 14)),
    _layer("conv3x3-512x7", "Convolution 3 x 3, 512 channels", (1, 512, 7, 7)),
    _layer("gemm-1024", "Matrix product, 1024 cubed", (1024, 1024)),
    _layer("gemm-4096", "Matrix product, 4096 cubed", (4096, 4096)),
    _layer("gemm-4096-fp16", "Matrix product, 4096 cubed, float16", (4096, 4096), "float16"),
)

_LIGHT = (
    _light("bvlc_alexnet", "AlexNet (BVLC)", "data_0", "prob_1"),
    _light("densenet121", "DenseNet-121", "data_0", "fc6_1"),
    _light("inception_v1", "Inception v1", "data_0", "prob_1"),
    _light("inception_v2", "Inception v2", "data_0", "prob_1"),
    _light("resnet50", "ResNet-50", "gpu_0/data_0", "gpu_0/softmax_1"),
    _light("shufflenet", "ShuffleNet", "gpu_0/data_0", "gpu_0/softmax_1"),
    _light("squeezenet", "SqueezeNet", "data_0", "softmaxout_1"),
    _light("vgg19", "VGG-19", "data_0", "prob_1"),
    _light("zfnet512", "ZFNet-512", "gpu_0/data_0", "gpu_0/softmax_1"),
)

_MODELS = (
    ModelInfo("lenet5", "lenet", "LeNet-5", (TensorInfo("image", (1, 1, 32, 32)),), LOGITS, builder="lenet5"),
    ModelInfo("alexnet", "alexnet", "AlexNet", PHOTO, LOGITS, builder="alexnet"),
    ModelInfo("vgg16", "vgg", "VGG-16", PHOTO, LOGITS, builder="vgg16"),
    ModelInfo("resnet18", "resnet", "ResNet-18", PHOTO, LOGITS, builder="resnet18"),
    ModelInfo("resnet50", "resnet", "ResNet-50", PHOTO, LOGITS, builder="resnet50"),
    ModelInfo(
        "wideresnet28-2",
        "wideresnet",
        "WideResNet-28-2 (CIFAR)",
        (TensorInfo("image", (1, 3, 32, 32)),),
        LOGITS,
        builder="wideresnet28_2",
    ),
    ModelInfo("googlenet", "googlenet", "GoogLeNet", PHOTO, LOGITS, builder="googlenet"),
    ModelInfo("mobilenetv2", "mobilenet", "MobileNetV2", PHOTO, LOGITS, builder="mobilenetv2"),
    ModelInfo("densenet121", "densenet", "DenseNet-121", PHOTO, LOGITS, builder="densenet121"),
    ModelInfo("unet", "unet", "U-Net", (TensorInfo("image", (1, 3, 256, 256)),), ("mask",), builder="unet"),
    ModelInfo("mlp", "mlp", "MLP, 7 x 2048", (TensorInfo("x", (1, 2048)),), ("y",), builder="mlp"),
    ModelInfo("mlp-b128", "mlp", "MLP, batch 128", (TensorInfo("x", (128, 2048)),), ("y",), builder="mlp"),
    ModelInfo("lstm", "recurrent", "LSTM, 5 x 512", (TensorInfo("sequence", (1, 100, 512)),), LOGITS, builder="lstm"),
    ModelInfo(
        "bilstm",
        "recurrent",
        "Bidirectional LSTM, 2 x 256",
        (TensorInfo("tokens", (1, 100), "int64", 10_000),),
        LOGITS,
        builder="bilstm",
    ),
    ModelInfo(
        "bert-base", "bert", "BERT-base", BERT_INPUTS, ("last_hidden_state", "pooler_output"), builder="bert_base"
    ),
    ModelInfo(
        "gpt2-small",
        "gpt2",
        "GPT-2 small",
        (TensorInfo("input_ids", TOKENS, "int64", 50_257),),
        LOGITS,
        builder="gpt2_small",
    ),
    ModelInfo("vit-b16", "vit", "ViT-B/16", PHOTO, LOGITS, builder="vit_b16"),
    ModelInfo(
        "lenet-digits",
        "lenet",
        "LeNet trained on 8 x 8 digits",
        (TensorInfo("image", (1, 1, 8, 8)),),
        LOGITS,
        "trained",
        builder="lenet_digits",
    ),
    ModelInfo(
        "mlp-digits",
        "mlp",
        "MLP trained on 8 x 8 digits",
        (TensorInfo("image", (1, 1, 8, 8)),),
        LOGITS,
        "trained",
        builder="mlp_digits",
    ),
    *_LIGHT,
    *map(_seeded, _LIGHT),
    *_LAYERS,
)
_BY_NAME = {info.name: info for info in _MODELS}


def _task(name: str, family: str, title: str, data: TensorInfo, output: str, builder: str) -> ModelInfo:
    return ModelInfo(f"train/{name}", family, title, (data,), (output,), builder=builder)


TASKS = (
    _task("lenet5", "lenet", "LeNet-5, batch 128", TensorInfo("image", (128, 1, 32, 32)), "logits", "lenet5"),
    _task(
        "wideresnet28-2",
        "wideresnet",
        "WideResNet-28-2, batch 32",
        TensorInfo("image", (32, 3, 32, 32)),
        "logits",
        "wideresnet28_2",
    ),
    _task("resnet18-112", "resnet", "ResNet-18, batch 8", TensorInfo("image", (8, 3, 112, 112)), "logits", "resnet18"),
    _task("mlp", "mlp", "MLP, 7 x 2048, batch 128", TensorInfo("x", (128, 2048)), "y", "mlp"),
    _task("lstm", "recurrent", "LSTM, 5 x 512, batch 8", TensorInfo("sequence", (8, 100, 512)), "logits", "lstm"),
    _task("bert-layer", "bert", "Layer of BERT-base, batch 4", TensorInfo("x", (4, 128, 768)), "y", "bert_layer"),
)
"""What training is timed on: models of the zoo, or parts of them, at the batch that a step takes."""
_HIDDEN = {info.name: info for info in TASKS}
_BATCHED = re.compile(r"(?P<name>.+)-b(?P<batch>[1-9][0-9]{0,4})")


def names() -> tuple[str, ...]:
    """All names that `describe` and `build` accept, but for those with numbers in them.

    Models of source `built` have a name NAME-bN for each batch N, sparse layers one as `sparse` spells them.
    """
    return tuple(_BY_NAME)


def describe(name: str) -> ModelInfo:
    """The description of a model, without building it.

    Raises ModelError for a name that the zoo lacks, and for a batch of a model that has one shape only.
    """
    if (info := _BY_NAME.get(name) or _HIDDEN.get(name)) is not None:
        return info
    if name.startswith(sparse.PREFIX) and (layer := sparse.parse(name.removeprefix(sparse.PREFIX))) is not None:
        return ModelInfo(name, "sparse", layer.title, (TensorInfo("x", layer.shape),), ("y",), "layer")
    if (match := _BATCHED.fullmatch(name)) and match["name"] in _BY_NAME:
        return _batched(_BY_NAME[match["name"]], int(match["batch"]))
    wanted = name.lower().removeprefix("zoo:")
    close = difflib.get_close_matches(wanted, _BY_NAME, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else "`graphopt models` lists all names."
    raise ModelError(f"the model zoo has no model {name!r}; {hint}")


def _batched(info: ModelInfo, batch: int) -> ModelInfo:
    if info.source != "built":
        raise ModelError(f"the model {info.name} is not built here, so it has one batch only; leave out -b{batch}")
    inputs = tuple(replace(tensor, shape=(batch, *tensor.shape[1:])) for tensor in info.inputs)
    return replace(info, name=f"{info.name}-b{batch}", title=f"{info.title}, batch {batch}", inputs=inputs)


def build(name: str) -> Path:
    """The path of the model's ONNX file, built now if the cache lacks it.

    Raises ModelError for an unknown name, and where the file cannot be written or is not installed.
    """
    info = describe(name)
    if info.source == "trained":
        return TRAINED / f"{name}.onnx"
    if info.source == "onnx":
        return _shipped(info)
    path = _cache_directory() / f"{name.replace('/', '-')}-{_key(info)}.onnx"
    if path.is_file():
        return path
    with _writing(name, path):  # an unwritable cache fails before the build, not after it
        path.parent.mkdir(parents=True, exist_ok=True)
    model = _create(info)
    with _writing(name, path):
        save(model, path)
    return path


def _create(info: ModelInfo) -> ir.Model:
    if info.family == "sparse":
        described = sparse.parse(info.name.removeprefix(sparse.PREFIX))
        assert described is not None
        return sparse.build(described, SEED)
    if info.source == "layer":
        from graphopt.models.layers import layer

        return layer(info.name.removeprefix("layer/"), SEED)
    return _drawn(info) if info.source == "seeded" else _exported(info)


def _drawn(info: ModelInfo) -> ir.Model:
    from graphopt.models.seeded import draw

    return draw(_shipped(info), SEED)


def _exported(info: ModelInfo) -> ir.Model:
    from graphopt.models.export import to_onnx

    inputs = {tensor.name: (tensor.dtype, tensor.shape) for tensor in info.inputs}
    return to_onnx(module(info.name), info.name, inputs, info.outputs)


def module(name: str) -> nn.Module:
    """The torch module that a model of source `built` is exported from, in evaluation mode, with the same weights.

    Raises ModelError for a name that the zoo lacks, and for a model that no module is the source of.
    """
    from graphopt.models.export import instantiate

    info = describe(name)
    if info.source != "built":
        raise ModelError(
            f"the model {name} does not come from a torch module; take one that graphopt models calls built"
        )
    return instantiate(getattr(importlib.import_module(f"graphopt.models.{info.family}"), info.builder), SEED)


@contextlib.contextmanager
def _writing(name: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ModelError(
            f"the model {name} cannot be written to {path.parent} ({error.strerror or error}); "
            "make room there or set XDG_CACHE_HOME to another directory."
        ) from error


def save(model: ir.Model, path: Path, external_bytes: int = EXTERNAL_BYTES) -> None:
    """Write beside `path` and rename: concurrent processes see no file or a complete one.

    Models above `external_bytes` of weights get a second file `path.data`, in place before the first one names it.
    """
    import onnx_ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-", ignore_cleanup_errors=True) as scratch:
        draft = Path(scratch) / path.name
        data = f"{path.name}.data" if size > external_bytes else None
        onnx_ir.save(model, draft, external_data=data)
        if data:
            os.replace(draft.with_name(data), path.with_name(data))
        os.replace(draft, path)


def _cache_directory() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("graphopt")) / "models"


def _key(info: ModelInfo) -> str:
    """Sixteen hexadecimal digits of everything that the file's bytes depend on."""
    from importlib import metadata

    digest = hashlib.sha256()
    if info.source == "seeded":
        digest.update(_shipped(info).read_bytes())
    for package in ("torch", "onnxscript", "onnx-ir"):
        digest.update(f"{package} {metadata.version(package)}\n".encode())
    digest.update(f"{info}\n{SEED}\n".encode())
    for source in (f"{info.family}.py", "weights.py", "export.py"):
        digest.update((HERE / source).read_bytes())
    return digest.hexdigest()[:16]


def _shipped(info: ModelInfo) -> Path:
    """A model of the installed onnx package, found without importing it."""
    spec = importlib.util.find_spec("onnx")
    folders = spec.submodule_search_locations if spec is not None else None
    file = f"backend/test/data/light/light_{info.name.rpartition('/')[2]}.onnx"
    for folder in folders or ():
        if (path := Path(folder) / file).is_file():
            return path
    raise ModelError(f"the model {info.name} is not in the installed onnx package ({file}); reinstall onnx from PyPI.")
