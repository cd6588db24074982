"""Stochastic rounding: to one of the two neighbours, right in the mean, and the same numbers everywhere."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import ops
from graphopt.program.program import NativeSegment
from graphopt.verify.oracle import run_onnxruntime

KINDS = {10: np.float16, 16: ml_dtypes.bfloat16}


def rounding(shape: tuple[int, ...], to: int, seed: int) -> ir.Model:
    """x -> StochasticCast -> Cast to float32, for numpy has no bfloat16."""
    x, counter = ir.val("x", ir.DataType.FLOAT, shape), ir.val("counter", ir.DataType.INT64, ())
    node = ir.node("StochasticCast", [x, counter], {"seed": seed, "to": to}, domain=ops.DOMAIN, name="round")
    wide = ir.node("Cast", [node.outputs[0]], {"to": 1}, name="widen")
    for output, name, kind in ((node.outputs[0], "narrow", to), (wide.outputs[0], "y", 1)):
        output.name, output.shape, output.type = name, ir.Shape(shape), ir.TensorType(ir.DataType(kind))
    imports = {"": 20, ops.DOMAIN: ops.VERSION}
    graph = ir.Graph([x, counter], wide.outputs, nodes=[node, wide], opset_imports=imports, name="g")
    model = ir.Model(graph, ir_version=10)
    ops.ensure(model, "StochasticCast")
    return model


def cast(numbers: np.ndarray, to: int, counter: int = 0, seed: int = 0) -> np.ndarray:
    feeds = {"x": np.asarray(numbers, np.float32), "counter": np.asarray(counter)}
    return np.asarray(run_onnxruntime(rounding(np.shape(numbers), to, seed), feeds)["y"])


def narrow(to: int, count: int) -> np.ndarray:
    """Numbers of the narrow type in float32, of all magnitudes."""
    bits = np.random.default_rng(0).integers(0, 2**16, count).astype(np.uint16)
    numbers = bits.view(KINDS[to]).astype(np.float32)
    small = np.abs(numbers) < (2.0**-100 if to == 16 else 0)
    return numbers[np.isfinite(numbers) & ~small]


@pytest.mark.parametrize("to", KINDS)
def test_numbers_of_the_narrow_type_stay(to: int) -> None:
    numbers = narrow(to, 20000)
    np.testing.assert_array_equal(cast(numbers, to), numbers)


@pytest.mark.parametrize("to", KINDS)
def test_others_become_one_of_their_neighbours_and_are_right_in_the_mean(to: int) -> None:
    low = np.abs(narrow(to, 200))[:40]
    low = low[(low > 1e-6) & (low < 1e4)]
    high = np.nextafter(low.astype(KINDS[to]), KINDS[to](np.inf)).astype(np.float32)
    for share in (0.125, 0.5, 0.9):
        for sign in (1, -1):
            numbers = sign * (low + np.float32(share) * (high - low))
            found = cast(np.repeat(numbers[None], 4000, axis=0), to)
            assert np.isin(found, sign * np.stack([low, high])).all()
            ups = (found == sign * high).mean(axis=0)
            np.testing.assert_allclose(ups, share, atol=0.04)  # five deviations


@pytest.mark.parametrize("to", KINDS)
def test_special_numbers(to: int) -> None:
    numbers = np.float32([np.inf, -np.inf, np.nan, 0, -0.0])
    np.testing.assert_array_equal(cast(numbers, to), numbers)
    tiny = cast(np.full(1000, 1e-40, np.float32), to).astype(np.float64)
    assert set(tiny.tolist()) <= {0.0, 2.0**-24 if to == 10 else 2.0**-107}
    if to == 10:
        half = cast(np.full(4000, 2.0**-25, np.float32), to)
        assert 0.4 < float((half != 0).mean()) < 0.6, "a number below the smallest counts in the mean"


def test_counter_and_seed_draw_others() -> None:
    numbers = np.full(1000, 1 + 2.0**-9, np.float32)
    first, again, counted, seeded = (cast(numbers, 16, *more) for more in ((), (), (1,), (0, 1)))
    np.testing.assert_array_equal(first, again)
    assert 300 < np.count_nonzero(first != counted) < 700
    assert 300 < np.count_nonzero(first != seeded) < 700


@pytest.mark.parametrize("to", KINDS)
def test_the_kernel_gives_the_same_bits(to: int) -> None:
    artifact = graphopt.compile(rounding((64, 33), to, 7), costs="roofline", verify="off")
    segments = [segment for stage in artifact.program.stages for segment in stage.segments]
    assert all(isinstance(segment, NativeSegment) for segment in segments)
    generator = np.random.default_rng(0)
    numbers = (generator.standard_normal((64, 33)) * 2.0 ** generator.integers(-30, 15, (64, 33))).astype(np.float32)
    numbers[0, :5] = [np.inf, -np.inf, np.nan, 0, 1e-41]
    numbers[0, 5] = np.uint32(0x7F800001).view(np.float32)  # a NaN whose high half is that of infinity
    given: dict[str, Any] = {"x": numbers, "counter": np.asarray(2**33 + 5)}
    found = artifact.session().run(given)["y"]
    np.testing.assert_array_equal(found, cast(numbers, to, 2**33 + 5, 7))
