"""LSTM, GRU and RNN on a GPU: all attributes against ONNX Runtime, refusals, launches, the assembler's report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from tvm import te

from graphopt import backend
from graphopt.targets.gpu import code, devices, nvrtc, rules, target
from graphopt.targets.gpu.kernels import recurrence, recurrence_launch
from graphopt.verify.oracle import run_onnxruntime

Array = NDArray[Any]
Execute = Callable[..., tuple[list[Array], Any]]

T, B, I, H = 5, 3, 6, 20  # noqa: E741
CELLS = [("LSTM", 4, 0), ("GRU", 3, 0), ("GRU", 3, 1), ("RNN", 1, 0)]
DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


ONE_DEVICE = pytest.mark.parametrize("device", [devices.OPENCL], ids=["256 threads"])


def numbers(*shape: int, scale: float = 0.3) -> Array:
    return (np.random.default_rng([11, *shape]).standard_normal(shape) * scale).astype(np.float32)


def weights(gates: int, directions: int = 1, hidden: int = H) -> dict[str, Array]:
    return {"w": numbers(directions, gates * hidden, I), "r": numbers(directions, gates * hidden, hidden)}


@pytest.fixture
def execute_model(opencl: Any, device: devices.GpuSpec, monkeypatch: pytest.MonkeyPatch) -> Execute:
    """Compile for a device and run on PoCL: the outputs, and the calls of the one segment."""
    monkeypatch.setattr(devices, "OPENCL", device)

    def execute(model: ir.Model, inputs: Sequence[Array]) -> tuple[list[Array], Any]:
        prepared = backend.prepare(ir.to_proto(model), "OPENCL", fallback=False)
        outputs = prepared.run(list(inputs))
        again = prepared.run(list(inputs))  # the number of the step begins at zero again
        for first, second in zip(outputs, again, strict=True):
            np.testing.assert_array_equal(first, second)
        ((compiled, _),) = prepared._programs.values()
        (stage,) = compiled.artifact.program.stages
        (segment,) = stage.segments
        return list(outputs), segment.calls

    return execute


@pytest.fixture
def same(lab: Any, execute_model: Execute) -> Callable[..., Any]:
    """Hold a node against ONNX Runtime; gives the calls."""

    def same(body: str, feeds: dict[str, Array], constants: dict[str, Array], names: Sequence[str] = ("y",)) -> Any:
        model = lab.model(body, feeds, constants, names)
        outputs, calls = execute_model(model, list(feeds.values()))
        expected = run_onnxruntime(model, feeds)
        for name, output in zip(names, outputs, strict=True):
            np.testing.assert_allclose(output, expected[name], rtol=1e-4, atol=1e-5, err_msg=name)
        return calls

    return same


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("cell", "gates", "after"), CELLS)
def test_rows_end_on_their_own(same: Any, cell: str, gates: int, after: int, direction: str) -> None:
    """With initial states, biases and lengths."""
    d = 2 if direction == "bidirectional" else 1
    feeds = {"x": numbers(T, B, I), "h": numbers(d, B, H), "lengths": np.array([T, 1, T - 2], np.int32)}
    names, operands = ("y", "yh"), "x, w, r, b, lengths, h"
    if cell == "LSTM":
        feeds["c"] = numbers(d, B, H, scale=0.7)
        names, operands = ("y", "yh", "yc"), operands + ", c"
    attributes = f'hidden_size = {H}, direction = "{direction}"'
    attributes += f", linear_before_reset = {after}" if cell == "GRU" else ""
    constants = weights(gates, d) | {"b": numbers(d, 2 * gates * H)}
    same(f"{', '.join(names)} = {cell} <{attributes}> ({operands})", feeds, constants, names)


@pytest.mark.parametrize(("steps", "batch", "hidden"), [(1, 1, 1), (2, 11, 70), (5, 1, 132)])
@pytest.mark.parametrize(("cell", "gates", "after"), CELLS)
def test_sizes(same: Any, cell: str, gates: int, after: int, steps: int, batch: int, hidden: int) -> None:
    """Even and odd numbers of steps; units, rows and products that do not fill their tiles."""
    attributes = f"hidden_size = {hidden}" + (f", linear_before_reset = {after}" if cell == "GRU" else "")
    names = ("y", "yh")
    body = f"y, yh = {cell} <{attributes}> (x, w, r)"
    calls = same(body, {"x": numbers(steps, batch, I)}, weights(gates, hidden=hidden), names)
    launches = calls[-1].launches
    assert len(launches) == steps * (2 if cell == "GRU" and not after else 1)
    assert len({launch.entry for launch in launches}) <= 4 * (2 if cell == "GRU" and not after else 1)


@ONE_DEVICE
def test_peepholes(same: Any) -> None:
    constants = weights(4) | {"p": numbers(1, 3 * H)}
    same(f'y = LSTM <hidden_size = {H}> (x, w, r, "", "", "", "", p)', {"x": numbers(T, B, I)}, constants)


@ONE_DEVICE
@pytest.mark.parametrize("outputs", ['y, "", c', '"", h', '"", "", c', "y, h"])
def test_any_subset_of_the_outputs(same: Any, outputs: str) -> None:
    names = [name for name in outputs.replace('"', "").replace(" ", "").split(",") if name]
    same(f"{outputs} = LSTM <hidden_size = {H}> (x, w, r)", {"x": numbers(T, B, I)}, weights(4), names)


@ONE_DEVICE
def test_weights_may_be_computed(same: Any) -> None:
    feeds = {"x": numbers(T, B, I), "b": numbers(1, 8 * H)} | weights(4)
    same(f"y = LSTM <hidden_size = {H}> (x, w, r, b)", feeds, {})


@ONE_DEVICE
@pytest.mark.parametrize(("cell", "gates", "names"), [("LSTM", 4, ["Tanh", "Relu", "Sigmoid"]), ("RNN", 1, ["Relu"])])
def test_other_activations(same: Any, cell: str, gates: int, names: list[str]) -> None:
    both = ", ".join(f'"{name}"' for name in names * 2)
    body = f'y = {cell} <hidden_size = {H}, direction = "bidirectional", activations = [{both}]> (x, w, r)'
    same(body, {"x": numbers(T, B, I)}, weights(gates, 2))


@ONE_DEVICE
@pytest.mark.parametrize(
    ("cell", "gates", "names"),
    [
        ("LSTM", 4, ["Tanh", "Relu", "Sigmoid", "Sigmoid", "Tanh", "Relu"]),
        ("GRU", 3, ["Sigmoid", "Tanh", "Tanh", "Sigmoid"]),
        ("RNN", 1, ["Relu", "Tanh"]),
    ],
)
@pytest.mark.parametrize("clip", ["", ", clip = 0.2"])
def test_each_direction_has_activations_of_its_own(
    same: Any, cell: str, gates: int, names: list[str], clip: str
) -> None:
    both = ", ".join(f'"{name}"' for name in names)
    body = f'y = {cell} <hidden_size = {H}, direction = "bidirectional", activations = [{both}]{clip}> (x, w, r)'
    same(body, {"x": numbers(T, B, I)}, weights(gates, 2))


@pytest.mark.parametrize(("cell", "gates", "after"), CELLS)
def test_halves_are_computed_in_single_precision(lab: Any, cell: str, gates: int, after: int) -> None:
    """On CUDA: no product and no state of the kernels is a half."""
    attributes = f"hidden_size = {H}" + (f", linear_before_reset = {after}" if cell == "GRU" else "")
    feeds = {"x": numbers(T, B, I).astype(np.float16), "lengths": np.array([T, 1, T - 2], np.int32)}
    constants = {name: array.astype(np.float16) for name, array in weights(gates).items()}
    model = lab.model(f'y, h = {cell} <{attributes}> (x, w, r, "", lengths)', feeds, constants, ("y", "h"))
    backend = target.CudaTarget("sm_90")
    assert backend.supports(model.graph[0], model.opset_imports) is None
    graph = model.graph
    found = backend.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
    values, kernels = found.values, [call for call in found.calls if cell.lower() in call.symbol]
    assert len(kernels) == 1
    assert found.plans[kernels[0].symbol].seconds
    for name in (*kernels[0].inputs, *kernels[0].outputs, *kernels[0].scratch):
        assert values[name].dtype in ("float32", "int32")
    assert {str(values[value.name].dtype) for value in graph.outputs} == {"float16"}
    for made in backend.images(found.functions).values():
        assert made


@ONE_DEVICE
@pytest.mark.parametrize(("cell", "gates", "after"), CELLS)
def test_clip(same: Any, cell: str, gates: int, after: int) -> None:
    attributes = f"hidden_size = {H}, clip = 0.2" + (f", linear_before_reset = {after}" if cell == "GRU" else "")
    constants = weights(gates) | {"b": numbers(1, 2 * gates * H)}
    same(f"y = {cell} <{attributes}> (x, w, r, b)", {"x": numbers(T, B, I)}, constants)


@ONE_DEVICE
@pytest.mark.parametrize(("cell", "gates", "after"), CELLS)
def test_the_batch_may_come_first(lab: Any, execute_model: Execute, cell: str, gates: int, after: int) -> None:
    """ONNX Runtime has no such layout: the node is held against the one that it has."""
    steps = {"x": numbers(T, B, I), "h": numbers(2, B, H)}
    attributes = f'hidden_size = {H}, direction = "bidirectional"'
    attributes += f", linear_before_reset = {after}" if cell == "GRU" else ""
    body = f'y, yh = {cell} <{attributes}> (x, w, r, "", "", h)'
    model = lab.model(body, steps, weights(gates, 2), ("y", "yh"))
    expected = run_onnxruntime(model, steps)
    node = next(iter(model.graph))
    node.attributes["layout"] = ir.AttrInt64("layout", 1)
    orders = {"y": (2, 0, 1, 3), "yh": (1, 0, 2)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = value.shape.numpy()
        value.shape = ir.Shape([shape[axis] for axis in orders.get(value.name, (1, 0, 2))])
    actual, _ = execute_model(model, [array.transpose(1, 0, 2) for array in steps.values()])
    for output, (name, order) in zip(actual, orders.items(), strict=True):
        np.testing.assert_allclose(output, expected[name].transpose(order), rtol=1e-4, atol=1e-5)


@ONE_DEVICE
def test_lengths_beyond_the_sequence_are_the_sequence(lab: Any, execute_model: Execute) -> None:
    """ONNX Runtime refuses them; a kernel cannot, and stays inside its memory."""
    feeds = {"x": numbers(T, B, I), "lengths": np.full(B, T, np.int32)}
    model = lab.model(f'y = LSTM <hidden_size = {H}, direction = "reverse"> (x, w, r, "", lengths)', feeds, weights(4))
    (expected,), _ = execute_model(model, list(feeds.values()))
    (longer,), _ = execute_model(model, [feeds["x"], feeds["lengths"] + 9])
    np.testing.assert_array_equal(longer, expected)
    (nothing,), _ = execute_model(model, [feeds["x"], feeds["lengths"] - 99])
    np.testing.assert_array_equal(nothing, np.zeros_like(nothing))


def test_long_sequences(same: Any) -> None:
    """Of odd length, in both directions: the pairs of kernels come again and again."""
    feeds = {"x": numbers(51, 1, I)}
    same(f'y, h = GRU <hidden_size = {H}, direction = "bidirectional"> (x, w, r)', feeds, weights(3, 2), ("y", "h"))


@pytest.mark.parametrize(
    ("steps", "attributes", "reason"),
    [
        (T, ", input_forget = 1", "do not couple the input and the forget gate"),
        (T, ', activations = ["Sigmoid", "Softsign", "Tanh"]', "know the activations Sigmoid, Tanh, Relu"),
        (5000, "", "5000 are more than the 4096 allowed"),
    ],
)
def test_refusals(lab: Any, monkeypatch: pytest.MonkeyPatch, steps: int, attributes: str, reason: str) -> None:
    body = f"y = LSTM <hidden_size = {H}{attributes}> (x, w, r)"
    model = lab.model(body, {"x": numbers(steps, B, I)}, weights(4))
    assert reason in str(target.OpenClTarget().supports(model.graph[0], model.opset_imports))


def function(layer: recurrence_launch.Layer, device: devices.GpuSpec) -> tuple[Any, recurrence_launch.LaunchConfig]:
    """The PrimFunc of a layer, as the converter marks it."""
    made = recurrence_launch.launch_config(layer, device)
    columns = layer.directions * layer.gates * layer.hidden
    shapes = [(layer.steps * layer.batch, columns), (layer.directions, layer.gates * layer.hidden, layer.hidden)]
    shapes += [layer.state] * (2 if layer.cell == "LSTM" else 1)  # type: ignore[list-item]
    tensors = [te.placeholder(shape, layer.dtype, name=f"x{i}") for i, shape in enumerate(shapes)]
    results = recurrence.compute(layer, made, tensors[0], tensors[1], tensors[2:])
    found = te.create_prim_func([*tensors, *results])
    for key, value in recurrence.attributes(layer, made, device).items():
        found = found.with_attr(key, value)
    return found, made


@pytest.mark.parametrize("name", ["a100", "h100"])
@pytest.mark.parametrize(("cell", "batch"), [("LSTM", 1), ("GRU", 1), ("RNN", 1), ("LSTM", 16), ("LSTM", 64)])
def test_machine_code(name: str, cell: str, batch: int) -> None:
    """Nothing is spilled, no matter how many steps there are only few kernels, and they fill the device."""
    device = devices.DEVICES[name]
    layer = recurrence_launch.Layer(cell, 100, batch, 512, 1, "float32", DEFAULTS[cell])
    scheduled, made = function(layer, device)
    generated = code.generate("kernel", rules.apply(scheduled, device).function, device)
    phases = len(layer.phases)
    assert len(generated.launches) == 100 * phases
    assert len({launch.entry for launch in generated.launches}) == 4 * phases
    assert np.prod(generated.launches[0].grid) >= device.multiprocessors
    compiled = nvrtc.compile_cuda(generated.bounded(generated.resident), device.arch)
    for found in compiled.resources.values():
        assert found.spilled == 0
        assert found.shared <= 48 << 10
        assert found.blocks(made.threads, 0, device) >= 2


def test_what_takes_longer() -> None:
    """More steps, a second kernel for each, weights that the cache does not hold."""
    device = devices.DEVICES["h100"]

    def seconds(cell: str, steps: int, hidden: int) -> float:
        layer = recurrence_launch.Layer(cell, steps, 1, hidden, 1, "float32", DEFAULTS[cell])
        return recurrence_launch.seconds(layer, recurrence_launch.launch_config(layer, device), device)

    assert seconds("LSTM", 200, 512) == pytest.approx(2 * seconds("LSTM", 100, 512))
    assert seconds("GRU", 100, 512) > 1.3 * seconds("LSTM", 100, 512)
    assert seconds("LSTM", 100, 4096) > 10 * seconds("LSTM", 100, 512)


@pytest.mark.parametrize("device", [devices.OPENCL, *devices.DEVICES.values()], ids=lambda device: device.name)
@pytest.mark.parametrize("hidden", [1, 20, 512, 3000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_cuts_fit_the_device(device: devices.GpuSpec, hidden: int, dtype: str) -> None:
    for cell, batch in (("LSTM", 1), ("GRU", 40), ("RNN", 7)):
        layer = recurrence_launch.Layer(cell, 2, batch, hidden, 2, dtype, DEFAULTS[cell])
        made = recurrence_launch.launch_config(layer, device)
        assert made.threads <= device.threads_per_block
        assert made.shared(layer.gates, dtype) <= device.shared_per_block
