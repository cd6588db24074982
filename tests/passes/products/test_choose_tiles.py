from collections.abc import Sequence

from graphopt.cost.model import CostModel
from graphopt.cost.workload import TILE, Timing, Workload
from graphopt.passes import ChooseTiles

TEXT = """
g (float[4,32] x, float[32,16] w, float[32,16] v) => (float[4,16] y, float[4,16] z)
{ y = MatMul(x, w)  r = Relu(x)  z = MatMul(r, v) }
"""
WEIGHTS = {"w": (32, 16), "v": (32, 16)}


class Fixed(CostModel):
    """Every work takes a microsecond with one tile."""

    def __init__(self, tile: str) -> None:
        super().__init__()
        self.tile = tile
        self.workloads: list[str] = []

    def timings(self, groups: Sequence[Sequence[Workload]]) -> list[list[Timing | None]]:
        self.workloads += [workload.key for group in groups for workload in group]
        return [[Timing(1e-6, 1e-6, 1e-6, self.tile) for _ in group] for group in groups]


def test_products_get_their_tile(rewrite) -> None:
    costs = Fixed("4x16")
    _, result = rewrite(ChooseTiles(costs), TEXT, WEIGHTS)
    tiles = [(node.op_type, node.metadata_props.get(TILE)) for node in result.model.graph]
    assert tiles == [("MatMul", "4x16"), ("Relu", None), ("MatMul", "4x16")]
    assert [(choice.algorithm, choice.tile, choice.measured) for choice in result.choices] == [
        ("gemm", "4x16", True)
    ] * 2
    assert len(set(costs.workloads)) == 1


def test_the_kernels_own_choice_needs_no_mark(rewrite) -> None:
    _, result = rewrite(ChooseTiles(Fixed("")), TEXT, WEIGHTS)
    assert not result.modified
    assert all(TILE not in node.metadata_props for node in result.model.graph)


def test_estimates_choose_nothing(rewrite) -> None:
    _, result = rewrite(ChooseTiles(), TEXT, WEIGHTS)
    assert not result.modified
    assert result.choices == ()
