"""What ONNX Runtime takes though ONNX's text frowns at it: names, types, NaN, sparse tensors, its own operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import graphopt
from graphopt.errors import FeedError
from graphopt.frontend.load import Loaded, load
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.equal import require_equal

X = np.array([[-1.5, 0.5, 2.0], [3.0, -0.25, 0.0]], np.float32)


def text(graph: str, opset: int = 17, imports: str = "") -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}{imports}]> {graph}')


def equal(model: onnx.ModelProto, **feeds: np.ndarray) -> Loaded:
    """Load `model` and require of ONNX Runtime that it computes what the file does."""
    import onnx_ir as ir

    loaded = load(model, shapes={name: value.shape for name, value in feeds.items()})
    require_equal(run_onnxruntime(ir.from_proto(model), feeds), run_onnxruntime(loaded.model, feeds), "after loading")
    nodes = [node.name for node in loaded.model.graph.all_nodes()]
    values = [value.name for node in loaded.model.graph.all_nodes() for value in node.outputs]
    assert len(set(nodes)) == len(nodes)
    assert len(set(values)) == len(values)
    return loaded


BRANCHES = [
    "{ n = Neg(x) o = Exp(n) } | { n = Abs(x) o = Relu(n) }",
    "{ [k] n = Neg(x) o = Exp(n) } | { [k] n = Abs(x) o = Relu(n) }",
    "{ z = Neg(x) o = Exp(z) } | { o = Identity(x) }",
    "<float[3] w = {1, 2, 3}> { o = Add(x, w) } | <float[3] w = {4, 5, 6}> { o = Mul(x, w) }",
    "{ w = Constant<value = float {1}>() o = Add(x, w) } | { w = Constant<value = float {4}>() o = Mul(x, w) }",
    "<float[1] w = {1}, float[1] w_1 = {2}> { a = Add(x, w) o = Add(a, w_1) } | <float[1] w = {3}> { o = Add(x, w) }",
]


@pytest.mark.parametrize("branches", BRANCHES)
def test_branches_share_names(branches: str) -> None:
    then, other = branches.split(" | ")
    graph = f"""g (float[2,3] x, bool c) => (float[2,3] y, float[2,3] o, float[2,3] n) {{
        y = If(c)<then_branch = t () => (float[2,3] o) {then}, else_branch = e () => (float[2,3] o) {other}>
        o = If(c)<then_branch = t () => (float[2,3] o) {then}, else_branch = e () => (float[2,3] o) {other}>
        n = Sign(o) }}"""
    for flag in (True, False):
        equal(text(graph), x=X, c=np.array(flag))


def test_an_if_inside_an_if_and_loops_share_names() -> None:
    body = """body = b (int64 i, bool ci, float[2,3] a) => (bool co, float[2,3] s) { co = Identity(ci)
        s = If(c)<then_branch = t () => (float[2,3] o) { q = Neg(a) o = Exp(q) },
                  else_branch = e () => (float[2,3] o) { q = Abs(a) o = Sqrt(q) }> }"""
    graph = f"""g (float[2,3] x, bool c) => (float[2,3] y, float[2,3] z) {{
        k = Constant<value = int64 {{2}}>() t = Constant<value = bool {{1}}>()
        y = Loop(k, t, x)<{body}> z = Loop(k, t, y)<{body}> }}"""
    equal(text(graph), x=X, c=np.array(False))


def test_an_inner_graph_repeats_an_output() -> None:
    graph = """g (float[2,3] x, bool c) => (float[2,3] y, float[2,3] z) {
        y, z = If(c)<then_branch = t () => (float[2,3] a, float[2,3] a) { a = Neg(x) },
                     else_branch = e () => (float[2,3] a, float[2,3] b) { a = Abs(x) b = Exp(x) }> }"""
    found = run_onnxruntime(load(text(graph)).model, {"x": X, "c": np.array(True)})
    np.testing.assert_array_equal(found["y"], -X)  # of which ONNX Runtime itself computes one only
    np.testing.assert_array_equal(found["z"], -X)


def test_a_repeated_output_is_given_once() -> None:
    model = text("g (float[2,3] x) => (float[2,3] y, float[2,3] z) { y = Relu(x) z = Neg(x) }")
    model.graph.output.append(model.graph.output[0])
    loaded = equal(model, x=X)
    assert [value.name for value in loaded.model.graph.outputs] == ["y", "z"]
    assert loaded.notes == ("the model lists its output y more than once, and its results have it once",)


@pytest.mark.parametrize("what", ["type", "shape"])
@pytest.mark.parametrize(
    "nodes", ["y = Relu(x)", "y = NonZero(x)", "y = com.microsoft.FastGelu(x)", "z = Neg(x) y = Shape(z)"]
)
def test_outputs_may_leave_their_type_open(nodes: str, what: str) -> None:
    model = text(f"g (float[2,3] x) => (float[2,3] y) {{ {nodes} }}", imports=', "com.microsoft": 1')
    if what == "type":
        model.graph.output[0].ClearField("type")
    else:
        del model.graph.output[0].type.tensor_type.shape.dim[:]
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.output[0].type.tensor_type.elem_type = 7 if "Shape" in nodes or "NonZero" in nodes else 1
    equal(model, x=X)


@pytest.mark.parametrize("dim", [-1, "", "?", "-1", "None"])
def test_dimensions_that_say_nothing_are_open_and_unlike(dim: int | str) -> None:
    model = text("g (float[N,K] x, float[K,M] z) => (float[N,M] y) { y = MatMul(x, z) }")
    for info in (*model.graph.input, *model.graph.output):
        for each in info.type.tensor_type.shape.dim:
            if isinstance(dim, int):
                each.dim_value = dim
            else:
                each.dim_param = dim
    loaded = equal(model, x=X, z=np.ones((3, 5), np.float32))
    assert loaded.model.graph.outputs[0].shape == (2, 5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_nan_among_weights_is_noted(dtype: type) -> None:
    kind = {np.float16: "float16", np.float32: "float", np.float64: "double"}[dtype]
    model = text(f"g ({kind}[2,3] x) => ({kind}[2,3] y) {{ y = Add(x, w) }}")
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, np.nan, 2], dtype), "w"))
    assert equal(model, x=X.astype(dtype)).notes == ("initializer w contains NaN",)


@pytest.mark.parametrize(
    ("values", "places"), [([1, 2], [1, 5]), ([1, 2], [[0, 1], [1, 2]]), ([], []), ([7], [[1, 0]])]
)
def test_sparse_tensors_become_dense(values: list[float], places: list[object]) -> None:
    tensor = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array(values, np.float32), "w"),
        numpy_helper.from_array(np.array(places, np.int64), "w_places"),
        [2, 3],
    )
    graph = "g (float[2,3] x) => (float[2,3] y) { c = Constant<value = float {0}>() a = Add(x, w) y = Sub(a, c) }"
    model = text(graph)
    model.graph.sparse_initializer.append(tensor)
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(helper.make_attribute("sparse_value", tensor))
    before = model.SerializeToString()
    loaded = load(model)
    assert model.SerializeToString() == before
    np.testing.assert_array_equal(run_onnxruntime(loaded.model, {"x": X})["y"], X)
    dense = np.zeros(6, np.float32)
    flat = [place if isinstance(place, int) else place[0] * 3 + place[1] for place in places]
    dense[flat] = values
    weight = next(value for value in loaded.model.graph.initializers.values() if value.name == "w")
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), dense.reshape(2, 3))


def test_a_default_value_is_a_constant_and_a_feed_for_it_is_told_so() -> None:
    model = text("g (float[2,3] x, float[3] w) => (float[2,3] y) { y = Add(x, w) }")
    model.graph.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "w"))
    session = graphopt.compile(model).session()
    np.testing.assert_array_equal(session.run({"x": X})["y"], X + 1)
    with pytest.raises(FeedError, match=r"^'w' is no input any more: its default value .* leave it out"):
        session.run({"x": X, "w": np.zeros(3, np.float32)})


def test_maps_are_given_as_onnx_runtime_gives_them() -> None:
    """As scikit-learn's classifiers are exported."""
    score = helper.make_node(
        "LinearClassifier", ["x"], ["label", "score"], domain="ai.onnx.ml", multi_class=1, post_transform="SOFTMAX",
        coefficients=[1.0, 2.0, -1.0, 0.5, 0.25, 0.0], intercepts=[0.0, 0.5], classlabels_ints=[3, 4],
    )  # fmt: skip
    zipped = helper.make_node("ZipMap", ["score"], ["map"], domain="ai.onnx.ml", classlabels_int64s=[3, 4])
    info = onnx.ValueInfoProto(name="map")
    info.type.sequence_type.elem_type.map_type.key_type = onnx.TensorProto.INT64
    info.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [score, zipped], "g", [helper.make_tensor_value_info("x", 1, [2, 3])],
        [helper.make_tensor_value_info("label", 7, [2]), info],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    found = graphopt.compile(model).session().run({"x": X})
    assert [sorted(each) for each in found["map"]] == [[3, 4], [3, 4]]
    assert [max(each, key=each.get) for each in found["map"]] == found["label"].tolist()


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_means_of_integers_are_cut(kind: str) -> None:
    graph = f"g ({kind}[2,3] x) => ({kind}[2] y) {{ y = ReduceMean<axes = [1], keepdims = 0>(x) }}"
    x = np.array([[1, 2, 2], [-1, -2, -2]], kind)
    assert graphopt.compile(text(graph)).session().run({"x": x})["y"].tolist() == [1, -1]


def test_a_loop_collects_what_an_operator_that_onnx_does_not_know_makes_of_any_length() -> None:
    graph = """g (float[2, 3] x) => (float[2, 3] y, float[N, M] z) <int64 count = {3}, int64 two = {2}> {
        f, e = Loop (two, "", x) <body = a (int64 h, bool r, float[2, 3] o) => (bool p, float[2, 3] q, float[2, 3] l) {
            p = Identity(r) q = Abs(o) l = Sub(o, x)
        }>
        n = NonZero(e)
        m = Cast<to = 1>(n)
        y, z = Loop (count, "", x) <body = b (int64 i, bool t, float[2, 3] s) => (bool u, float[2, 3] v, w) {
            k = com.microsoft.FastGelu(m)
            u = Less(i, two)
            v = Neg(s)
            w = Identity(k)
        }>
    }"""
    equal(text(graph, imports=', "com.microsoft": 1'), x=X)
