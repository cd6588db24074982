"""What depends on constants only: computed once, kept once."""

from typing import Any

import numpy as np
import pytest

from graphopt.program.program import Place
from graphopt.targets.common.constants import equal_arrays


def numbers(*shape: int) -> Any:
    return np.random.default_rng([3, *shape]).standard_normal(shape).astype(np.float32)


def kept(lowered: Any) -> int:
    """Bytes of all weights of more than a vector."""
    return sum(array.nbytes for array in lowered.constants.values() if array.size > 64)


STEPS = " ".join(f"m{i} = MatMul(t{i}, w{{}}) t{i + 1} = Tanh(m{i})" for i in range(4))


@pytest.mark.parametrize("names", [("", "", "", ""), ("0", "1", "0", "1")], ids=["one name", "two names"])
def test_a_weight_that_many_nodes_use_is_packed_once(lab: Any, names: tuple[str, ...]) -> None:
    """Also where the exporter wrote it under two names, with equal bytes."""
    weight = numbers(96, 96)
    body = "t0 = Relu(x) " + STEPS.format(*names) + " y = Neg(t4)"
    lowered = lab.same(body, {"x": numbers(3, 96)}, {f"w{name}": weight for name in names})
    assert weight.nbytes <= kept(lowered) <= 1.1 * weight.nbytes


def test_weights_that_differ_in_one_bit_stay_apart(lab: Any) -> None:
    weight = numbers(96, 96)
    other = weight.copy()
    other[95, 95] = np.nextafter(other[95, 95], np.float32(9))
    lowered = lab.same("a = MatMul(x, w) y = MatMul(a, v)", {"x": numbers(3, 96)}, {"w": weight, "v": other})
    assert kept(lowered) >= 2 * weight.nbytes


def test_views_of_one_weight_are_one(lab: Any) -> None:
    constants = {"w": numbers(96, 96), "shape": np.array([2, 48, 96])}
    body = "a = Reshape(w, shape) b = Reshape(w, shape) c = MatMul(x, a) d = MatMul(x, b) y = Sub(c, d)"
    lowered = lab.same(body, {"x": numbers(5, 48)}, constants)
    assert kept(lowered) <= 1.2 * constants["w"].nbytes


def test_equal_constant_results_are_outputs_of_their_own_names(lab: Any) -> None:
    feeds = {"x": numbers(40)}
    model = lab.model(
        "p = Exp(w) q = Exp(v) s = Exp(w) y = Mul(x, p) z = Mul(x, s)",
        feeds,
        {"w": numbers(40), "v": numbers(40)},
        outputs=("y", "z", "p", "q", "s"),
    )
    lowered = lab.check(model, feeds)
    assert {lowered.values[name].place for name in "pqs"} <= {Place.WEIGHT, Place.VIEW}
    assert len(lowered.constants) == 1


def test_equal_arrays_are_compared_by_bytes_dtype_and_shape() -> None:
    one, nan = np.ones((2, 3), np.float32), np.full((2, 3), np.nan, np.float32)
    arrays = {
        "a": one, "b": one.copy(), "c": one.reshape(3, 2), "d": one.view(np.int32), "e": nan, "f": nan.copy(),
        "g": np.zeros(4), "h": -np.zeros(4), "i": np.empty(0), "j": np.empty(0), "k": np.broadcast_to(one[:1], (2, 3)),
    }  # fmt: skip
    assert list(map(sorted, equal_arrays(arrays))) == [["a", "b", "k"], ["e", "f"], ["i", "j"]]
