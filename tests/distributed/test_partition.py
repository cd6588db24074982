import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from graphopt.cost.model import CostModel
from graphopt.cost.node_workload import workload_of
from graphopt.cost.roofline import Machine
from graphopt.cost.workload import PRECISION, Timing, Workload
from graphopt.distributed.partition import Part, partition
from graphopt.errors import GraphoptError

COSTS = CostModel(Machine(vector_lanes=8, cores=2))


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["": 21]>\n{text}')

    ShapeInferencePass()(model)
    return model


def spell(parts: list[Part]) -> list[str]:
    return [
        " > ".join(
            " ".join(str(value.name) for value in group)
            for group in (part.inputs, [node.outputs[0] for node in part.nodes], part.outputs)
        )
        for part in parts
    ]


def chain(*widths: int) -> ir.Model:
    """Products x[64, w0] -> [64, w1] -> ... whose cost is that of their weights' sizes."""
    nodes, weights = [], []
    for index, (k, n) in enumerate(zip(widths, widths[1:], strict=False)):
        weights.append(f"float[{k}, {n}] w{index}")
        nodes.append(f"v{index + 1} = MatMul(v{index}, w{index})")
    last = len(widths) - 1
    model = model_of(
        f"g (float[64, {widths[0]}] v0, {', '.join(weights)}) => (float[64, {widths[-1]}] v{last}) "
        f"{{ {' '.join(nodes)} }}"
    )
    for value in list(model.graph.inputs)[1:]:
        value.const_value = ir.Tensor(np.zeros(value.shape.numpy(), np.float32), name=value.name)
        model.graph.inputs.remove(value)
        model.graph.register_initializer(value)
    return model


def test_one_rank_gets_everything() -> None:
    model = chain(8, 8, 8)
    assert spell(partition(model, 1, COSTS)) == ["v0 > v1 v2 > v2"]


def test_equal_nodes_are_split_equally() -> None:
    parts = partition(chain(*[256] * 7), 3, COSTS)
    assert spell(parts) == ["v0 > v1 v2 > v2", "v2 > v3 v4 > v4", "v4 > v5 v6 > v6"]


def test_cost_counts_and_not_the_number_of_nodes() -> None:
    """The first product does as much as all the others together."""
    parts = partition(chain(2048, 512, 512, 512, 512, 512), 2, COSTS)
    assert spell(parts) == ["v0 > v1 > v1", "v1 > v2 v3 v4 v5 > v5"]


def test_among_equal_cuts_the_one_with_fewer_bytes() -> None:
    """Both cuts leave the same slowest stage, one product of 512 x 512; the middle value is a quarter as wide."""
    parts = partition(chain(512, 512, 128, 512, 512), 2, COSTS)
    assert spell(parts) == ["v0 > v1 v2 > v2", "v2 > v3 v4 > v4"]


SKIP = """g (float[64, 64] x) => (float[64, 64] y, float[64, 64] early) {
    a = MatMul(x, x)  early = Relu(a)  b = MatMul(early, early)  c = MatMul(b, b)  d = Add(c, early)  y = Add(d, x)
}"""


def test_skip_connections_are_carried() -> None:
    parts = partition(model_of(SKIP), 3, COSTS)
    made = [{str(v.name) for node in part.nodes for v in node.outputs} for part in parts]
    assert sum(map(len, made)) == 6
    for index, part in enumerate(parts):
        read = {str(v.name) for node in part.nodes for v in node.inputs if v is not None}
        assert read <= made[index] | {str(v.name) for v in part.inputs}
    carried = [{str(v.name) for v in part.outputs} for part in parts]
    assert "early" in carried[0]
    assert "y" in carried[2]
    names = {str(v.name) for v in parts[2].inputs}
    assert {"early", "x"} <= names


def test_a_constant_output_belongs_to_the_last_part() -> None:
    model = model_of("g (float[2] x) => (float[2] w, float[2] y) <float[2] w = {1, 2}> { a = Neg(x) y = Exp(a) }")
    assert spell(partition(model, 2, COSTS)) == ["x > a > a", "a > y > y w"]


def test_more_ranks_than_nodes() -> None:
    with pytest.raises(
        GraphoptError, match=r"^--ranks 3 asks for more stages than the model's 2 nodes; ask for fewer\.$"
    ):
        partition(chain(8, 8, 8), 3, COSTS)


def test_no_cut_through_a_value_of_unknown_size_where_another_is_possible() -> None:
    """The even cut would be after z, which no other rank can be told the size of."""
    model = model_of(
        "g (float[2] x) => (int64[1, n] u, float[2] y) { a = Neg(x) z = NonZero(a) u = Neg(z) y = Exp(a) }"
    )
    for part in partition(model, 2, COSTS):
        assert "z" not in {str(value.name) for value in part.inputs}


def test_a_value_of_unknown_size_between_all_nodes() -> None:
    model = model_of("g (float[2] x) => (int64[1, n] u) { z = NonZero(x) u = Neg(z) }")
    with pytest.raises(GraphoptError, match="--ranks 2 would send z, whose size only the run tells"):
        partition(model, 2, COSTS)


def test_known_costs_decide_before_estimates() -> None:
    """Of six equal products the first is known to take as long as the five others."""
    model = chain(*[256] * 7)
    first = workload_of(model.graph.node(0))
    assert first is not None

    class Known(CostModel):
        def known(self, workload: Workload) -> Timing | None:
            return Timing(1.0, 1.0, 1.0) if workload == first and not asked.append(workload) else None

    asked: list[Workload] = []
    for node in list(model.graph)[1:]:  # of other shapes than the first
        node.metadata_props[PRECISION] = "tf32"
    assert spell(partition(model, 2, Known(COSTS.machine)))[0] == "v0 > v1 > v1"
    assert asked
