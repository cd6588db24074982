"""Which nodes' results have shapes that only the data tells."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from graphopt.graph.value_dependence import depends_on_values


def node_of(text: str) -> ir.Node:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 20, "com.microsoft": 1]>\n{text}')
    return model.graph.node(len(list(model.graph)) - 1)


def loop(body: str, count: str = "m", condition: str = "c") -> str:
    constants = "<int64 m = {3}, bool c = {1}, int64 one = {1}>"
    return f"""g (float[2, 3] x, int64 n, bool d) => (float[a, b] y) {constants} {{
        y = Loop({count}, {condition}, x) <body = b (int64 i, bool b0, float[a, b] v) => (bool b1, float[a, b] o)
            {{ {body} }}>
    }}"""


SAME = "b1 = Identity(b0) "
CASES = {
    "elementwise": ("g (float[2] x) => (float[2] y) { y = Relu(x) }", False),
    "foreign": ("g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }", False),
    "nonzero": ("g (float[2] x) => (int64[1, n] y) { y = NonZero(x) }", True),
    "sampling": ("g (float[2] x) => (float[2] y) { y = com.microsoft.Sampling(x) }", True),
    "constant shape": ("g (float[6] x) => (float[2, 3] y) <int64[2] s = {2, 3}> { y = Reshape(x, s) }", False),
    "constant node": (
        "g (float[6] x) => (float[2, 3] y) { s = Constant<value_ints = [2, 3]>()  y = Reshape(x, s) }",
        False,
    ),
    "shape of data": ("g (float[6] x, int64[2] s) => (float[a, b] y) { y = Reshape(x, s) }", True),
    "count of data": ("g (float[6] x, int64[1] k) => (float[a] y, int64[a] z) { y, z = TopK(x, k) }", True),
    "counted loop": (loop(SAME + "o = Relu(v)"), False),
    "loop of data": (loop(SAME + "o = Relu(v)", count="n"), True),
    "loop without count": (loop("b1 = Less(i, one)  o = Relu(v)", count='""'), False),
    "loop without count that data ends": (loop("b1 = Identity(d)  o = Relu(v)", count='""'), True),
    "loop without end": (loop(SAME + "o = Relu(v)", count='""', condition='""'), True),
    "loop that data begins": (loop(SAME + "o = Relu(v)", condition="d"), True),
    "loop that data ends": (loop("b1 = Identity(d)  o = Relu(v)"), True),
    "loop that its number ends": (loop("b1 = Less(i, one)  o = Relu(v)"), False),
    "loop that grows": (loop(SAME + "o = Concat<axis = 0>(v, x)"), False),
    "loop that picks": (loop(SAME + "p = NonZero(v)  o = Cast<to = 1>(p)"), True),
    "loop that reshapes by its shape": (loop(SAME + "s = Shape(v)  o = Reshape(v, s)"), False),
    "loop that reshapes by data": (loop(SAME + "s = Cast<to = 7>(v)  o = Reshape(v, s)"), True),
    "loop that draws": (loop("r = RandomUniform<shape = [1]>()  b1 = Cast<to = 9>(r)  o = Relu(v)"), True),
    "loop that asks data": (
        loop(
            SAME + "o = If(d) <then_branch = t () => (float[a, b] p) { p = Relu(v) },"
            "else_branch = e () => (float[a, b] q) { q = Concat<axis = 0>(v, v) }>"
        ),
        True,
    ),
    "scan": (
        "g (float[4, 2] x, float[2] s) => (float[2] e, float[4, 2] y) { e, y = Scan<num_scan_inputs = 1, body ="
        " b (float[2] a, float[2] v) => (float[2] o, float[2] z) { o = Add(a, v)  z = Relu(o) }>(s, x) }",
        False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_cases(name: str) -> None:
    text, expected = CASES[name]
    assert depends_on_values(node_of(text)) is expected


def test_a_counter_that_is_carried_is_known() -> None:
    text = """g (float[2] x) => (float[2] y, int64 k) <int64 m = {3}, bool c = {1}, int64 zero = {0}, int64 one = {1}> {
        y, k = Loop(m, c, x, zero) <body = b (int64 i, bool b0, float[2] v, int64 j) => (bool b1, float[2] o, int64 l)
            { b1 = LAST  o = Relu(v)  l = Add(j, STEP) }>
    }"""
    assert not depends_on_values(node_of(text.replace("LAST", "Less(j, m)").replace("STEP", "one")))
    stepped = text.replace("(float[2] x)", "(float[2] x, int64 n)").replace("LAST", "Less(j, m)")
    assert depends_on_values(node_of(stepped.replace("STEP", "n"))), "what is added is data"
