"""Which nodes run under which conditions."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

import graphopt
from graphopt.frontend.load import load
from graphopt.graph.guards import guards, in_order, remove_dead, select_of
from graphopt.graph.segments import node_runs


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')
    ShapeInferencePass()(model)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model


def passing(*values: str, name: str = "t") -> str:
    outputs = [f"{name}{index}" for index in range(len(values))]
    nodes = " ".join(f"{output} = Identity({value})" for output, value in zip(outputs, values, strict=True))
    return f"{name} () => ({', '.join(f'float[4] {output}' for output in outputs)}) {{ {nodes} }}"


def choose(outputs: str, condition: str, true: str, false: str) -> str:
    then, other = passing(*true.split(), name=f"t{outputs[0]}"), passing(*false.split(), name=f"e{outputs[0]}")
    return f"{outputs} = If({condition}) <then_branch = {then}, else_branch = {other}>"


def spell(model: ir.Model) -> dict[str, str]:
    found = guards(model.graph)
    return {
        str(node.outputs[0].name): " ".join(f"{'' if wanted else '!'}{value.name}" for value, wanted in found[node])
        for node in model.graph
        if node in found
    }


HEAD = "m (float[4] x, bool c, bool d) => (float[4] y)"


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        (f"a = Neg(x) b = Abs(x) {choose('y', 'c', 'a', 'b')}", {"a": "c", "b": "!c"}),
        # What leads to one side alone goes with it; what both sides use always runs.
        (f"p = Exp(x) q = Sin(p) a = Neg(q) b = Abs(p) {choose('y', 'c', 'a', 'b')}", {"q": "c", "a": "c", "b": "!c"}),
        (f"a = Neg(x) {choose('y', 'c', 'a', 'a')}", {}),
        # A value that is read outside as well always runs.
        (f"a = Neg(x) b = Abs(x) {choose('z', 'c', 'a', 'b')} y = Add(z, a)", {"b": "!c"}),
        # Conjunctions, in the order of the conditions.
        (
            f"a = Neg(x) b = Abs(x) {choose('z', 'd', 'a', 'b')} e = Sin(x) {choose('y', 'c', 'z', 'e')}",
            {"a": "c d", "b": "c !d", "z": "c", "e": "!c"},
        ),
        # A condition that is needed for one side only is computed for it only, and looked at after the other.
        (
            f"n = ReduceMax<keepdims = 0>(x) zero = Constant<value_float = 0.0>() g = Less(n, zero) a = Neg(x)"
            f" b = Abs(x) {choose('z', 'g', 'a', 'b')} e = Sin(x) {choose('y', 'c', 'z', 'e')}",
            {"n": "c", "zero": "c", "g": "c", "a": "c g", "b": "c !g", "z": "c", "e": "!c"},
        ),
        # The sides of two choices by the same condition; those of different ones have nothing in common.
        (
            f"a = Neg(x) {choose('z', 'c', 'a', 'x')} {choose('w', 'c', 'a', 'x')} y = Add(z, w)",
            {"a": "c"},
        ),
        (f"a = Neg(x) {choose('z', 'c', 'a', 'x')} {choose('w', 'd', 'a', 'x')} y = Add(z, w)", {}),
        # A choice by the same condition inside one of its sides.
        (f"a = Neg(x) {choose('z', 'c', 'x', 'a')} {choose('y', 'c', 'z', 'x')}", {"a": "!c c", "z": "c"}),
    ],
)
def test_guards(nodes: str, expected: dict[str, str]) -> None:
    model = model_of(f"{HEAD} {{ {nodes} }}")
    assert spell(model) == expected


def test_a_side_with_nodes_of_its_own_guards_what_it_captures() -> None:
    model = model_of(f"""{HEAD} {{ a = Neg(x)  b = Abs(x)
        y = If(c) <then_branch = t () => (float[4] t0) {{ t0 = Identity(a) }}, else_branch = e () => (float[4] e0) {{
            n = NonZero(b)  f = Cast<to = 1>(n)  s = ReduceSum<keepdims = 0>(f)  e0 = Add(s, b) }}> }}""")
    assert spell(model) == {"a": "c", "b": "!c"}
    (_, _, node) = model.graph
    select = select_of(node)
    assert select is not None
    assert select.when_false is None
    assert [(value.name, wanted) for value, wanted in select.guard] == [("c", False)]


def test_a_side_whose_size_the_data_tells_is_no_choice() -> None:
    """The shape that the model declares for it is a claim."""
    proto = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 20]>
        m (float[3] x, bool c) => (int64[1, 0] y) <int64[1, 0] e = {}> {
            y = If(c) <then_branch = t () => (int64[1, 0] a) { a = NonZero(x) },
                       else_branch = f () => (int64[1, 0] b) { b = Identity(e) }>
        }""")
    assert [select_of(node) for node in load(proto).model.graph] == [None]
    session = graphopt.compile(proto).session()
    for truth, expected in ((True, [[0, 1]]), (False, np.zeros((1, 0)))):
        feeds = {"x": np.array([1, 2, 0], np.float32), "c": np.array(truth)}
        np.testing.assert_array_equal(session.run(feeds)["y"], expected)


@pytest.mark.parametrize(
    ("inputs", "branches"),
    [
        ("bool[2] c", "a b"),  # which ONNX Runtime refuses when it runs
        ("float c", "a b"),
        ("bool c", "x z"),  # sides of other shapes
    ],
)
def test_what_is_no_selection(inputs: str, branches: str) -> None:
    true, false = branches.split()
    model = model_of(
        f"m (float[4] x, float[5] z, {inputs}) => (float[n] y) "
        f"{{ a = Neg(x) b = Abs(x) {choose('y', 'c', true, false).replace('float[4]', 'float[n]')} }}"
    )
    assert spell(model) == {}


def test_what_no_output_needs_is_removed() -> None:
    model = model_of(f"{HEAD} {{ a = Neg(x) dead = Exp(a) too = Sin(dead) {choose('y', 'c', 'a', 'x')} }}")
    remove_dead(model.graph)
    assert [node.outputs[0].name for node in model.graph] == ["a", "y"]
    assert spell(model) == {"a": "c"}


def test_conditions_come_before_what_they_guard() -> None:
    model = model_of(
        f"{HEAD} {{ a = Exp(x) n = ReduceMax<keepdims = 0>(x) k = Constant<value_float = 0.0>() g = Less(n, k)"
        f" b = Abs(x) {choose('y', 'g', 'a', 'b')} }}"
    )
    found = guards(model.graph)
    assert [node.outputs[0].name for node in in_order(list(model.graph), found)] == ["n", "k", "g", "a", "b", "y"]
    runs = node_runs(list(model.graph), {}, model.graph.outputs, found, [model.graph[-1]])
    assert [([n.outputs[0].name for n in run.nodes], run.guard and run.guard[0][1], run.select) for run in runs] == [
        (["n", "k", "g"], (), False),
        (["a"], True, False),
        (["b"], False, False),
        (["y"], (), True),
    ]
