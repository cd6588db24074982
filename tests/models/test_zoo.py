"""The table: names, descriptions, error texts; and the architectures, on the meta device, against published sizes."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import onnx
import pytest

from graphopt import models
from graphopt.errors import ModelError
from graphopt.models import ModelInfo
from graphopt.models.layers import CONVOLUTIONS, PRODUCTS

# torchvision's weight tables; the WideResNet of MixMatch; the U-Net of Buda et al.; Hugging Face's BertModel and
# GPT2LMHeadModel. The last four follow from their dimensions.
PUBLISHED = {
    "lenet5": 61_706,
    "alexnet": 61_100_840,
    "vgg16": 138_357_544,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "wideresnet28-2": 1_467_610,
    "googlenet": 6_624_904,
    "mobilenetv2": 3_504_872,
    "densenet121": 7_978_856,
    "unet": 7_763_041,
    "bert-base": 109_482_240,
    "gpt2-small": 124_439_808,
    "vit-b16": 86_567_656,
    "mlp": 7 * (2048 * 2048 + 2048),
    "mlp-b128": 7 * (2048 * 2048 + 2048),
    "lstm": 5 * 4 * 512 * (512 + 512 + 2) + 512 * 128 + 128,
    "bilstm": 10_000 * 128 + 2 * 4 * 256 * (128 + 256 + 2) + 2 * 4 * 256 * (512 + 256 + 2) + 512 * 17 + 17,
    "lenet-digits": 16 * 10 + 32 * (16 * 9 + 1) + 64 * 129 + 10 * 65,
    "mlp-digits": 256 * 65 + 256 * 257 + 10 * 257,
}
OUTPUTS = {
    "lenet5": [(1, 10)],
    "wideresnet28-2": [(1, 10)],
    "lenet-digits": [(1, 10)],
    "mlp-digits": [(1, 10)],
    "unet": [(1, 1, 256, 256)],
    "mlp": [(1, 2048)],
    "mlp-b128": [(128, 2048)],
    "lstm": [(1, 100, 128)],
    "bilstm": [(1, 100, 17)],
    "bert-base": [(1, 128, 768), (1, 768)],
    "gpt2-small": [(1, 128, 50_257)],
}
LIGHT = tuple(name for name in models.names() if name.startswith("light/"))
SEEDED = tuple(name for name in models.names() if name.startswith("seeded/"))
LAYERS = [f"layer/{name}" for name in (*CONVOLUTIONS, *PRODUCTS)]


def meta_module(info: ModelInfo) -> Any:
    import torch

    with torch.device("meta"):
        return getattr(importlib.import_module(f"graphopt.models.{info.family}"), info.builder)().eval()


def test_every_name_is_described_and_accounted_for() -> None:
    assert [models.describe(name).name for name in models.names()] == list(models.names())
    assert set(models.names()) == {*PUBLISHED, *LIGHT, *SEEDED, *LAYERS}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name: str) -> None:
    assert sum(parameter.numel() for parameter in meta_module(models.describe(name)).parameters()) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_outputs_have_their_shapes(name: str) -> None:
    import torch

    info = models.describe(name)
    inputs = [torch.empty(tensor.shape, dtype=getattr(torch, tensor.dtype), device="meta") for tensor in info.inputs]
    result = meta_module(info)(*inputs)
    outputs = [result] if isinstance(result, torch.Tensor) else list(result)
    assert [tuple(output.shape) for output in outputs] == OUTPUTS.get(name, [(1, 1000)])
    assert len(info.outputs) == len(outputs)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if any(i.high for i in models.describe(name).inputs)])
def test_token_ranges_are_the_embeddings_sizes(name: str) -> None:
    from torch import nn

    info = models.describe(name)
    sizes = {module.num_embeddings for module in meta_module(info).modules() if isinstance(module, nn.Embedding)}
    assert {tensor.high for tensor in info.inputs} <= sizes


@pytest.mark.parametrize("name", LIGHT)
def test_light_models_are_described_as_they_are(name: str) -> None:
    info = models.describe(name)
    graph = onnx.load(models.build(name)).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    shapes = [tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim) for value in inputs]
    assert [value.name for value in inputs] == [tensor.name for tensor in info.inputs]
    assert shapes == [tensor.shape for tensor in info.inputs]
    assert [value.name for value in graph.output] == list(info.outputs)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet50-b32", [(32, 3, 224, 224)]),
        ("bert-base-b8", [(8, 128)] * 3),
        ("mlp-b7", [(7, 2048)]),
        ("mlp-b128", [(128, 2048)]),
        ("mlp-b128-b2", [(2, 2048)]),
    ],
)
def test_models_that_are_built_have_every_batch(name: str, shapes: list[tuple[int, ...]]) -> None:
    info = models.describe(name)
    assert info.name == name
    assert [tensor.shape for tensor in info.inputs] == shapes


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("lenet-digits-b2", "lenet-digits is not built here, so it has one batch only; leave out -b2"),
        ("light/vgg19-b8", "light/vgg19 is not built here"),
        ("resnet50-b0", "the model zoo has no model 'resnet50-b0'"),
        ("resnt50-b2", "the model zoo has no model 'resnt50-b2'; did you mean"),
    ],
)
def test_other_batches_are_refused(name: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        models.describe(name)


def test_a_batch_is_built() -> None:
    graph = onnx.load(models.build("lenet5-b3")).graph
    shapes = [
        [axis.dim_value for axis in each.type.tensor_type.shape.dim] for each in (graph.input[0], graph.output[0])
    ]
    assert shapes == [[3, 1, 32, 32], [3, 10]]


def test_a_layer_of_halves_has_halves() -> None:
    graph = onnx.load(models.build("layer/gemm-4096-fp16")).graph
    kinds = {graph.input[0].type.tensor_type.elem_type, graph.output[0].type.tensor_type.elem_type}
    assert kinds | {graph.initializer[0].data_type} == {onnx.TensorProto.FLOAT16}


def test_all_nine_light_models_are_there() -> None:
    assert len(LIGHT) == 9
    assert [name.replace("seeded/", "light/") for name in SEEDED] == list(LIGHT)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet-50", "the model zoo has no model 'resnet-50'; did you mean resnet50 or "),
        ("BERT", "the model zoo has no model 'BERT'; did you mean bert-base?"),
        ("zoo:vgg-16", "the model zoo has no model 'zoo:vgg-16'; did you mean vgg16"),
        ("../../etc/passwd", "the model zoo has no model '../../etc/passwd'; `graphopt models` lists all names."),
        ("", "the model zoo has no model ''; `graphopt models` lists all names."),
    ],
)
def test_an_unknown_name_is_answered_with_close_ones(name: str, message: str) -> None:
    for function in (models.describe, models.build):
        with pytest.raises(ModelError) as caught:
            function(name)
        assert str(caught.value).startswith(message)


def test_a_missing_light_model_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"light/vgg19 is not in the installed onnx package .*; reinstall onnx"):
        models.build("light/vgg19")


def test_names_and_descriptions_load_no_framework() -> None:
    program = (
        "import sys; from graphopt import models; [models.describe(name) for name in models.names()];"
        "models.build('lenet-digits'); models.build('light/squeezenet');"
        "print(sorted({'torch', 'onnx', 'onnx_ir', 'numpy', 'sklearn'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
