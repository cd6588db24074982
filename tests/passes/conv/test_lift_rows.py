"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time."""

import pytest

from graphopt.passes import Fuse, Layout, LiftRows, Normalize, SelectConv
from graphopt.passes.conv.algorithms import Algorithm
from graphopt.pipeline.observe import Check
from graphopt.pipeline.pass_base import Pass, PassResult
from graphopt.pipeline.pipeline import Pipeline

LINE = "float[2,20,15] x, float[24,20,3] w, float[24] b"
WEIGHTS = {"w": (24, 20, 3), "b": (24,)}

GOLDEN = {
    "a line": (
        f"g ({LINE}) => (float[2,24,8] y) {{ y = Conv<pads = [2, 1], strides = [2], dilations = [1]>(x, w, b) }}",
        """
x.row[2,20,1,15] = Reshape(x, const[4])
y.row[2,24,1,8] = Conv(x.row, const[24,20,1,3], const[24]) {dilations=[1, 1], pads=[0, 2, 0, 1], strides=[1, 2]}
y[2,24,8] = Reshape(y.row, const[3])""",
    ),
    "a column": (
        """g (float[2,20,15,1] x, float[24,20,5,1] v) => (float[2,24,13,1] y)
        { a = Conv<pads = [2, 0, 0, 0]>(x, v) y = Sigmoid(a) }""",
        """
x.row[2,20,1,15] = Reshape(x, const[4])
a.row[2,24,1,13] = Conv(x.row, const[24,20,1,5]) {pads=[0, 2, 0, 0]}
y.row[2,24,1,13] = Sigmoid(a.row)
y[2,24,13,1] = Reshape(y.row, const[4])""",
    ),
    "volumes of one plane": (
        """g (float[2,20,1,9,7] x, float[24,20,1,3,3] v, float[24,1,1,1] s, float[24,24,1,1,1] u)
        => (float[2,24,1,5,4] y)
        { a = Conv<pads = [0, 1, 1, 0, 1, 1]>(x, v) m = Mul(a, s) t = Tanh(m)
        p = MaxPool<kernel_shape = [1, 2, 2], strides = [1, 2, 2], ceil_mode = 1>(t)
        y = Conv<strides = [2, 1, 1]>(p, u) }""",
        """
x.row[2,20,9,7] = Reshape(x, const[4])
a.row[2,24,9,7] = Conv(x.row, const[24,20,3,3]) {pads=[1, 1, 1, 1]}
m.row[2,24,9,7] = Mul(a.row, const[24,1,1])
t.row[2,24,9,7] = Tanh(m.row)
p.row[2,24,5,4] = MaxPool(t.row) {ceil_mode=1, kernel_shape=[2, 2], strides=[2, 2]}
y.row[2,24,5,4] = Conv(p.row, const[24,24,1,1]) {strides=[1, 1]}
y[2,24,1,5,4] = Reshape(y.row, const[5])""",
    ),
    "what follows": (
        f"""g ({LINE}, float[24,1] s) => (float[2,48,6] y)
        {{ a = Conv(x, w, b) m = Mul(a, s) n = Sin(m) j = Concat<axis = -2>(n, m)
        y = MaxPool<kernel_shape = [3], strides = [2]>(j) }}""",
        """
x.row[2,20,1,15] = Reshape(x, const[4])
a.row[2,24,1,13] = Conv(x.row, const[24,20,1,3], const[24])
m.row[2,24,1,13] = Mul(a.row, const[24,1,1])
n.row[2,24,1,13] = Sin(m.row)
j.row[2,48,1,13] = Concat(n.row, m.row) {axis=1}
y.row[2,48,1,6] = MaxPool(j.row) {kernel_shape=[1, 3], strides=[1, 2]}
y[2,48,6] = Reshape(y.row, const[3])""",
    ),
    "one convolution after another": (
        f"""g ({LINE}, float[24,24,3] v) => (float[2,24,13] y)
        {{ a = Conv(x, w, b) r = Relu(a) p = Pad<mode = "reflect">(r, pads) c = Conv(p, v) y = Add(c, a) }}""",
        """
x.row[2,20,1,15] = Reshape(x, const[4])
a.row[2,24,1,13] = Conv(x.row, const[24,20,1,3], const[24])
r.row[2,24,1,13] = Relu(a.row)
p.row[2,24,1,15] = Pad(r.row, const[8]) {mode=reflect}
c.row[2,24,1,13] = Conv(p.row, const[24,24,1,3])
y.row[2,24,1,13] = Add(c.row, a.row)
y[2,24,13] = Reshape(y.row, const[3])""",
    ),
    "views of columns": (
        """g (float[2,20,15] x, float[24,20,5,1] v, float[24,24,3] u) => (float[2,24,9] y)
        <int64[1] last = {3}> { i = Unsqueeze(x, last) a = Conv(i, v) s = Squeeze(a, last) r = Relu(s)
        y = Conv(r, u) }""",
        """
i[2,20,15,1] = Unsqueeze(x, const[1])
i.row[2,20,1,15] = Reshape(i, const[4])
a.row[2,24,1,11] = Conv(i.row, const[24,20,1,5])
r.row[2,24,1,11] = Relu(a.row)
y.row[2,24,1,9] = Conv(r.row, const[24,24,1,3])
y[2,24,9] = Reshape(y.row, const[3])""",
    ),
    "rows that are lines in between": (
        """g (float[2,20,1,15] x, float[24,20,1,5] v, float[24,24,1,3] u) => (float[2,24,1,9] y, float[2,24,11] s)
        <int64[1] third = {2}> { a = Conv(x, v) q = Tanh(a) s = Squeeze(q, third) r = Relu(s)
        i = Unsqueeze(r, third) y = Conv(i, u) }""",
        """
a[2,24,1,11] = Conv(x, const[24,20,1,5])
q[2,24,1,11] = Tanh(a)
s[2,24,11] = Squeeze(q, const[1])
r.row[2,24,1,11] = Relu(q)
y[2,24,1,9] = Conv(r.row, const[24,24,1,3])""",
    ),
    "what reads it otherwise": (
        f"""g ({LINE}, float[2,24,1] z) => (float[2,13,24] y, float[2,24,1] p)
        {{ a = Conv(x, w, b) s = Sub(z, a) y = Transpose<perm = [0, 2, 1]>(s) p = GlobalAveragePool(s) }}""",
        """
x.row[2,20,1,15] = Reshape(x, const[4])
a.row[2,24,1,13] = Conv(x.row, const[24,20,1,3], const[24])
z.row[2,24,1,1] = Reshape(z, const[4])
s.row[2,24,1,13] = Sub(z.row, a.row)
s[2,24,13] = Reshape(s.row, const[3])
y[2,13,24] = Transpose(s) {perm=[0, 2, 1]}
p.row[2,24,1,1] = GlobalAveragePool(s.row)
p[2,24,1] = Reshape(p.row, const[3])""",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden(rewrite, case: str) -> None:
    text, expected = GOLDEN[case]
    weights = {**WEIGHTS, "v": (24, 24, 3), "s": (24, 1)}
    if "a column" in case or "views" in case:
        weights |= {"v": (24, 20, 5, 1), "u": (24, 24, 3)}
    elif "volumes" in case:
        weights = {"v": (24, 20, 1, 3, 3), "u": (24, 24, 1, 1, 1), "s": (24, 1, 1, 1)}
    elif "lines" in case:
        weights |= {"v": (24, 20, 1, 5), "u": (24, 24, 1, 3)}
    if "pads)" in text:
        text = text.replace("{ a = ", "<int64[6] pads = {0, 0, 1, 0, 0, 1}> { a = ")
    after, result = rewrite(LiftRows(), text, weights)
    assert after == expected.strip()
    assert result.modified


UNCHANGED = {
    "weights that are no constants": (f"g ({LINE}) => (float[2,24,13] y) {{ y = Conv(x, w) }}", {}, "not constant"),
    "auto_pad": (
        f'g ({LINE}) => (float[2,24,15] y) {{ y = Conv<auto_pad = "SAME_UPPER">(x, w) }}',
        WEIGHTS,
        "run normalize first",
    ),
    "planes": (
        "g (float[1,4,9,9] x, float[8,4,3,3] w) => (float[1,8,7,7] y) { y = Conv(x, w) }", {"w": (8, 4, 3, 3)}, ""
    ),
    "a column that is padded to planes": (
        "g (float[1,4,9,1] x, float[8,4,3,1] w) => (float[1,8,7,3] y) { y = Conv<pads = [0, 1, 0, 1]>(x, w) }",
        {"w": (8, 4, 3, 1)},
        "",
    ),
    "a row": (
        "g (float[1,4,1,9] x, float[8,4,1,3] w) => (float[1,8,1,7] y) { y = Conv(x, w) }", {"w": (8, 4, 1, 3)}, ""
    ),
    "one element": (
        "g (float[1,4,1,1] x, float[8,4,1,1] w) => (float[1,8,1,1] y) { y = Conv(x, w) }", {"w": (8, 4, 1, 1)}, ""
    ),
    "a volume of several planes": (
        "g (float[1,4,2,9,9] x, float[8,4,1,3,3] w) => (float[1,8,2,7,7] y) { y = Conv(x, w) }",
        {"w": (8, 4, 1, 3, 3)},
        "",
    ),
    "a volume of one plane that is padded": (
        "g (float[1,4,1,9,9] x, float[8,4,3,3,3] w) => (float[1,8,1,7,7] y) "
        "{ y = Conv<pads = [1, 0, 0, 1, 0, 0]>(x, w) }",
        {"w": (8, 4, 3, 3, 3)},
        "",
    ),
    "elementwise work alone": ("g (float[1,4,9] x) => (float[1,4,9] y) { y = Relu(x) }", {}, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCHANGED)
def test_unchanged(rewrite, case: str) -> None:
    text, weights, reason = UNCHANGED[case]
    _, result = rewrite(LiftRows(), text, weights)
    assert not result.modified
    assert [reason in each.reason for each in result.refusals] == [True] * bool(reason)


def test_what_becomes_planes_stays(rewrite) -> None:
    """A column times a row, and a pool whose second result is read."""
    text = """g (float[1,20,15,1] x, float[24,20,3,1] w, float[1,1,1,7] z) => (float[1,24,13,7] y)
    { a = Conv(x, w) y = Mul(a, z) }"""
    after, _ = rewrite(LiftRows(), text, {"w": (24, 20, 3, 1)})
    assert "y[1,24,13,7] = Mul(a, z)" in after
    text = f"""g ({LINE}) => (float[2,24,11] y, int64[2,24,11] i)
    {{ a = Conv(x, w, b) y, i = MaxPool<kernel_shape = [3]>(a) }}"""
    after, _ = rewrite(LiftRows(), text, WEIGHTS)
    assert "y[2,24,11], i[2,24,11] = MaxPool(a) {kernel_shape=[3]}" in after


def test_shared_weights_stay_one(rewrite) -> None:
    text = """g (float[1,24,9] x, float[24,24,3] w) => (float[1,24,9] y)
    { a = Conv<pads = [1, 1]>(x, w) y = Conv<pads = [1, 1]>(a, w) }"""
    _, result = rewrite(LiftRows(), text, {"w": (24, 24, 3)})
    first, second = (node for node in result.model.graph if node.op_type == "Conv")
    assert first.inputs[1] is second.inputs[1]


def test_provenance(rewrite) -> None:
    text = f"g ({LINE}) => (float[2,24,13] y) {{ y = Conv(x, w, b) }}"
    _, result = rewrite(LiftRows(), text, WEIGHTS)
    assert {node.metadata_props["graphopt.origin"] for node in result.model.graph} == {"conv0"}
    assert {node.metadata_props["graphopt.rule"] for node in result.model.graph} == {"lift-rows"}


class Chain(Pass):
    """lift-rows, then convolutions by one algorithm, and layout."""

    name = "chain"

    def call(self, model) -> PassResult:  # noqa: ANN001
        before = [node.op_type for node in model.graph]
        passes = Normalize(), Fuse(), LiftRows(), SelectConv(algorithms=(Algorithm.WINOGRAD4,)), Layout()
        made = Pipeline(passes).run(model, observers=[Check()]).model
        return PassResult(made, [node.op_type for node in made.graph] != before)


def test_the_layout_stays_blocked_between_convolutions(rewrite) -> None:
    text = """g (float[1,32,40] x, float[32,32,3] w, float[32,32,3] v) => (float[1,32,40] y)
    { a = Conv<pads = [1, 1]>(x, w) r = Gelu(a) c = Conv<pads = [1, 1]>(r, v) s = Add(c, x) t = Relu(s)
    y = Conv<pads = [1, 1]>(t, v) }"""
    after, _ = rewrite(Chain(), text, {"w": (32, 32, 3), "v": (32, 32, 3)})
    assert [line.split(" = ")[1].split("(")[0] for line in after.splitlines()] == [
        "Reshape", "ToBlocked", "Conv2dWinogradAxis", "Gelu", "Conv2dWinogradAxis", "Add", "Relu", "Conv2dWinogradAxis",
        "FromBlocked", "Reshape",
    ]  # fmt: skip
