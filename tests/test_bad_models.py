"""Damaged and hostile models: each loads or is refused with one sentence; no crash, no hang, no allocation at will."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from graphopt.errors import ModelError
from graphopt.frontend.load import load
from tests.helpers.model_proto import text

HERE = Path(__file__).parent


LIGHT = Path(os.path.dirname(onnx.__file__), "backend/test/data/light")


PER_MODEL = 120  # mutations; six kinds in turn


BATCH = 60


SECONDS = 20  # for one mutation, far above the usual hundredth


def transformer(path: Path) -> None:
    """One attention block with the shape arithmetic that exporters write, at an opset that is converted."""
    rng = np.random.default_rng(0)
    graph = onnx.parser.parse_graph(
        """g (float[batch,6,8] x) => (float[batch,6,8] y) {
            s = Shape(x) zero = Constant<value = int64 {0}>() b = Gather(s, zero)
            axis = Constant<value = int64[1] {0}>() b1 = Unsqueeze<axes = [0]>(b)
            rest = Constant<value = int64[3] {6, 2, 4}>() heads = Concat<axis = 0>(b1, rest)
            qm = MatMul(x, wq) qr = Reshape(qm, heads) q = Transpose<perm = [0,2,1,3]>(qr)
            km = MatMul(x, wk) kr = Reshape(km, heads) k = Transpose<perm = [0,2,3,1]>(kr)
            vm = MatMul(x, wv) vr = Reshape(vm, heads) v = Transpose<perm = [0,2,1,3]>(vr)
            scores = MatMul(q, k) half = Constant<value = float {0.5}>() scaled = Mul(scores, half)
            p = Softmax<axis = 3>(scaled) o = MatMul(p, v) ot = Transpose<perm = [0,2,1,3]>(o)
            flat = Constant<value = int64[3] {0, 6, 8}>() or = Reshape(ot, flat)
            m = ReduceMean<axes = [2]>(or) c = Sub(or, m) n, mask = Dropout(c) y = Add(n, x)
        }"""
    )
    for name in ("wq", "wk", "wv"):
        graph.initializer.append(numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32), name))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), path)


@pytest.mark.slow
def test_mutations_load_or_are_refused(tmp_path: Path) -> None:
    block = tmp_path / "transformer.onnx"
    transformer(block)
    models = [LIGHT / "light_squeezenet.onnx", HERE.parent / "models/trained/lenet-digits.onnx", block]
    jobs = [(model, first) for model in models for first in range(0, PER_MODEL, BATCH)]

    def work(job: tuple[Path, int]) -> list[str]:
        model, first = job
        arguments = [sys.executable, str(HERE / "helpers/bad_model_worker.py"), str(SECONDS), str(model), str(first)]
        done = subprocess.run([*arguments, str(first + BATCH)], capture_output=True, text=True, timeout=SECONDS * BATCH)
        lines = done.stdout.splitlines()
        last = lines[-1] if lines else "nothing"
        assert done.returncode == 0, f"{model.name} ended with {done.returncode} after {last!r}: {done.stderr[-2000:]}"
        assert "Traceback" not in done.stderr
        return [line for line in lines if not line.startswith("start")]

    with ThreadPoolExecutor(2) as pool:
        outcomes = [line for lines in pool.map(work, jobs) for line in lines]
    assert len(outcomes) == PER_MODEL * len(models) >= 300
    refused = [line.split(" ", 2)[2] for line in outcomes if line.startswith("refused")]
    assert len(refused) > len(outcomes) // 3
    assert all("model.onnx" in message for message in refused)
    assert not [message for message in refused if "cannot be loaded (" in message], "a check of our own is missing"


RELU = "g (float[2] x) => (float[2] y) { [r] y = Relu(x) }"


def no_outputs(model: onnx.ModelProto) -> None:
    del model.graph.output[:]


def untyped(model: onnx.ModelProto) -> None:
    model.graph.input[0].ClearField("type")


def no_dtype(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 0


def odd_dtype(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = 77


def negative(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -2


def rank(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim.extend(
        [helper.make_tensor_value_info("a", 1, [1]).type.tensor_type.shape.dim[0]] * 99
    )


def petabyte(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1 << 50


def twice(model: onnx.ModelProto) -> None:
    model.graph.node.append(model.graph.node[0])


def undefined(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "nowhere"


def missing_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].name = "z"


def repeated_input(model: onnx.ModelProto) -> None:
    model.graph.input.append(model.graph.input[0])


def unknown_operator(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Relux"


def unknown_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "elsewhere"


def unknown_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("slope", 1.0))


def reference(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Elu"
    model.graph.node[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="alpha")


def attribute_twice(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Elu"
    model.graph.node[0].attribute.extend([helper.make_attribute("alpha", 1.0)] * 2)


def attribute_type(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Elu"
    model.graph.node[0].attribute.append(helper.make_attribute("alpha", 1))


def attribute_value(model: onnx.ModelProto) -> None:
    model.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["y"], name="r"))
    model.graph.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR)


def arity(model: onnx.ModelProto) -> None:
    model.graph.node[0].input.append("x")


def future(model: onnx.ModelProto) -> None:
    model.ir_version = 99


def future_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


def two_opsets(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("ai.onnx", 3))


def weight(model: onnx.ModelProto, change: Callable[[onnx.TensorProto], object] = lambda tensor: None) -> None:
    tensor = numpy_helper.from_array(np.ones((2, 3), np.float32), "w")
    change(tensor)
    model.graph.initializer.append(tensor)


def short_payload(model: onnx.ModelProto) -> None:
    weight(model, lambda tensor: setattr(tensor, "raw_data", tensor.raw_data[:-1]))


def long_dims(model: onnx.ModelProto) -> None:
    weight(model, lambda tensor: tensor.dims.append(1 << 61))


def negative_dims(model: onnx.ModelProto) -> None:
    weight(model, lambda tensor: tensor.dims.__setitem__(0, -2))


def tensor_type(model: onnx.ModelProto) -> None:
    weight(model, lambda tensor: setattr(tensor, "data_type", 99))


def nameless(model: onnx.ModelProto) -> None:
    weight(model, lambda tensor: setattr(tensor, "name", ""))


def same_weight(model: onnx.ModelProto) -> None:
    weight(model)
    weight(model)


def in_memory_external(model: onnx.ModelProto) -> None:
    weight(model, lambda tensor: onnx.external_data_helper.set_external_data(tensor, "w.data"))


def sparse(model: onnx.ModelProto, places: object = (0,), dims: tuple[int, ...] = (4,), count: int = 1) -> None:
    values = numpy_helper.from_array(np.ones(count, np.float32), "s")
    indices = numpy_helper.from_array(np.array(places, np.int64), "i")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, list(dims)))


def sparse_outside(model: onnx.ModelProto) -> None:
    sparse(model, places=(4,))


def sparse_outside_of_an_axis(model: onnx.ModelProto) -> None:
    sparse(model, places=((0, 3),), dims=(4, 3))


def sparse_twice(model: onnx.ModelProto) -> None:
    sparse(model, places=(1, 1), count=2)


def sparse_out_of_order(model: onnx.ModelProto) -> None:
    sparse(model, places=((2, 0), (1, 2)), dims=(4, 3), count=2)


def sparse_counts(model: onnx.ModelProto) -> None:
    sparse(model, count=2)


def sparse_narrow(model: onnx.ModelProto) -> None:
    sparse(model)
    indices = model.graph.sparse_initializer[0].indices
    indices.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(indices).astype(np.int32), indices.name))


def sparse_huge(model: onnx.ModelProto) -> None:
    sparse(model, dims=(1 << 20, 1 << 19))


def sparse_constant(model: onnx.ModelProto) -> None:
    sparse(model, places=(-1,))
    value = helper.make_attribute("sparse_value", model.graph.sparse_initializer.pop())
    model.graph.node[0].CopyFrom(helper.make_node("Constant", [], ["y"], name="r"))
    model.graph.node[0].attribute.append(value)


def missing_attribute(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "Cast"


def unlike_onnx_runtimes(model: onnx.ModelProto) -> None:
    model.graph.node[0].op_type = "SimplifiedLayerNormalization"


def map_input(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.map_type.key_type = onnx.TensorProto.INT64
    model.graph.input[0].type.map_type.value_type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def recursion(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("f", 1))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    for name, callee in (("A", "B"), ("B", "A")):
        node = helper.make_node(callee, ["a"], ["b"], domain="f")
        model.functions.append(helper.make_function("f", name, ["a"], ["b"], [node], opsets))


def explosion(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("f", 1))
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("f", 1)]
    for level in range(20):
        call = (f"F{level - 1}", "f") if level else ("Relu", "")
        names = ["a", *(f"v{step}" for step in range(9)), "b"]
        nodes = [helper.make_node(call[0], [a], [b], domain=call[1]) for a, b in zip(names, names[1:], strict=False)]
        model.functions.append(helper.make_function("f", f"F{level}", ["a"], ["b"], nodes, opsets))
    model.graph.node[0].op_type, model.graph.node[0].domain = "F19", "f"


def nested(model: onnx.ModelProto) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["deep"])], "b", [], [])
    for level in range(28):
        node = helper.make_node("If", ["c"], [f"o{level}"], then_branch=graph)
        graph = helper.make_graph([node], "b", [], [])
    model.graph.node.extend(graph.node)


REFUSALS = [
    (no_outputs, "the model's graph has no outputs, so there is nothing to compute"),
    (untyped, "the input x has no type; declare"),
    (no_dtype, "the input x has no element type; declare"),
    (odd_dtype, "the input x has the unknown element type 77"),
    (negative, "the input x has a negative dimension in [-2]"),
    (rank, "the input x has 100 dimensions, more than 64"),
    (petabyte, "the input x has the shape 1125899906842624, more than 1 TiB"),
    (twice, "the value y is defined twice, the second time by node r (Relu)"),
    (undefined, "node r (Relu) reads nowhere, which nothing computes"),
    (missing_output, "the graph output 'z' is computed by no node"),
    (repeated_input, "the graph input 'x' is nameless or declared twice"),
    (unknown_operator, "node r (Relux) uses an operator that ai.onnx 20 does not define"),
    (unknown_domain, "node r (Relu) is of the domain 'elsewhere', which the model does not import"),
    (unknown_attribute, "node r (Relu) has no attribute slope at opset 20"),
    (attribute_twice, "node r (Elu) has the attribute 'alpha' twice"),
    (attribute_type, "the attribute alpha of node r (Elu) is INT, and its operator takes FLOAT"),
    (attribute_value, "the attribute value of node r (Constant) has no value"),
    (reference, "node r (Elu) takes its attribute alpha from 'alpha', which no surrounding function has"),
    (arity, "node r (Relu) has 2 inputs, and its operator takes 1 to 1"),
    (future, "the model has IR version 99"),
    (future_opset, "the model imports opset 99 of ai.onnx"),
    (two_opsets, "the model imports two versions of the domain 'ai.onnx'"),
    (short_payload, "initializer w (FLOAT 2x3) needs 24 bytes and has 23"),
    (long_dims, "initializer w has the shape 2x3x2305843009213693952, more than 1 TiB"),
    (negative_dims, "initializer w has a negative dimension in [-2, 3]"),
    (tensor_type, "initializer w has the unknown data type 99"),
    (nameless, "the initializer '' is nameless or defined twice"),
    (same_weight, "the initializer 'w' is nameless or defined twice"),
    (in_memory_external, "initializer w keeps its data in the file 'w.data'; load the model by its path"),
    (sparse_outside, "initializer s is sparse and has an index outside of 4"),
    (sparse_outside_of_an_axis, "initializer s is sparse and has an index outside of 4x3"),
    (sparse_twice, "initializer s is sparse and has the index 1 twice; export it with ascending indices"),
    (sparse_out_of_order, "initializer s is sparse and has the index [1, 2] after a larger one; export it with"),
    (sparse_counts, "initializer s is sparse and has 2 values with indices of shape [1]; give one int64 index"),
    (sparse_narrow, "initializer s is sparse and has indices of type int32; export it with int64 indices"),
    (sparse_huge, "initializer s is sparse and would take too much memory as a dense 1048576x524288"),
    (sparse_constant, "attribute sparse_value of node r (Constant) is sparse and has an index outside of 4"),
    (missing_attribute, "node r (Cast) lacks the attribute to; give it a value"),
    (unlike_onnx_runtimes, "node r (SimplifiedLayerNormalization) has 1 inputs, and its operator takes 2 to 2"),
    (map_input, "the input x is a map, which no program takes"),
    (recursion, "call each other in a circle"),
    (explosion, "nodes after inlining, more than 1000000"),
    (nested, "nests graphs deeper than 24"),
]


@pytest.mark.parametrize(("damage", "sentence"), REFUSALS, ids=[damage.__name__ for damage, _ in REFUSALS])
def test_refusals(damage: Callable[[onnx.ModelProto], None], sentence: str, tmp_path: Path) -> None:
    model = text(RELU)
    damage(model)
    with pytest.raises(ModelError, match=re.escape(sentence)) as caught:
        load(model)
    assert "\n" not in str(caught.value)
    path = tmp_path / "bad.onnx"
    if damage is not in_memory_external:
        path.write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=rf"^{re.escape(str(path))}\b.*{re.escape(sentence)}"):
            load(path)


@pytest.mark.parametrize(
    ("graph", "sentence"),
    [
        (
            "g (float[2] x) => (float[2] y) { [p] a = Add(x, b) [q] b = Add(x, a) y = Relu(b) }",
            "the nodes p (Add) -> q (Add) -> p (Add) form a cycle",
        ),
        ("g (float[2] x) => (float[2] y) { [p] y = Add(x, y) }", "the nodes p (Add) -> p (Add) form a cycle"),
        (
            "g (float[2,3] x, float[4,5] z) => (float[2,5] y) { [m] y = MatMul(x, z) }",
            "node m (MatMul) does not fit its operands: Incompatible dimensions",
        ),
        (
            "g (float[1,1,3,3] x, float[1,1,7,7] w) => (float[1,1,N,M] y) { y = Conv(x, w) }",
            "the value y (Conv) has a negative dimension",
        ),
        (
            "g (float[2] x) => (float[N] y) { s = Constant<value = int64[1] {35184372088832}>() "
            "y = ConstantOfShape(s) }",
            "the value y (ConstantOfShape) has the shape 35184372088832, more than 1 TiB",
        ),
        (
            """g (float[2] x) => (float[N] y) { a = Constant<value = float {0}>() b = Constant<value = float {1}>()
            c = Constant<value = float {0.0000000000001}>() w = Range(a, b, c) y = Neg(w) }""",
            "the value w (Range) has the shape 10000000175484, more than 1 TiB",
        ),
    ],
)
def test_refused_graphs(graph: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=re.escape(sentence)):
        load(text(graph))
