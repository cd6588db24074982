"""Calls, views and constants of a lowered segment."""

from typing import Any

import numpy as np
import pytest

from graphopt.program.program import Place


def numbers(*shape: int) -> Any:
    return np.random.default_rng([2, *shape]).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "body",
    [
        "y = Reshape(x, shape)",
        "f = Flatten<axis=1>(x) y = Reshape(f, shape)",
        "s = Unsqueeze(x, axes) t = Squeeze(s, axes) y = Reshape(t, shape)",
    ],
)
def test_views_cost_no_call(lab: Any, body: str) -> None:
    constants = {"shape": np.array([4, 6]), "axes": np.array([0])}
    constants = {name: array for name, array in constants.items() if name in body}
    lowered = lab.same(body, {"x": numbers(2, 3, 4)}, constants)
    assert not lowered.calls
    assert lowered.values["y"].place is Place.VIEW
    assert lowered.values["y"].of == "x"


def test_a_view_between_kernels_costs_no_call(lab: Any) -> None:
    body = "a = MatMul(x, w) r = Reshape(a, shape) y = Softmax(r)"
    lowered = lab.same(body, {"x": numbers(4, 5)}, {"w": numbers(5, 6), "shape": np.array([3, 8])})
    assert len(lowered.calls) == 2
    (view,) = (v for v in lowered.values.values() if v.place is Place.VIEW and v.shape == (3, 8))
    assert view.of == lowered.calls[0].outputs[0]


def test_parts_of_a_concat_are_written_in_their_places(lab: Any) -> None:
    """Convolutions, and a Concat inside a Concat: no call copies anything."""
    body = "a = Relu(x) b = Exp(x) c = Concat<axis=1>(a, b) d = Sqrt(a) y = Concat<axis=-3>(c, d)"
    lowered = lab.same(body, {"x": np.abs(numbers(1, 16, 16, 16))}, {})
    assert len(lowered.calls) == 3
    places = [lowered.values[call.outputs[0]] for call in lowered.calls]
    assert [(value.place, value.of, value.offset) for value in places] == [
        (Place.VIEW, "y", 0),
        (Place.VIEW, "y", 16384),
        (Place.VIEW, "y", 32768),
    ]


def test_a_part_that_cannot_be_placed_is_copied(lab: Any) -> None:
    """An input of the segment, a constant, a part that occurs twice, and parts of two results."""
    body = "a = Relu(x) y = Concat<axis=1>(x, a, w, a) z = Concat<axis=1>(a, y)"
    feeds = {"x": numbers(1, 16, 16, 16)}
    model = lab.model(body, feeds, {"w": numbers(1, 4, 16, 16)}, outputs=("y", "z", "a"))
    lowered = lab.check(model, feeds)
    assert len(lowered.calls) == 5
    assert lowered.values["z"].place is Place.ARENA
    assert (lowered.values["y"].of, lowered.values["y"].offset) == ("z", 16384)
    assert (lowered.values["a"].of, lowered.values["a"].offset) == ("z", 16384 + 16384)


@pytest.mark.parametrize(("shape", "axis"), [((1, 16, 16, 16), 2), ((2, 16, 16, 16), 1), ((1, 5, 33, 33), 1)])
def test_parts_that_interleave_or_are_not_aligned_are_copied(lab: Any, shape: Any, axis: int) -> None:
    body = f"a = MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(x) y = Concat<axis={axis}>(a, x)"
    lowered = lab.same(body, {"x": numbers(*shape)}, {})
    assert len(lowered.calls) == 2
    assert all(value.place is not Place.VIEW for value in lowered.values.values())


def test_what_depends_on_constants_only_is_computed_at_compile_time(lab: Any) -> None:
    constants = {"w": numbers(5, 40), "v": numbers(5, 40), "shape": np.array([40, 5])}
    body = "s = Add(w, v) e = Exp(s) t = Transpose<perm=[1,0]>(e) u = Reshape(e, shape) m = Add(t, u) y = MatMul(x, m)"
    lowered = lab.same(body, {"x": numbers(3, 40)}, constants)
    (call,) = lowered.calls
    assert lowered.values[call.inputs[0]].of == "x"
    assert set(lowered.functions) == {call.symbol}, "code that ran at compile time is not shipped"
    assert not {"w", "v"} & set(lowered.constants), "weights that nobody reads any more are not shipped"
    (packed,) = lowered.constants.values()
    assert packed.shape[-2] == 40


def test_no_packing_at_run_time(any_lab: Any) -> None:
    body = "a = MatMul(x, w) b = Gemm<transB=1>(a, v, c) y = Conv(z, k)"
    constants = {"w": numbers(5, 6), "v": numbers(7, 6), "c": numbers(7), "k": numbers(4, 2, 3, 3)}
    model = any_lab.model(body, {"x": numbers(4, 5), "z": numbers(1, 2, 6, 6)}, constants, outputs=("b", "y"))
    lowered = any_lab.check(model, {"x": numbers(4, 5), "z": numbers(1, 2, 6, 6)})
    assert not [call.symbol for call in lowered.calls if "pack" in call.symbol or "transpose" in call.symbol]


def test_a_constant_output(lab: Any) -> None:
    constants = {"w": numbers(3, 40), "v": numbers(3, 40)}
    model = lab.model("y = Add(w, v) z = Relu(x)", {"x": numbers(2)}, constants, outputs=("y", "z"))
    lowered = lab.check(model, {"x": numbers(2)})
    assert len(lowered.calls) == 1
    assert lowered.values["y"].place in (Place.VIEW, Place.WEIGHT)


def test_an_output_twice(lab: Any) -> None:
    """Two names for one result: Relu of the same input, which the importer may merge or not."""
    model = lab.model("y = Relu(x) z = Identity(y)", {"x": numbers(3, 4)}, outputs=("y", "z"))
    lowered = lab.check(model, {"x": numbers(3, 4)})
    assert len(lowered.calls) == 1
    assert {lowered.values["y"].place, lowered.values["z"].place} == {Place.ARENA, Place.VIEW}


def test_an_output_that_is_an_input(lab: Any) -> None:
    lowered = lab.check(lab.model("y = Identity(x)", {"x": numbers(3, 4)}), {"x": numbers(3, 4)})
    assert not lowered.calls
    assert lowered.values["y"].of == "x"


def test_a_view_of_an_output_that_is_an_output(lab: Any) -> None:
    model = lab.model("y = Relu(x) z = Reshape(y, s)", {"x": numbers(3, 4)}, {"s": np.array([12])}, outputs=("y", "z"))
    lowered = lab.check(model, {"x": numbers(3, 4)})
    assert (lowered.values["z"].place, lowered.values["z"].of) == (Place.VIEW, "y")
    model.graph.outputs.reverse()
    lab.check(model, {"x": numbers(3, 4)})


def test_an_operator_with_several_outputs(lab: Any) -> None:
    model = lab.model("y, z = Split<axis=1, num_outputs=2>(x)", {"x": numbers(3, 8)}, outputs=("y", "z"))
    lab.check(model, {"x": numbers(3, 8)})
    model = lab.model("y, z = TopK(x, k)", {"x": numbers(3, 8)}, {"k": np.array([2])}, outputs=("y", "z"))
    lab.check(model, {"x": numbers(3, 8)})


def test_a_value_used_by_several_kernels(lab: Any) -> None:
    body = "a = Exp(x) b = Softmax(a) c = MatMul(a, w) d = Add(b, a) y = MatMul(d, v)"
    model = lab.model(body, {"x": numbers(4, 8)}, {"w": numbers(8, 8), "v": numbers(8, 8)}, outputs=("y", "c", "a"))
    lab.check(model, {"x": numbers(4, 8)})


def test_prefixes_keep_the_values_of_segments_apart_and_their_kernels_are_shared(lab: Any) -> None:
    model = lab.model("a = Relu(x) y = Softmax(a)", {"x": numbers(3, 4)})
    graph = model.graph
    made = [
        lab.target.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, prefix)
        for prefix in ("s0_", "s1_")
    ]
    assert set(made[0].functions) == set(made[1].functions)
    assert set(made[0].values) & set(made[1].values) == {"x", "y"}


def test_lowering_twice_gives_the_same(lab: Any) -> None:
    body = "a = MatMul(x, w) b = Add(a, x) c = Softmax(b) y = MatMul(c, w)"
    model = lab.model(body, {"x": numbers(8, 8)}, {"w": numbers(8, 8)})
    first, second = lab.lower(model), lab.lower(model)
    assert first.calls == second.calls
    assert first.values == second.values
    assert {k: str(v) for k, v in first.functions.items()} == {k: str(v) for k, v in second.functions.items()}
    for name, array in first.constants.items():
        np.testing.assert_array_equal(array, second.constants[name])


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8", "float64", "bool"])
def test_elementwise_on_other_dtypes(lab: Any, dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 90, (3, 5, 7)).astype(dtype)
    body = "y = Not(x)" if dtype == "bool" else "a = Sub(x, z) y = Max(a, x)"
    lab.same(body, {"x": values} if dtype == "bool" else {"x": values, "z": values[:, :1].copy()})


@pytest.mark.parametrize("shape", [(), (1,), (1, 1, 1)])
def test_one_element(lab: Any, shape: tuple[int, ...]) -> None:
    lab.same("a = Exp(x) b = Add(a, x) y = Tanh(b)", {"x": np.asarray(numbers(*shape))})


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 4, 5)])
def test_no_element(lab: Any, shape: tuple[int, ...]) -> None:
    lab.same("a = Exp(x) b = Add(a, x) y = Relu(b)", {"x": numbers(*shape)})


def test_calls_name_the_nodes_they_compute(lab: Any) -> None:
    """Also where an operator has several outputs, of which some are not read."""
    body = "a = MatMul(x, w) b = Relu(a) v, i = TopK(b, k) r = Reshape(i, s) f = Cast<to=1>(r) y = Softmax(f)"
    constants = {"w": numbers(5, 40), "k": np.array([2]), "s": np.array([2, 3])}
    lowered = lab.check(lab.model(body, {"x": numbers(3, 5)}, constants), {"x": numbers(3, 5)})
    named = [name for call in lowered.calls for name in call.origin]
    assert set(named) >= {"matmul0", "relu1", "topk2", "cast4", "softmax5"}
    assert all(call.origin for call in lowered.calls)
    assert lowered.calls[0].origin == ("matmul0", "relu1")
