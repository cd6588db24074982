"""Which algorithm and layout convolutions get on GPUs, and that what is chosen computes the same."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from graphopt import models
from graphopt.compiler import rewrite
from graphopt.cost.workload import Operand, Workload
from graphopt.frontend.load import load
from graphopt.options import Options
from graphopt.targets.gpu import devices, estimates, waves
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal

H100 = devices.DEVICES["h100"]


def planar(x: tuple[int, ...], w: tuple[int, ...], dtype: str = "float32", group: int = 1, pads: int = 1) -> Workload:
    """A Conv of stride 1 that keeps the size of its image, or shrinks it without pads."""
    less = w[2] - 1 - 2 * pads
    return Workload(
        "Conv",
        (Operand(x, dtype), Operand(w, dtype, True), Operand(w[:1], dtype, True)),
        (x[0], w[0], x[2] - less, x[3] - less),
        (("strides", (1, 1)), ("pads", (pads,) * 4), ("dilations", (1, 1)), ("group", group)),
        domain="",
    )


def blocked(x: tuple[int, ...], w: tuple[int, ...], dtype: str = "float32", group: int = 1) -> Workload:
    n, c, height, width = x
    out = -(-w[0] // 16)
    return Workload(
        "Conv2dBlocked",
        (
            Operand((n, -(-c // 16), height, width, 16), dtype),
            Operand((out, -(-w[1] // 16), w[2], w[3], 16, 16), dtype, True),
            Operand((out, 16), dtype, True),
        ),
        (n, out, height, width, 16),
        (("strides", (1, 1)), ("pads", (1, 1, 1, 1)), ("dilations", (1, 1)), ("group", group)),
    )


def winograd(x: tuple[int, ...], w: tuple[int, ...], m: int) -> Workload:
    n, c, height, width = x
    out, deep = -(-w[0] // 16), -(-c // 16)
    return Workload(
        "Conv2dWinograd",
        (
            Operand((n, deep, height, width, 16)),
            Operand(((m + 2) ** 2, out, deep, 16, 16), "float32", True),
            Operand((out, 16), "float32", True),
        ),
        (n, out, height, width, 16),
        (("m", m), ("pads", (1, 1, 1, 1))),
    )


def seconds(workload: Workload, units: str = "") -> float:
    found = estimates.Estimates(H100).seconds(workload, units)
    assert found is not None
    return found


X, W = (32, 256, 28, 28), (256, 256, 3, 3)


def test_winograd_pays_for_large_convolutions_in_float32() -> None:
    assert seconds(winograd(X, W, 4)) < seconds(blocked(X, W)) / 2
    small = (1, 512, 7, 7), (512, 512, 3, 3)  # more weights to read, and three launches
    assert seconds(winograd(*small, 4)) > seconds(blocked(*small))


def test_halves_want_blocks() -> None:
    assert seconds(blocked(X, W, "float16")) < 0.8 * seconds(planar(X, W, "float16"))
    assert seconds(blocked(X, W, "float16")) < seconds(blocked(X, W)) / 4
    assert seconds(blocked(X, W), "tf32") < seconds(blocked(X, W)) / 2


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_no_estimate_is_below_what_memory_and_arithmetic_take(dtype: str) -> None:
    for x, w in ((X, W), ((1, 64, 56, 56), (64, 64, 3, 3)), ((8, 512, 7, 7), (512, 512, 3, 3))):
        workload = blocked(x, w, dtype)
        size = 2 if dtype == "float16" else 4
        moved = size * (math.prod(workload.shape) + sum(math.prod(operand.shape) for operand in workload.operands))
        flops = 2 * math.prod(workload.shape) * w[1] * w[2] * w[3]
        assert seconds(workload) > max(moved / H100.bandwidth, flops / H100.rates[dtype])


def test_layouts_cost_a_launch_and_the_memory() -> None:
    x = (8, 64, 56, 56)
    workload = Workload("ToBlocked", (Operand(x),), (8, 4, 56, 56, 16), (("block", 16),))
    assert seconds(workload) > 2 * 4 * math.prod(x) / H100.bandwidth
    assert seconds(Workload("ToBlocked", (Operand((1, 1, 1, 1)),), (1, 1, 1, 1, 1))) >= waves.LAUNCH


def test_what_has_no_kernel() -> None:
    assert seconds(Workload("Conv2dIm2col", (Operand((1, 1, 1, 1)),), (1, 1, 1, 1))) == math.inf
    assert estimates.Estimates(H100).seconds(Workload("MatMul", (Operand((1, 1)),), (1, 1))) is None


def chosen(name: str, precision: str, **options: Any) -> tuple[Any, Counter[str]]:
    made = rewrite(f"zoo:{name}", Options(target="cuda", precision=precision, costs="roofline", **options))
    choices = [choice for step in made.result.steps for choice in step.choices]
    assert not any(choice.measured for choice in choices)
    return made, Counter(choice.algorithm for choice in choices)


def test_resnet_in_float32_and_in_halves() -> None:
    made, algorithms = chosen("resnet18", "fp32")
    assert algorithms.keys() <= {"blocked", "planar", "winograd2", "winograd4", "winograd6"}
    assert algorithms["winograd4"] + algorithms["winograd6"] > 4
    made, algorithms = chosen("resnet18", "fp16")
    assert algorithms == {"blocked": 20}
    kinds = Counter(node.op_type for node in made.model.graph)
    assert kinds["ToBlocked"] <= 1  # all between stays blocked: residual adds, the pool, casts
    assert kinds["FromBlocked"] == 1
    names = [each.name for each in made.pipeline.passes]
    assert names.index("fuse") < names.index("precision") < names.index("select-conv") < names.index("layout")


def test_tf32_goes_with_the_convolution() -> None:
    made, _ = chosen("resnet18", "tf32")
    marks = {node.metadata_props.get("graphopt.precision") for node in made.model.graph if "Conv" in node.op_type}
    assert marks == {"tf32"}
    function = [node for node in made.model.graph if node.op_type == "Conv2dBlocked"][0]
    assert made.target.supports(function, made.model.opset_imports) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "seeded/squeezenet", "unet"])
def test_halves_compute_the_model(name: str) -> None:
    """By ONNX Runtime, which runs the bodies of our functions: no GPU is needed for the rewritten graph."""
    if name not in models.names():
        pytest.fail(f"the zoo has lost {name}")
    original = load(f"zoo:{name}").model
    feeds = random_inputs(original, 0)
    expected = run_onnxruntime(original, feeds)
    made, _ = chosen(name, "fp16")
    found = run_onnxruntime(made.model, feeds)
    scale = max(abs(float(array.max())) for array in expected.values())
    require_equal(expected, found, "in halves", {"float32": Tolerance(0.02, 0.02 * scale)})
