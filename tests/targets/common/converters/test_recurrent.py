"""LSTM, GRU and RNN nodes: which attributes and operands are native, and why others are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

D, T, B, I, H = 1, 5, 3, 6, 20  # noqa: E741


def numbers(*shape: int, scale: float = 0.3) -> Any:
    return (np.random.default_rng([11, *shape]).standard_normal(shape) * scale).astype(np.float32)


def weights(gates: int, directions: int = 1) -> dict[str, Any]:
    return {"w": numbers(directions, gates * H, I), "r": numbers(directions, gates * H, H)}


def lstm(lab: Any, attributes: str = "", operands: str = "x, w, r", **more: Any) -> str | None:
    """Why the target refuses the node; None if it does not."""
    feeds = {"x": numbers(T, B, I)}
    model = lab.model(f"y = LSTM <hidden_size = {H}{attributes}> ({operands})", feeds, weights(4) | more)
    refusal: str | None = lab.target.supports(next(iter(model.graph)), model.opset_imports)
    return refusal


@pytest.mark.parametrize("outputs", ['y, "", c', '"", h', '"", "", c', "y, h", "y"])
def test_any_subset_of_the_outputs(lab: Any, outputs: str) -> None:
    feeds = {"x": numbers(T, B, I)}
    names = [name for name in outputs.replace('"', "").replace(" ", "").split(",") if name]
    body = f"{outputs} = LSTM <hidden_size = {H}> (x, w, r)"
    lab.check(lab.model(body, feeds, weights(4), names), feeds)


def test_weights_may_be_computed(lab: Any) -> None:
    feeds = {"x": numbers(T, B, I), "b": numbers(1, 8 * H)} | weights(4)
    lab.same(f"y = LSTM <hidden_size = {H}> (x, w, r, b)", feeds)


@pytest.mark.parametrize(("cell", "gates", "names"), [("LSTM", 4, ["Tanh", "Relu", "Sigmoid"]), ("RNN", 1, ["Relu"])])
def test_other_activations(lab: Any, cell: str, gates: int, names: list[str]) -> None:
    feeds = {"x": numbers(T, B, I)}
    both = ", ".join(f'"{name}"' for name in names * 2)
    body = f'y = {cell} <hidden_size = {H}, direction = "bidirectional", activations = [{both}]> (x, w, r)'
    lab.same(body, feeds, weights(gates, 2))


def test_a_relu_keeps_nan(lab: Any) -> None:
    feeds = {"x": numbers(T, B, I)}
    feeds["x"][2, 1, 3] = np.nan
    lowered = lab.lower(lab.model(f'y = RNN <hidden_size = {H}, activations = ["Relu"]> (x, w, r)', feeds, weights(1)))
    y = lab.execute(lowered, feeds)["y"]
    assert np.isnan(y[2:, 0, 1]).all()
    assert not np.isnan(y[:2]).any()
    assert not np.isnan(y[:, 0, [0, 2]]).any()


def test_full_lengths_are_no_lengths(lab: Any) -> None:
    feeds = {"x": numbers(T, B, I)}
    lengths = {"b": numbers(1, 8 * H), "lengths": np.full(B, T, np.int32)}
    lab.same(f"y = LSTM <hidden_size = {H}> (x, w, r, b, lengths)", feeds, weights(4) | lengths)


def test_the_batch_may_come_first(lab: Any) -> None:
    """ONNX Runtime has no such layout: the node is held against the one that it has."""
    x, h, c = numbers(T, B, I), numbers(2, B, H), numbers(2, B, H, scale=0.7)
    steps = {"x": x, "h": h, "c": c}
    attributes = f'hidden_size = {H}, direction = "bidirectional"'
    names = ("y", "yh", "yc")
    body = f'y, yh, yc = LSTM <{attributes}> (x, w, r, "", "", h, c)'
    reference = lab.model(body, steps, weights(4, 2), names)
    expected = lab.execute(lab.lower(reference), steps)
    model = lab.model(body, steps, weights(4, 2), names)
    node = next(iter(model.graph))
    node.attributes["layout"] = ir.AttrInt64("layout", 1)
    orders = {"y": (2, 0, 1, 3), "yh": (1, 0, 2), "yc": (1, 0, 2)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        shape = value.shape.numpy()
        value.shape = ir.Shape([shape[axis] for axis in orders.get(value.name, (1, 0, 2))])
    feeds = {name: np.ascontiguousarray(array.transpose(1, 0, 2)) for name, array in steps.items()}
    actual = lab.execute(lab.lower(model), feeds)
    for name, order in orders.items():
        np.testing.assert_array_equal(actual[name], expected[name].transpose(order))


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        (", clip = 3.0", "does not clip"),
        (", input_forget = 1", "do not couple the input and the forget gate"),
        (', activations = ["Sigmoid", "Softsign", "Tanh"]', "know the activations Sigmoid, Tanh, Relu"),
    ],
)
def test_refused_attributes(lab: Any, attributes: str, reason: str) -> None:
    assert reason in str(lstm(lab, attributes))


def test_directions_with_different_activations_are_refused(lab: Any) -> None:
    feeds = {"x": numbers(T, B, I)}
    body = f'y = RNN <hidden_size = {H}, direction = "bidirectional", activations = ["Tanh", "Relu"]> (x, w, r)'
    model = lab.model(body, feeds, weights(1, 2))
    assert "same activations in both directions" in lab.target.supports(next(iter(model.graph)), model.opset_imports)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize(("cell", "gates", "after"), [("LSTM", 4, 0), ("GRU", 3, 0), ("GRU", 3, 1), ("RNN", 1, 0)])
def test_rows_end_on_their_own(lab: Any, cell: str, gates: int, after: int, direction: str, constant: bool) -> None:
    d = 2 if direction == "bidirectional" else 1
    feeds = {"x": numbers(T, B, I), "h": numbers(d, B, H)}
    lengths = {"lengths": np.array([T, 1, T - 2], np.int32)}
    attributes = f'hidden_size = {H}, direction = "{direction}"'
    attributes += f", linear_before_reset = {after}" if cell == "GRU" else ""
    names = ("y", "yh", "yc") if cell == "LSTM" else ("y", "yh")
    body = f'{", ".join(names)} = {cell} <{attributes}> (x, w, r, "", lengths, h)'
    constants = weights(gates, d) | (lengths if constant else {})
    feeds |= {} if constant else lengths
    lab.check(lab.model(body, feeds, constants, names), feeds)


@pytest.mark.parametrize(("cell", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_row_without_steps_ends_with_zeros(lab: Any, cell: str, gates: int) -> None:
    """Whatever its state was before; the other rows end with their own."""
    names, nodes = [], []
    feeds = {"x": numbers(T, B, I), "l": np.array([0, T, 2], np.int32)}
    constants: dict[str, Any] = {"none": np.zeros(B, np.int32)}
    for d, direction in ((1, "forward"), (1, "reverse"), (2, "bidirectional")):
        feeds |= {f"h{d}": numbers(d, B, H)} | ({f"c{d}": numbers(d, B, H, scale=0.7)} if cell == "LSTM" else {})
        constants |= {f"{name}{d}": array for name, array in weights(gates, d).items()}
        for lengths in ("l", "none"):
            results = [f"{kind}{len(names)}" for kind in ("y", "yh", "yc")[: 3 if cell == "LSTM" else 2]]
            state = f"h{d}, c{d}" if cell == "LSTM" else f"h{d}"
            nodes.append(
                f'{", ".join(results)} = {cell} <hidden_size = {H}, direction = "{direction}">'
                f' (x, w{d}, r{d}, "", {lengths}, {state})'
            )
            names += results
    lab.check(lab.model("\n".join(nodes), feeds, constants, names), feeds)


def test_lengths_beyond_the_sequence_are_the_sequence(lab: Any) -> None:
    """ONNX Runtime refuses them; a kernel cannot, and stays inside its memory."""
    feeds = {"x": numbers(T, B, I), "lengths": np.full(B, T, np.int32)}
    model = lab.model(f'y = LSTM <hidden_size = {H}, direction = "reverse"> (x, w, r, "", lengths)', feeds, weights(4))
    lowered = lab.lower(model)
    expected = lab.execute(lowered, feeds)["y"]
    np.testing.assert_array_equal(lab.execute(lowered, feeds | {"lengths": feeds["lengths"] + 9})["y"], expected)
    nothing = lab.execute(lowered, feeds | {"lengths": feeds["lengths"] - 99})["y"]
    np.testing.assert_array_equal(nothing, np.zeros_like(nothing))
