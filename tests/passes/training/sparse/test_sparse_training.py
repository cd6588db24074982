"""Parameters that are their kept groups: the same model with zeros elsewhere, and groups that move between steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.errors import GraphoptError, ModelError
from graphopt.graph.constness import stored
from graphopt.graph.state import GRADIENT, Role, mark, role, states
from graphopt.passes.training.sparse.parameter import SparseParameter, sparse_parameters
from graphopt.passes.training.sparse.reallocate import Reallocation, reallocate
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pipeline import Pipeline, PipelineResult
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.text_models import listing, parse

WEIGHTS = {"c": (32, 4, 3, 3), "m": (64, 32), "g": (48, 64), "d": (32, 1, 3, 3), "t": (48, 48), "b": (48,)}


def network() -> ir.Model:
    """A convolution, a depthwise one, a product, a Gemm of a transposed and a product with a transposed weight."""
    model = parse(
        """n (float[2,4,6,6] x, float[32,4,3,3] c, float[32,1,3,3] d, float[64,32] m, float[48,64] g, float[48] b,
        float[48,48] t) => (float[2,48] y) <int64[2] s = {2, 64}> {
        p = Conv(x, c)  q = Conv <group = 32> (p, d)  r = GlobalAveragePool(q)  i = Flatten(r)
        mt = Transpose(m)  u = MatMul(i, mt)  v = Reshape(u, s)  w = Gemm <transB = 1> (v, g, b)  y = MatMul(w, t) }""",
        WEIGHTS,
    )
    for name in WEIGHTS:
        mark(model.graph.initializers[name], Role.PARAMETER)
    return model


def sparse(options: str) -> tuple[ir.Model, PipelineResult]:
    model = network()
    return model, Pipeline.parse(f"sparse-training{{{options}}}").run(model, [Check()])


def arrays(model: ir.Model) -> dict[str, np.ndarray]:
    return {str(value.name): np.asarray(stored(value).numpy()) for value in states(model.graph)}


@pytest.mark.parametrize("granularity", ["element", "block:16x1", "block:4x4", "row", "kernel"])
@pytest.mark.parametrize("more", ["density=0.25", "density=0.5,start=magnitude,slack=0.3"])
def test_it_is_the_model_with_zeros(granularity: str, more: str) -> None:
    model, _ = sparse(f"granularity={granularity},min-weights=0,{more}")
    found = arrays(model)
    twin = network()
    for each in sparse_parameters(model.graph):
        before = np.asarray(stored(twin.graph.initializers[each.name]).numpy())
        dense = each.dense(found[each.values], found[each.places])
        np.testing.assert_array_equal(dense[dense != 0], before[dense != 0])
        count = max(1, round(float(more[8:].split(",")[0]) * each.groups))
        assert np.count_nonzero(dense) == count * each.size
        blocks = each.split(dense)
        assert set(np.count_nonzero(blocks, axis=1)) <= {0, each.size}, "groups are kept whole"
        if "magnitude" in more:
            worth = np.abs(each.split(before)).mean(axis=1)
            assert worth[blocks.any(axis=1)].min() >= worth[~blocks.any(axis=1)].max(initial=0)
        twin.graph.initializers[each.name].const_value = ir.tensor(dense, name=each.name)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 4, 6, 6)).astype(np.float32)}
    for name, array in run_onnxruntime(twin, feeds).items():
        np.testing.assert_array_equal(run_onnxruntime(model, feeds)[name], array)


def test_what_stays_dense_and_why() -> None:
    model, result = sparse("granularity=block:16x1,skip=g")
    reasons = {refusal.node: refusal.reason for refusal in result.steps[0].refusals}
    assert reasons == {
        "d": "it has fewer than 1024 weights",
        "g": "it is to be skipped",
    }
    assert [each.name for each in sparse_parameters(model.graph)] == ["c", "m", "t"]
    _, result = sparse("min-weights=0")
    reasons = {refusal.node: refusal.reason for refusal in result.steps[0].refusals}
    assert reasons == {"d": "it is a depthwise convolution, which has few weights"}
    _, result = sparse("granularity=block:20x1")
    reasons = {refusal.node: refusal.reason for refusal in result.steps[0].refusals}
    assert reasons["c"] == "it has 32 outputs, which 20 does not divide"


def test_no_constant_is_as_large_as_a_weight() -> None:
    model, result = sparse("granularity=block:16x1,density=0.125")
    assert max(np.asarray(stored(value).numpy()).size for value in model.graph.initializers.values()) < 48 * 64 // 2
    (note,) = result.steps[0].notes
    assert note == "1072 of 8576 weights of products and convolutions train (12.5%)"
    assert all(role(v) is Role.COUNTER for v in states(model.graph) if str(v.name).endswith(".places"))


def test_single_weights_are_not_transposed() -> None:
    model, _ = sparse("density=0.5,min-weights=0")
    assert sum(node.op_type == "Transpose" for node in model.graph) == 1, "that of the model"


def test_a_second_run_changes_nothing() -> None:
    model, _ = sparse("density=0.5")
    before = listing(model)
    (step,) = Pipeline.parse("sparse-training{density=0.5}").run(model).steps
    assert not step.modified
    assert listing(model) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("density=0", "the density must be above 0"),
        ("density=1.5", "the density must be above 0 and at most 1"),
        ("granularity=2:4", "use block:HxW"),
        ("granularity=blob", "there is no granularity 'blob'"),
        ("slack=-1", "the slack must be a share"),
        ("seed=-1", "the seed must be from 0 on"),
    ],
)
def test_options_that_mean_nothing(options: str, sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        Pipeline.parse(f"sparse-training{{{options}}}")


def test_its_place_in_the_pipeline() -> None:
    model = network()
    model.graph.initializers["m"].metadata_props[GRADIENT] = "m.gradient"
    with pytest.raises(ModelError, match="run sparse-training before differentiate"):
        Pipeline.parse("sparse-training").run(model)


@settings(max_examples=30, deadline=None)
@given(
    outputs=st.integers(1, 4),
    inputs=st.integers(1, 4),
    taps=st.lists(st.integers(1, 3), max_size=2),
    group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    flip=st.booleans(),
)
def test_groups_and_back(outputs: int, inputs: int, taps: list[int], group: tuple[int, int], flip: bool) -> None:
    axes = (1, 0) if flip and not taps else tuple(range(2 + len(taps)))
    logical = (outputs * group[0], inputs * group[1], *taps)
    shape = tuple(logical[axis] for axis in np.argsort(axes))
    each = SparseParameter("w", "w.values", "w.places", shape, axes, (*group, 1))
    dense = np.random.default_rng(0).standard_normal(shape)
    blocks = each.split(dense)
    assert blocks.shape == (each.groups, each.size)
    seen = dense.transpose(axes).reshape(each.extents)
    np.testing.assert_array_equal(np.sort(blocks[0]), np.sort(seen[: group[0], : group[1], 0], axis=None))
    np.testing.assert_array_equal(each.dense(blocks, np.arange(each.groups)), dense)
    assert SparseParameter.from_json(each.to_json()) == each


def reallocated(options: str, rounds: int, edit: Any = None) -> list[dict[str, np.ndarray]]:
    model, _ = sparse(options)
    parameters = sparse_parameters(model.graph)
    state = arrays(model)
    along = [f"{each.values}.momentum" for each in parameters]
    state.update({name: np.ones_like(state[name.removesuffix(".momentum")]) for name in along})
    history, following = [dict(state)], Reallocation(0.3)
    for number in range(rounds):
        generator = np.random.default_rng(number)
        for each in parameters:  # what training does: other values in all slots in use
            drawn = generator.standard_normal(state[each.values].shape).astype(np.float32)
            state[each.values] = np.where((state[each.places] < each.groups)[:, None], drawn, 0)
        if edit:
            edit(state)
        before = dict(state)
        following, moved = reallocate(parameters, state, along, following)
        assert sum(gone for gone, _ in moved.values()) == sum(come for _, come in moved.values())
        for each in parameters:
            old, new = before[each.places], state[each.places]
            used = new[new < each.groups]
            assert (
                len(set(used.tolist()))
                == len(used)
                == int((old < each.groups).sum()) - moved[each.name][0] + (moved[each.name][1])
            )
            assert (np.diff(new) >= 0).all()
            for name in (each.values, f"{each.values}.momentum"):
                dense, now = each.dense(before[name], old), each.dense(state[name], new)
                blocks = each.split(now)
                np.testing.assert_array_equal(blocks[blocks != 0], each.split(dense)[blocks != 0], "what stays")
                left = int((old < each.groups).sum()) - moved[each.name][0]
                assert np.count_nonzero(blocks.any(axis=1)) <= left, "new groups are zero"
        history.append(dict(state))
    return history


@pytest.mark.parametrize("options", ["density=0.25", "granularity=block:16x1,density=0.5,slack=0.5", "density=1"])
def test_groups_move_and_their_total_stays(options: str) -> None:
    history = reallocated(options, 3)
    totals = [sum(int((state[name] < 10**6).sum()) for name in ("m.places",)) for state in history]
    assert len(set(totals)) == 1
    changed = not np.array_equal(history[0]["m.places"], history[-1]["m.places"])
    assert changed == (options != "density=1"), "a dense layer has no other places"


def test_layers_exchange_groups_where_they_have_room() -> None:
    """What survives in a layer decides how many new groups it gets."""

    def weaken(state: dict[str, np.ndarray]) -> None:
        state["m.values"] = state["m.values"] * np.float32(0.01)

    history = reallocated("granularity=block:16x1,density=0.25,slack=1", 2, weaken)
    used = [
        {name: int((state[f"{name}.places"] < groups).sum()) for name, groups in SIZES.items()} for state in history
    ]
    assert used[-1]["m"] < used[0]["m"]
    assert sum(used[-1].values()) == sum(used[0].values())


SIZES = {"c": 2 * 4 * 9, "m": 4 * 32, "g": 3 * 64, "t": 3 * 48}


def test_bad_numbers_go_first() -> None:
    def spoil(state: dict[str, np.ndarray]) -> None:
        state["g.values"][:] = np.nan

    history = reallocated("density=0.25", 1, spoil)
    assert np.count_nonzero(np.isnan(history[-1]["g.values"])) <= 1, "a layer keeps one group"
    with pytest.raises(GraphoptError, match="between 0 and 1"):
        Reallocation(1.0)


def test_nothing_to_move() -> None:
    assert reallocate([], {}, [], Reallocation()) == (Reallocation(), {})
