"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time."""

import re

import onnx_ir as ir
import pytest

from graphopt.graph.state import Role, mark
from graphopt.passes import HoistBranches
from tests.helpers.text_models import parse

HEAD = (
    "m (float[2,3] x, bool c, int64[2] i, int64[1] n, bool[1] v, bool[1,1] u) => (float[2,3] y)"
    " <float[4,3] table = {0,1,2,3,4,5,6,7,8,9,10,11}, int64[2] known = {3, -4}> {"
)


def choose(then: str, other: str, condition: str = "c", outputs: str = "y") -> str:
    return (
        f"{outputs} = If({condition}) <then_branch = t () => (a) {{ {then} }}, else_branch = e () => (b) {{ {other} }}>"
    )


def spell(graph: ir.Graph) -> list[str]:
    """One line per node; those of branches are indented."""
    lines = []
    for node in graph:
        inputs = ", ".join(str(value.name) for value in node.inputs)
        lines.append(f"{', '.join(str(value.name) for value in node.outputs)} = {node.op_type}({inputs})")
        if node.op_type == "If":
            for name in ("then_branch", "else_branch"):
                branch = node.attributes[name].as_graph()
                lines += [f"  {name[:4]} {line.split(' = ')[1]}" for line in spell(branch)]
    return lines


def hoisted(nodes: str) -> tuple[list[str], list[str]]:
    model = parse(f"{HEAD} {nodes} }}")
    result = HoistBranches()(model)
    return spell(model.graph), [refusal.reason for refusal in result.refusals]


def test_both_branches_move(rewrite) -> None:
    nodes = f"p = Exp(x) {choose('q = Sin(p) a = Mul(q, x)', 'b = Neg(p)')}"
    _, result = rewrite(HoistBranches(), f"{HEAD} {nodes} }}")
    assert result.notes == ("2 branches of If moved in front of it",)
    assert hoisted(nodes) == (
        [
            "p = Exp(x)",
            "if1/then_branch/q = Sin(p)",
            "if1/then_branch/a = Mul(if1/then_branch/q, x)",
            "if1/else_branch/b = Neg(p)",
            "y = If(c)",
            "  then Identity(if1/then_branch/a)",
            "  else Identity(if1/else_branch/b)",
        ],
        [],
    )


@pytest.mark.parametrize(
    "nodes",
    [
        choose("a = Identity(x)", "b = Neg(x)"),
        choose("w = Constant<value_floats = [1.0, 2.0, 3.0]>() a = Add(x, w)", "b = Gather(table, i)"),
        choose("a = Exp(x)", "b = Sin(x)", "v"),
        choose("k = Cast<to = 7>(x) d = Div(k, n) a = Cast<to = 1>(d)", "b = Gather(table, i)", "u"),
        choose(choose("a = Exp(x)", "b = Sin(x)", "v", "z") + " a = Neg(z)", "b = Relu(x)"),
        choose("s = Constant<value_ints = [3, 2]>() r = Reshape(x, s) a = Transpose(r)", "b = Abs(x)"),
        choose("k = Cast<to = 7>(x) d = Div(k, n) a = Cast<to = 1>(d)", "b = Round(x)"),
        choose("k = Cast<to = 7>(x) d = Mod(k, n) a = Cast<to = 1>(d)", "b = Floor(x)", "v"),
    ],
)
def test_what_moves_stays_right(rewrite, nodes: str) -> None:
    after, result = rewrite(HoistBranches(), f"{HEAD} {nodes} }}")
    assert not result.refusals, after


@pytest.mark.parametrize(
    ("then", "condition", "expected"),
    [
        ("a = Gather(table, i)", "c", ["Where(c, i, NODE/harmless)"]),
        ("a = Gather(table, i)", "v", ["Squeeze(v)", "Where(if0/then_branch/condition, i, NODE/harmless)"]),
        ("a = Gather(table, known)", "c", []),  # in range
        ("q = Div(n, n) f = Cast<to = 1>(q) a = Add(f, x)", "c", ["Where(c, n, NODE/harmless)"]),
        ("f = Cast<to = 1>(n) q = Div(f, f) a = Add(q, x)", "c", []),  # floating point numbers never fail
    ],
)
def test_operands_are_replaced_where_a_branch_is_not_taken(then: str, condition: str, expected: list[str]) -> None:
    lines, _ = hoisted(choose(then, "b = Neg(x)", condition))
    made = [re.sub(r"[^ ]*/harmless", "NODE/harmless", line.split(" = ")[-1]) for line in lines]
    assert [line for line in made if line.startswith(("Where", "Squeeze"))] == expected


def test_the_other_branch_gets_them_the_other_way_round() -> None:
    lines, _ = hoisted(choose("a = Neg(x)", "b = Gather(table, i)"))
    (where,) = [line for line in lines if " Where(" in line]
    assert where.endswith(", i)")


@pytest.mark.parametrize(
    ("then", "other", "reason"),
    [
        ("a = RandomNormalLike(x)", "b = RandomUniformLike(x)", "is random"),
        ("z = NonZero(x) s = Shape(z) a = Cast<to = 1>(s)", "b = RandomNormalLike(x)", "has no static shape"),
        ("s = Reshape(x, i) a = Add(s, x)", "b = RandomNormalLike(x)", "has no static shape"),
        ("a = Neg(x)", "z = NonZero(x) b = Cast<to = 1>(z)", "different or unknown types and shapes"),
        ("a = Neg(x)", "b = ReduceSum(x)", "different or unknown types and shapes"),
        ("a = Neg(x)", "b = RandomNormalLike(x)", "is random"),
        ("a = ReverseSequence<time_axis = 1, batch_axis = 0>(x, i)", "b = RandomNormalLike(x)", "not meant for it"),
    ],
)
def test_what_stays(then: str, other: str, reason: str) -> None:
    _, reasons = hoisted(choose(then, other))
    assert len(reasons) == 1
    assert reason in reasons[0]


def test_a_branch_for_other_sizes_stays() -> None:
    lines, (reason,) = hoisted(choose("a = Neg(x)", "b = MatMul(x, x)"))
    assert lines[0] == "if0/then_branch/a = Neg(x)"
    assert "  else MatMul(x, x)" in lines
    assert reason.startswith("else_branch stays: the given shapes do not fit it (node")


def test_a_branch_that_inference_lets_pass_and_no_run_does_stays() -> None:
    """onnx gives an LSTM of five dimensions no shape and no error."""
    lstm = (
        "f = Unsqueeze(x, i) w = Constant<value = float[1,4,3] {0,0,0,0,0,0,0,0,0,0,0,0}>()"
        " r = Constant<value = float[1,4,1] {0,0,0,0}>() b, h = LSTM<hidden_size = 1>(f, w, r)"
    )
    lines, reasons = hoisted(choose("a = Neg(x)", lstm.replace("(x, i)", "(x, known)")))
    assert lines[0] == "if0/then_branch/a = Neg(x)"
    assert reasons[0].startswith("else_branch stays: ")


def test_a_condition_of_several_elements_is_left_alone() -> None:
    model = parse(
        "m (float[2] x, bool[2] c) => (float[2] y)"
        "{ y = If(c) <then_branch = t () => (a) { a = Neg(x) }, else_branch = e () => (b) { b = Abs(x) }> }"
    )
    result = HoistBranches()(model)
    assert not result.modified
    assert [refusal.reason for refusal in result.refusals] == ["its condition is no single bool"]


def test_state_that_a_branch_reads_is_no_constant() -> None:
    """A product of a momentum that begins at zero is not zero for ever."""
    nodes = choose("q = Mul(s, k) a = Add(q, x)", "b = Identity(s)")
    model = parse(
        f"m (bool c, float[2] x) => (float[2] y) <float[2] s = {{0, 0}}, float[2] k = {{2, 3}}> {{ {nodes} }}"
    )
    mark(model.graph.initializers["s"], Role.OPTIMIZER)
    assert HoistBranches()(model).modified
    assert [node.op_type for node in model.graph] == ["Mul", "Add", "If"]
    assert model.graph[0].inputs[0] is model.graph.initializers["s"]
