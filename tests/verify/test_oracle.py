import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.errors import ModelError, VerificationError
from graphopt.verify.oracle import TOLERANCES, compare, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal


def parse(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 11, opset_import: ["": 20]>\n{text}')


def test_inputs_are_the_same_for_a_seed() -> None:
    model = parse("g (float[2,3] x, float16[4] h, bool[50] b) => (float[2,3] y) { y = Relu(x) }")
    first, again, other = (random_inputs(model, seed) for seed in (0, 0, 1))
    assert {name: (a.dtype.name, a.shape) for name, a in first.items()} == {
        "x": ("float32", (2, 3)),
        "h": ("float16", (4,)),
        "b": ("bool", (50,)),
    }
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).any()
    assert first["b"].any()
    assert not first["b"].all()


RANGES = {
    "gather": ("g (int64[999] i, float[3,7] d) => (float[3,999] y) { y = Gather<axis = 1>(d, i) }", 0, 6),
    "gather through a reshape": (
        "g (int64[999] i, float[5,2] d) => (float[999,1,2] y) <int64[1] a = {1}>"
        "{ c = Cast<to = 6>(i)  u = Unsqueeze(c, a)  y = Gather(d, u) }",
        0,
        4,
    ),
    "two tables": (
        "g (int64[999] i, float[9] d, float[4] e) => (float[999] y)"
        "{ p = Gather(d, i)  q = Gather(e, i)  y = Add(p, q) }",
        0,
        3,
    ),
    "mask": ("g (int64[999] i) => (float[999] y) { y = Cast<to = 1>(i) }", 0, 1),
    "compared": ("g (int64[999] i) => (bool[999] y) <int64 k = {0}> { y = Greater(i, k) }", 0, 1),
    "divisor": ("g (int64[999] i, int64[999] n) => (int64[999] y) { y = Div(n, i) }", 1, 7),
    "bytes": ("g (uint8[9999] i) => (uint8[9999] y) { y = Identity(i) }", 0, 255),
    "signed bytes": ("g (int8[9999] i) => (int8[9999] y) { y = Identity(i) }", -128, 127),
    "sequence lengths": (
        "g (int32[99] i, float[6,99,2] x, float[1,12,2] w, float[1,12,3] r) => (float[6,1,99,3] y)"
        '{ y = LSTM<hidden_size = 3>(x, w, r, "", i) }',
        1,
        6,
    ),
}


@pytest.mark.parametrize("name", RANGES)
def test_integers_stay_in_range(name: str) -> None:
    text, low, high = RANGES[name]
    model = parse(text)
    feeds = random_inputs(model, 0)
    assert (feeds["i"].min(), feeds["i"].max()) == (low, high)
    run_onnxruntime(model, feeds)


def test_strings() -> None:
    model = parse("g (string[9] x) => (string[9] y) { y = Identity(x) }")
    feeds = random_inputs(model, 0)
    assert set(feeds["x"]) <= {"a", "b"}
    assert compare(feeds | {"y": feeds["x"]}, feeds | run_onnxruntime(model, feeds)) == []


def test_dynamic_inputs_are_refused() -> None:
    model = parse('g (float["n",2] x) => (float["n",2] y) { y = Relu(x) }')
    with pytest.raises(ModelError, match="input x has no static shape; fix it with --shapes x:"):
        random_inputs(model, 0)


def test_onnxruntime_errors_are_one_sentence() -> None:
    model = parse("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    with pytest.raises(VerificationError, match="ONNX Runtime cannot run g: .*") as error:
        run_onnxruntime(model, {"x": np.zeros(3, np.float32)})
    assert "\n" not in str(error.value)


@given(st.integers(0, 2**32 - 1))
def test_rounding_passes_and_one_wrong_element_does_not(seed: int) -> None:
    generator = np.random.default_rng(seed)
    a = generator.standard_normal((4, 50)).astype(np.float32)
    noise = (a * (1 + generator.uniform(-1, 1, a.shape) * 1e-6)).astype(np.float32)
    assert compare({"y": a}, {"y": noise}) == []
    defect = a.copy()
    row, column = generator.integers(4), generator.integers(50)
    defect[row, column] += 0.01  # a bias forgotten in one place
    (found,) = compare({"y": a}, {"y": defect})
    assert found.index == (row, column)
    assert found.expected == a[row, column]
    assert found.actual == defect[row, column]


def test_small_outputs_are_not_lost_in_an_absolute_tolerance() -> None:
    a = np.full(1000, 1e-3, np.float32)  # a softmax over a thousand classes
    b = a.copy()
    b[7] *= 1.01
    assert compare({"y": a}, {"y": b})[0].index == (7,)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_tolerances_follow_the_dtype(dtype: str) -> None:
    rtol = TOLERANCES[dtype].rtol
    a = np.array([1.0, 2.0], dtype)
    assert compare({"y": a}, {"y": a * (1 + rtol / 4)}) == []
    assert compare({"y": a}, {"y": (a * (1 + rtol * 4)).astype(dtype)})


@pytest.mark.parametrize(
    ("expected", "actual", "message"),
    [
        ([1.0, np.nan], [1.0, 2.0], "NaN and infinities must be at the same places"),
        ([1.0, 2.0], [1.0, np.nan], "output y at [1] is nan, expected 2.0"),
        ([np.inf, 2.0], [-np.inf, 2.0], "output y at [0] is -inf, expected inf"),
        ([np.inf, 2.0], [np.inf, 3.0], "output y at [1] is 3.0, expected 2.0"),
    ],
)
def test_not_finite(expected: list[float], actual: list[float], message: str) -> None:
    assert message in compare({"y": np.array(expected)}, {"y": np.array(actual)})[0].message


def test_equal_nan_and_infinities_agree() -> None:
    a = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert compare({"y": a}, {"y": a.copy()}) == []


def test_integers_and_bool_are_exact() -> None:
    assert compare({"y": np.array([100, 7])}, {"y": np.array([101, 7])})[0].index == (0,)
    assert compare({"y": np.array([True])}, {"y": np.array([False])})


def test_shape_dtype_missing_and_sequences() -> None:
    a = np.zeros((2, 3), np.float32)
    assert compare({"y": a}, {})[0].message == "output y is missing"
    assert "has shape (3, 2)" in compare({"y": a}, {"y": a.reshape(3, 2)})[0].message
    assert "has dtype float64" in compare({"y": a}, {"y": a.astype(np.float64)})[0].message
    assert compare({"y": a}, {"y": a, "other": a}) == []
    assert compare({"y": [a, a]}, {"y": [a, a + 1]})[0].output == "y[1]"
    assert "has 1 elements" in compare({"y": [a, a]}, {"y": [a]})[0].message


def test_extents_of_what_a_loop_never_collected_are_unknown() -> None:
    def empty(*shape: int) -> dict[str, np.ndarray]:
        return {"y": np.zeros(shape, np.float32)}

    assert compare(empty(0, 3, 0), empty(0, 3, 2)) == compare(empty(0, 3, 2), empty(0, 0, 2)) == []
    for shape in ((0, 4, 2), (0,), (0, 2), (1, 3, 2), (0, 3, 2, 1)):
        assert "has shape" in compare(empty(0, 3, 2), empty(*shape))[0].message
    assert "has shape" in compare(empty(3, 0, 2), empty(3, 1, 2))[0].message


def test_require_equal_names_the_place() -> None:
    a = np.zeros((2, 3), np.float32)
    b = a.copy()
    b[1, 2] = 5
    with pytest.raises(VerificationError, match=r"after fuse: output y at \[1, 2\] is 5.0, expected 0.0 .*; 1 more"):
        require_equal({"y": a, "z": a}, {"y": b, "z": b}, "after fuse")
