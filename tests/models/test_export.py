"""The exported graphs: equal to torch in ONNX Runtime, clean, well-scaled, with BatchNorm kept for our own passes."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from graphopt import models
from graphopt.models.zoo import SEED

SMALL = ("lenet5", "wideresnet28-2", "resnet18", "mobilenetv2", "unet", "mlp", "lstm", "bilstm")
LARGE = ("googlenet", "densenet121", "vit-b16")
NAMES = [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
Feeds = dict[str, np.ndarray[Any, Any]]


def feeds(name: str, seed: int) -> Feeds:
    generator = np.random.default_rng(seed)
    return {
        tensor.name: generator.standard_normal(tensor.shape, dtype=np.float32)
        if tensor.high is None
        else generator.integers(0, tensor.high, tensor.shape)
        for tensor in models.describe(name).inputs
    }


def run(path: Path, inputs: Feeds) -> list[np.ndarray[Any, Any]]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, inputs))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", NAMES)
def test_onnxruntime_agrees_with_torch(name: str) -> None:
    import torch

    from graphopt.models.export import instantiate

    info = models.describe(name)
    builder = getattr(importlib.import_module(f"graphopt.models.{info.family}"), info.builder)
    inputs = feeds(name, 0)
    with torch.no_grad():
        expected = instantiate(builder, SEED)(*map(torch.from_numpy, inputs.values())).numpy()
    (actual,) = run(models.build(name), inputs)
    assert actual.shape == expected.shape
    # Depth times float32 rounding, relative to the scale of the output.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_well_scaled_and_depend_on_the_input(name: str) -> None:
    first, second = (run(models.build(name), feeds(name, seed))[0] for seed in (0, 1))
    assert 0.1 < first.std() < 30
    assert np.abs(first - second).max() > 1e-2


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", NAMES)
def test_the_file_is_valid_and_names_what_it_should(name: str) -> None:
    path, info = models.build(name), models.describe(name)
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(path)
    assert [value.name for value in model.graph.input] == [tensor.name for tensor in info.inputs]
    assert [value.name for value in model.graph.output] == list(info.outputs)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 20)]
    assert not model.functions
    node_names = [node.name for node in model.graph.node]
    assert len(set(node_names)) == len(node_names)
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["lenet5", "wideresnet28-2", "lstm"])
def test_no_path_of_the_building_machine_is_in_the_file(name: str) -> None:
    content = models.build(name).read_bytes()
    for trace in (b"stack_trace", b".py", b"site-packages", str(Path.home()).encode()):
        assert trace not in content


@pytest.mark.usefixtures("cache")
def test_batchnorm_stays_and_would_be_missed() -> None:
    path = models.build("wideresnet28-2")
    assert operators(path)["BatchNormalization"] == 25
    model = onnx.load(path)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            scale, bias, mean, variance = (arrays[name] for name in node.input[1:])
            assert np.all(variance > 0)
            for tensor, neutral in ((scale, 1), (bias, 0), (mean, 0), (variance, 1)):
                assert np.abs(tensor - neutral).max() > 0.05


@pytest.mark.usefixtures("cache")
def test_recurrent_layers_are_onnx_lstms() -> None:
    assert operators(models.build("lstm"))["LSTM"] == 5
    model = onnx.load(models.build("bilstm"))
    directions = [
        onnx.helper.get_node_attr_value(node, "direction") for node in model.graph.node if node.op_type == "LSTM"
    ]
    assert directions == [b"bidirectional"] * 2


@pytest.mark.slow
@pytest.mark.usefixtures("cache")
def test_a_transformer_has_the_standard_operators() -> None:
    counts = operators(models.build("vit-b16"))
    assert (counts["LayerNormalization"], counts["Gelu"], counts["Softmax"]) == (25, 12, 12)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_does_not() -> None:
    import onnx_ir

    from graphopt.models.export import instantiate, to_onnx
    from graphopt.models.wideresnet import wideresnet28_2

    def content(seed: int) -> bytes:
        model = to_onnx(instantiate(wideresnet28_2, seed), "w", {"image": ("float32", (1, 3, 32, 32))}, ["logits"])
        return onnx_ir.to_proto(model).SerializeToString(deterministic=True)

    first = content(1)
    assert content(1) == first
    assert content(2) != first


def test_drawing_leaves_torchs_own_generator_alone_and_covers_every_tensor() -> None:
    import torch

    from graphopt.models.export import instantiate
    from graphopt.models.resnet import resnet18

    before = torch.get_rng_state()
    module = instantiate(resnet18, 1)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in module.named_parameters():
        assert tensor.isfinite().all(), name
        assert tensor.std() > 0, name


def test_a_layer_without_a_rule_is_refused() -> None:
    from torch import nn

    from graphopt.models.weights import draw

    with pytest.raises(TypeError, match="no rule draws the parameters of PReLU"):
        draw(nn.PReLU(), 0)


@pytest.mark.parametrize(("channels", "width", "stride", "kernel"), [(64, 32, 2, 2), (48, 16, 1, 3)])
def test_a_unit_gain_keeps_the_scale(channels: int, width: int, stride: int, kernel: int) -> None:
    import torch
    from torch import nn

    from graphopt.models.weights import draw, scaled

    layer = scaled(nn.ConvTranspose2d(channels, width, kernel, stride=stride, bias=False), 1.0)
    draw(layer, 0)
    x = torch.randn(1, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert math.isclose(float(layer(x).std()), 1.0, rel_tol=0.15)
