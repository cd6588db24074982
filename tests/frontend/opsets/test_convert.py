"""The conversion of single nodes that ONNX Runtime does not run at their opset, and of nodes in functions."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import ModelError
from graphopt.frontend.load import load
from graphopt.frontend.opsets.runtime import SIGNATURES
from graphopt.frontend.opsets.table import RULES
from graphopt.frontend.opsets.unchanged import UNCHANGED
from graphopt.graph.opsets import OPSET
from graphopt.verify.oracle import run_onnxruntime


def text(graph: str, opset: int, imports: str = "", functions: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}{imports}]> {graph}\n{functions}')


def run(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    return list(run_onnxruntime(model, feeds).values())


def test_every_change_of_every_operator_is_in_the_tables() -> None:
    changes: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            changes.setdefault(schema.name, set()).add(schema.since_version)
    for name, versions in changes.items():
        later = versions - {min(versions)}
        assert later <= set(RULES.get(name, ())) | set(UNCHANGED.get(name, ())), name
        assert not set(RULES.get(name, ())) & set(UNCHANGED.get(name, ())), name


def test_operators_of_onnx_runtime_that_onnx_lacks_are_known() -> None:
    state = pytest.importorskip("onnxruntime.capi.onnxruntime_pybind11_state")
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    kernels = {
        kernel.op_name for kernel in state.get_all_opkernel_def() if kernel.domain == "" and "CPU" in kernel.provider
    }
    assert kernels - known - set(SIGNATURES) == {"MemcpyFromHost", "MemcpyToHost"}  # which only ONNX Runtime inserts


@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("operator", ["Add", "Mul", "Pow", "Div", "Sub"])
def test_broadcasting_at_the_end(operator: str, shape: tuple[int, ...]) -> None:
    dims = ",".join(map(str, shape))
    graph = f"g (float[2,3,4,5] x, float[{dims}] b) => (float[2,3,4,5] y) {{ y = {operator}<broadcast = 1>(x, b) }}"
    ours = load(text(graph, 6)).model
    assert [node.op_type for node in ours.graph] == [operator]


@pytest.mark.parametrize(("shape", "axis"), [((3,), 1), ((3, 4), 1), ((2,), 0), ((4,), -2), ((4, 5), 2), ((2, 3), 0)])
def test_broadcasting_at_an_axis(shape: tuple[int, ...], axis: int) -> None:
    dims = ",".join(map(str, shape))
    graph = f"""g (float[2,3,4,5] x, float[{dims}] b) => (float[2,3,4,5] y, bool[2,3,4,5] z) {{
        y = Sub<broadcast = 1, axis = {axis}>(x, b) z = Greater<broadcast = 1, axis = {axis}>(x, b) }}"""
    rng = np.random.default_rng(0)
    x, b = rng.standard_normal((2, 3, 4, 5)).astype(np.float32), rng.standard_normal(shape).astype(np.float32)
    start = axis % 4
    wide = b.reshape((1,) * start + shape + (1,) * (4 - start - len(shape)))
    y, z = run(load(text(graph, 6)).model, x=x, b=b)
    np.testing.assert_array_equal(y, x - wide)
    np.testing.assert_array_equal(z, x > wide)


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ("g (float[2,3,4] x, float[3] s) => (float[2,3,4] y) { y = PRelu<consumed_inputs = [0, 0]>(x, s) }",
         lambda x, s: np.where(x < 0, x * s[:, None], x)),
        ("g (float[2,3,4] x, float[1] s) => (float[2,3,4] y) { y = PRelu(x, s) }",
         lambda x, s: np.where(x < 0, x * s, x)),
        ("g (float[2,3,4] x, float[1] s) => (int32[2,3,4] y) { y = Cast<to = \"INT32\">(x) }",
         lambda x, s: x.astype(np.int32)),
        ("g (float[2,3,4] x, float[1] s) => (float[2,3,4] y) { y = Clip<max = 0.5, consumed_inputs = [0]>(x) }",
         lambda x, s: np.minimum(x, np.float32(0.5))),
        ("g (float[2,3,4] x, float[1] s) => (float[6,4] y) { y = Reshape<shape = [-1, 4], consumed_inputs = [0]>(x) }",
         lambda x, s: x.reshape(6, 4)),
        ("g (float[2,3,4] x, float[1] s) => (float[2,7,5] y) { y = Pad<paddings = [0,1,0,0,3,1], value = 2.0>(x) }",
         lambda x, s: np.pad(x, ((0, 0), (1, 3), (0, 1)), constant_values=2)),
        ("g (float[2,3,4] x, float[1] s) => (float[2,6,4] y) { y = Concat(x, x) }",
         lambda x, s: np.concatenate([x, x], 1)),
        ("""g (float[2,3,4] x, float[1] s) => (float[2,9,4] y) {
            n = Constant<value = float {3.0}>() a = Constant<value = float {1.0}>() y = Tile(x, n, a) }""",
         lambda x, s: np.tile(x, (1, 3, 1))),
        ("g (float[2,3,4] x, float[3] s) => (float[2,3,4] y) {"
         "y = BatchNormalization<is_test = 1, consumed_inputs = [0,0,0,1,1], epsilon = 0.0>(x, s, s, s, s) }",
         lambda x, s: (x - s[:, None]) / np.sqrt(s[:, None]) * s[:, None] + s[:, None]),
        ("g (float[2,3,4] x, float[1] s) => (float[2,3,4] y) { z = Dropout<is_test = 1, ratio = 0.9>(x) y = Selu(z) }",
         lambda x, s: np.float32(1.0507) * np.where(x > 0, x, np.float32(1.6732) * (np.exp(x) - 1))),
    ],
)  # fmt: skip
def test_operators_of_the_first_opsets(graph: str, expected: object) -> None:
    rng = np.random.default_rng(0)
    model = text(
        graph, 1 if any(each in graph for each in ("consumed_inputs", "paddings", "INT32", "Tile", "Concat")) else 6
    )
    if "Dropout" in graph:
        model = text(graph.replace("Selu(z)", "Selu<alpha = 1.6732, gamma = 1.0507>(z)"), 6)
    feeds = {
        info.name: np.abs(rng.standard_normal([dim.dim_value for dim in info.type.tensor_type.shape.dim])).astype(
            np.float32
        )
        for info in model.graph.input
    }
    feeds["x"] -= 0.8
    loaded = load(model).model
    assert loaded.opset_imports[""] == OPSET
    used = {value.name: feeds[str(value.name)] for value in loaded.graph.inputs}
    np.testing.assert_allclose(run(loaded, **used)[0], expected(**feeds), rtol=1e-5, atol=1e-6)  # type: ignore[operator]


FUNCTION = """<opset_import: ["": 11], domain: "local"> rows <axis> (a) => (b) {
    s = Softmax<axis: int = @axis>(a) q = Squeeze<axes = [0]>(s) b = Hardmax<axis = 0>(q) }"""


@pytest.mark.parametrize("opset", [11, 13, 20, 22])
def test_functions_keep_their_own_opset(opset: int) -> None:
    """The function is of opset 11, whatever the model is."""
    model = text(
        "g (float[1,3,4] x) => (float[3,4] y) { y = local.rows<axis = 1>(x) }", opset, ', "local": 1', FUNCTION
    )
    plain = text(
        """g (float[1,3,4] x) => (float[3,4] y) {
            s = Softmax<axis = 1>(x) q = Squeeze<axes = [0]>(s) y = Hardmax<axis = 0>(q) }""",
        11,
    )
    x = np.random.default_rng(0).standard_normal((1, 3, 4)).astype(np.float32)
    loaded = load(model).model
    assert loaded.opset_imports[""] == max(opset, OPSET)
    assert not loaded.functions
    np.testing.assert_allclose(run(loaded, x=x)[0], run(ir.from_proto(plain), x=x)[0], rtol=1e-6)


def test_functions_of_a_later_opset_than_the_model() -> None:
    function = """<opset_import: ["": 13], domain: "local"> last (a) => (b) { b = Softmax(a) }"""
    model = text(
        "g (float[2,3,4] x) => (float[2,3,4] y) { z = local.last(x) y = Softmax(z) }", 9, ', "local": 1', function
    )
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    inner = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    np.testing.assert_allclose(
        run(load(model).model, x=x)[0], np.exp(inner) / np.exp(inner).sum((1, 2), keepdims=True), rtol=1e-5
    )


def test_constants_of_converted_nodes_have_names_of_their_own_in_every_graph() -> None:
    """In a branch, beside it, and where the user already gave a name of that kind."""
    model = text(
        """g (float[4] x, bool t) => (float[2] y, float[5] val_0) {
            val_0 = Pad<pads = [1, 0]>(x)
            y = If(t)<then_branch = a () => (float[2] b) { b = Slice<starts = [1], ends = [3]>(x) },
                      else_branch = c () => (float[2] d) { d = Slice<starts = [0], ends = [2]>(x) }> }""",
        9,
    )
    loaded = load(model).model
    for t in (True, False):
        feeds = {"x": np.arange(4, dtype=np.float32), "t": np.array(t)}
        want = run_onnxruntime(model, feeds)
        for name, array in run_onnxruntime(loaded, feeds).items():
            np.testing.assert_array_equal(array, want[name])


def test_what_has_no_equivalent_keeps_the_model_at_its_opset() -> None:
    model = text(
        """g (float[2,3] x, float[3] s) => (float[2,3] y, float[3] r) {
            y, a, b, r, w = BatchNormalization(x, s, s, s, s) }""",
        9,
    )
    loaded = load(model)
    assert loaded.model.opset_imports == {"": 9}
    assert loaded.notes == (
        "opset 9 is kept: node y (BatchNormalization) of opset 9 has no equivalent: statistics are used that it does "
        "not give any more",
    )


def test_what_has_no_equivalent_in_a_function_is_refused() -> None:
    function = """<opset_import: ["": 6], domain: "local"> wide (a, b) => (c) {
        n = Relu(a) c = Add<broadcast = 1, axis = 0>(n, b) }"""
    model = text("g (float[2,3] x, float[2] b) => (float[2,3] y) { y = local.wide(x, b) }", 9, ', "local": 1', function)
    with pytest.raises(
        ModelError, match=r"\(Add\) of opset 6 has no equivalent: the ranks .* one opset for all its functions"
    ):
        load(model)
