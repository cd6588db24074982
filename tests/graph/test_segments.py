import onnx_ir as ir
import pytest

from graphopt.graph.segments import NodeRun, node_runs, read_by


def graph_of(text: str) -> ir.Graph:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    return model.graph


def runs_of(graph: ir.Graph, refused: str = "") -> list[NodeRun]:
    """The runs when the nodes that make the values named in `refused` are not native."""
    refusals = {n: f"no {n.op_type}" for n in graph if n.outputs[0].name in refused.split()}
    return node_runs(list(graph), refusals, list(graph.outputs))


def spell(runs: list[NodeRun]) -> list[str]:
    """native or fallback, inputs -> nodes by output -> outputs."""

    def names(values: tuple[ir.Value, ...]) -> str:
        return " ".join(str(value.name) for value in values)

    return [
        f"{'native' if run.native else 'fallback'}: {names(run.inputs)} > "
        f"{' '.join(str(node.outputs[0].name) for node in run.nodes)} > {names(run.outputs)}"
        for run in runs
    ]


CHAIN = "g (float[2] x) => (float[2] d) { a = Relu(x) b = Neg(a) c = Exp(b) d = Abs(c) }"


@pytest.mark.parametrize(
    ("refused", "expected"),
    [
        ("", ["native: x > a b c d > d"]),
        ("a b c d", ["fallback: x > a b c d > d"]),
        ("b", ["native: x > a > a", "fallback: a > b > b", "native: b > c d > d"]),
        ("a", ["fallback: x > a > a", "native: a > b c d > d"]),
        ("d", ["native: x > a b c > c", "fallback: c > d > d"]),
        ("b d", ["native: x > a > a", "fallback: a > b > b", "native: b > c > c", "fallback: c > d > d"]),
    ],
)
def test_a_chain(refused: str, expected: list[str]) -> None:
    assert spell(runs_of(graph_of(CHAIN), refused)) == expected


def test_nodes_join_the_run_of_their_kind_as_early_as_they_can() -> None:
    """Two branches that alternate cost one change of kind, not three."""
    graph = graph_of(
        """g (float[2] x) => (float[2] y, float[2] z) {
            a = NonNative(x) b = Relu(x) c = NonNative(b) d = Neg(b) y = Add(a, c) z = Exp(d)
        }"""
    )
    assert spell(runs_of(graph, "a c")) == [
        "fallback: x > a > a",
        "native: x > b d z > b z",
        "fallback: b > c > c",
        "native: a c > y > y",
    ]


def test_an_output_that_is_read_inside_its_run_too_is_kept() -> None:
    graph = graph_of("g (float[2] x) => (float[2] a, float[2] b) { a = Relu(x) b = Neg(a) }")
    assert spell(runs_of(graph)) == ["native: x > a b > a b"]


def test_a_result_that_nobody_reads_is_an_output() -> None:
    """It has no reader, so that no other run needs it: the run does not promise it."""
    graph = graph_of("g (float[2] x) => (float[2] y) { y = Relu(x) unused = Neg(x) }")
    assert spell(runs_of(graph)) == ["native: x > y unused > y"]


def test_constants_are_no_inputs() -> None:
    graph = graph_of("g (float[2] x) => (float[2] b) <float[2] w = {1, 2}> { a = Mul(x, w) b = Add(a, w) }")
    assert spell(runs_of(graph, "b")) == ["native: x > a > a", "fallback: a > b > b"]


def test_reasons_name_the_nodes_of_a_fallback() -> None:
    (_, fallback, _) = runs_of(graph_of(CHAIN), "b c")
    assert fallback.reasons == (("make_b", "no Neg"), ("make_c", "no Exp"))


def test_no_nodes_no_runs() -> None:
    assert node_runs([], {}, []) == []


NESTED = """
g (float[2] x, float[2] z, bool c) => (float[2] y) {
    a = Relu(x)
    y = If (c) <
        then_branch = t () => (float[2] p) {
            q = Neg(a)
            p = If (c) <
                then_branch = t2 () => (float[2] r) { r = Add(q, z) },
                else_branch = e2 () => (float[2] s) { s = Identity(w) }
            >
        },
        else_branch = e () => (float[2] u) { u = Identity(a) }
    >
}
""".replace("(float[2] y) {", "(float[2] y) <float[2] w = {1, 2}> {", 1)


def test_a_subgraph_reads_what_it_captures() -> None:
    graph = graph_of(NESTED)
    names = {str(value.name) for value in read_by(graph.node(1))}
    assert names == {"c", "a", "z", "w"}
    assert spell(runs_of(graph, "y")) == ["native: x > a > a", "fallback: c a z > y > y"]
