"""Kernels of long chains: as large as the chain is long, and right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphopt.targets.common import fusion_limits, lowering
from graphopt.targets.common.tir import blocks, ieee
from graphopt.targets.common.tir.expressions import parts
from graphopt.targets.gpu.target import OpenClTarget
from tests.helpers.lab import make_model


def numbers(*shape: int) -> Any:
    return np.random.default_rng([4, *shape]).standard_normal(shape).astype(np.float32)


def swishes(count: int) -> str:
    steps = [f"s{i} = Sigmoid(v{i}) v{i + 1} = Mul(v{i}, s{i})" for i in range(count)]
    return f"v0 = Identity(x) {' '.join(steps)} y = Identity(v{count})"


def fibonacci(count: int) -> str:
    steps = [f"v{i + 2} = Add(v{i + 1}, v{i})" for i in range(count)]
    return f"v0 = Mul(x, small) v1 = Mul(v0, small) {' '.join(steps)} y = Tanh(v{count + 1})"


def unary(count: int) -> str:
    kinds = ("Relu", "Tanh", "Abs", "Sigmoid", "Erf", "Exp", "Softplus", "LeakyRelu", "Neg")
    steps = [f"v{i + 1} = {kinds[i % len(kinds)]}(v{i})" for i in range(count)]
    return f"v0 = Identity(x) {' '.join(steps)} y = Identity(v{count})"


def transposed_sums(count: int) -> str:
    """Each value is read at two places."""
    steps = [f"t{i} = Transpose(v{i}) w{i} = Add(v{i}, t{i}) v{i + 1} = Mul(w{i}, small)" for i in range(count)]
    return f"v0 = Identity(x) {' '.join(steps)} y = Identity(v{count})"


CHAINS = {
    "swish": (swishes, 24),
    "fibonacci": (fibonacci, 90),
    "unary": (unary, 120),
    "transposed": (transposed_sums, 24),
}
SMALL = {"small": np.array(0.01, np.float32)}


@pytest.mark.parametrize("name", CHAINS)
def test_chain(lab: Any, name: str) -> None:
    chain, count = CHAINS[name]
    constants = SMALL if "small" in chain(1) else {}
    lab.same(chain(count), {"x": numbers(8, 8)}, constants, rtol=2e-4)


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_twice_as_long_is_twice_as_large(lab: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chain, count = CHAINS[name]
    sizes = []

    def measured(function: Any) -> Any:
        found = blocks.stages(hidden := hide(function))
        sizes.append(sum(1 for stage in found or [] for _ in parts(stage.value)))
        return hidden

    hide = ieee.hide
    monkeypatch.setattr(lowering.ieee, "hide", measured)
    totals = []
    for length in (count // 2, count):
        sizes.clear()
        lab.lower(lab.model(chain(length), {"x": numbers(8, 8)}, SMALL if "small" in chain(1) else {}))
        assert max(sizes) < 2 * fusion_limits.MOST
        totals.append(sum(sizes))
    assert totals[1] < 2.6 * totals[0]


def test_an_epilogue_reads_the_sum_of_a_convolution_once(lab: Any) -> None:
    """y = c * sigmoid(c) behind a product is one kernel, whose value has a name."""
    feeds, constants = {"x": numbers(9, 20)}, {"w": numbers(20, 33)}
    lowered = lab.same("c = MatMul(x, w) s = Sigmoid(c) m = Mul(c, s) y = Add(m, c)", feeds, constants)
    assert len(lowered.calls) == 1


def test_what_other_kernels_read_is_no_part_of_one(lab: Any) -> None:
    """A value that is an output too, and one that a reduction reads."""
    body = "a = Exp(x) b = Mul(a, a) r = ReduceSum<keepdims=1>(b, axis) y = Div(b, r)"
    model = lab.model(body, {"x": numbers(4, 40)}, {"axis": np.array([1])}, outputs=("y", "a"))
    lab.check(model, {"x": numbers(4, 40)})


def test_flags_have_names_too(lab: Any) -> None:
    """A boolean that is read twice."""
    feeds = {"x": numbers(5, 40), "z": numbers(5, 40)}
    body = "g = Greater(x, z) h = Less(x, zero) b = Xor(g, h) n = Not(b) o = And(b, h) p = Or(n, o) y = Where(p, x, z)"
    lab.same(body, feeds, {"zero": np.array(0.0, np.float32)})


def test_chains_on_gpus_stay_small() -> None:
    """The source of a kernel, in which a name is a variable."""
    target = OpenClTarget()
    lengths = []
    for count in (12, 24):
        model = make_model(swishes(count), {"x": numbers(8, 8)}, {}, ("y",), 21)
        graph = model.graph
        lowered = target.lower(list(graph), list(graph.inputs), list(graph.outputs), model.opset_imports, "s_")
        lengths.append(sum(len(made.source) for made in lowered.functions.values()))
    assert lengths[1] < 2.6 * lengths[0]
