"""Products with sparse matrices become products with their blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from graphopt.cost.model import CostModel
from graphopt.cost.node_workload import workload_of
from graphopt.cost.roofline import Machine
from graphopt.cost.workload import Timing, Workload
from graphopt.errors import GraphoptError
from graphopt.passes import ClusterSparse
from graphopt.pipeline.pass_base import PassResult
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import listing, parse

PRODUCT = "g (float[64,96] x, float[96,128] w) => (float[64,128] y) { y = MatMul(x, w) }"


class Fixed(CostModel):
    """`dense` are the seconds of a MatMul or Gemm; `b16x1` and so on those of one block of that shape."""

    def __init__(self, dense: float, **blocks: float) -> None:
        super().__init__()
        self.dense, self.blocks = dense, blocks
        self.asked: list[str] = []

    def timings(self, groups: Sequence[Sequence[Workload]]) -> list[list[Timing | None]]:
        return [[self._timing(workload) for workload in group] for group in groups]

    def _timing(self, workload: Workload) -> Timing:
        seconds = self.dense
        if workload.op_type == "CompressedColumnsMatMul":
            seconds = self.blocks.get("columns", 1.0)
        elif workload.domain:
            count, depth, width = workload.operands[1].shape
            self.asked.append(f"b{width}x{depth}")
            seconds = self.blocks.get(f"b{width}x{depth}", 1.0) * count
        return Timing(seconds, seconds, seconds, "")


def mask(rows: int, columns: int, block: tuple[int, int], density: float, shuffled: bool = False) -> NDArray[Any]:
    generator = np.random.default_rng(0)
    kept = generator.random((rows // block[0], columns // block[1])) < density
    full = np.kron(kept, np.ones(block))
    return full[:, generator.permutation(columns)] if shuffled else full


def rewritten(
    each: ClusterSparse, text: str, masks: Mapping[str, NDArray[Any]], tolerance: float = 1e-5
) -> tuple[str, PassResult]:
    """The listing after the pass and its result, the outputs held against those before."""
    model = parse(text, {name: array.shape for name, array in masks.items()})
    for name, array in masks.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor((value.const_value.numpy() * array).astype(np.float32), name=name)
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(model, feeds)
    result = each(model)
    require_equal(
        expected, run_onnxruntime(model, feeds), "after the pass", {"float32": Tolerance(tolerance, tolerance)}
    )
    assert not each(model).modified
    return listing(model), result


def test_blocks_as_they_are() -> None:
    after, result = rewritten(ClusterSparse(costs=Fixed(1e-3, b16x1=1e-6)), PRODUCT, {"w": mask(96, 128, (1, 16), 0.1)})
    blocks = int(mask(96, 128, (1, 16), 0.1).sum()) // 16
    assert after == (
        f"y[64,128] = BlockSparseMatMul(x, const[{blocks},1,16], const[{blocks}], const[{blocks}]) {{outputs=[128]}}"
    )
    (choice,) = result.choices
    assert (choice.algorithm, choice.seconds, choice.measured) == ("sparse 16x1", pytest.approx(blocks * 1e-6), True)
    assert ("dense", 1e-3, "slower") in [(a.algorithm, a.seconds, a.reason) for a in choice.alternatives]


def test_outputs_are_clustered_and_put_back() -> None:
    costs = Fixed(1e-3, b16x1=1e-6)
    after, result = rewritten(
        ClusterSparse(measured=12, costs=costs), PRODUCT, {"w": mask(96, 128, (1, 16), 0.1, shuffled=True)}
    )
    blocks = int(mask(96, 128, (1, 16), 0.1).sum()) // 16
    assert after.splitlines()[1] == "y[64,128] = Gather(matmul0.blocksparsematmul, const[128]) {axis=1}"
    assert f"BlockSparseMatMul(x, const[{blocks},1,16]" in after, "clustering finds the blocks that were shuffled"
    assert result.choices[0].algorithm == "sparse 16x1 clustered"


def test_square_blocks() -> None:
    costs = Fixed(1e-3, b16x16=1e-6)
    after, _ = rewritten(ClusterSparse(costs=costs), PRODUCT, {"w": mask(96, 128, (16, 16), 0.2)})
    assert f"const[{int(mask(96, 128, (16, 16), 0.2).sum()) // 256},16,16]" in after


@pytest.mark.parametrize(
    "node",
    ["y = Gemm(x, w, b)", "y = Gemm <transB = 1>(x, w, b)", "t = MatMul(x, w) y = Add(t, b)", "y = Gemm(x, w)"],
)
def test_gemm(node: str) -> None:
    kept = mask(96, 128, (1, 16), 0.1)
    kept = kept.T if "transB" in node else kept
    text = (
        f"g (float[64,96] x, float[{kept.shape[0]},{kept.shape[1]}] w, float[128] b) => (float[64,128] y) {{ {node} }}"
    )
    weights = {"w": kept} | ({"b": np.ones(128)} if "b)" in node else {})
    text = text if "b)" in node else text.replace(", float[128] b", "")
    after, result = rewritten(ClusterSparse(costs=Fixed(1e-3, b16x1=1e-6)), text, weights)
    assert "BlockSparseMatMul" in after
    assert ("Add" in after) == ("b" in weights)
    assert result.modified


@pytest.mark.parametrize(
    ("density", "options"), [(0.7, {}), (0.1, {"min_weights": 1 << 20}), (0.1, {"max_density": 0.05})]
)
def test_what_is_dense_or_small_is_not_looked_at(density: float, options: dict[str, Any]) -> None:
    costs = Fixed(1.0, b16x1=1e-9)
    _, result = rewritten(ClusterSparse(costs=costs, **options), PRODUCT, {"w": mask(96, 128, (1, 16), density)})
    assert not result.modified
    assert costs.asked == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"gain": 0.0}, "gain must be a number above 0, as 1.05, not 0"),
        ({"gain": float("nan")}, "gain must be a number above 0, as 1.05, not nan"),
        ({"measured": 0}, "measured must be a number from 1 on, not 0"),
        ({"max_density": 1.5}, "max-density must be a share from 0 to 1, not 1.5"),
        ({"min_weights": -1}, "min-weights must be a number from 0 on, not -1"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(GraphoptError, match=sentence):
        ClusterSparse(**options)


def test_a_product_that_is_faster_dense_stays_with_both_costs() -> None:
    kept = mask(96, 128, (1, 16), 0.5)
    blocks = int(kept.sum()) // 16
    costs = Fixed(1e-4, b16x1=0.98e-4 / blocks)
    after, result = rewritten(ClusterSparse(costs=costs), PRODUCT, {"w": kept})
    assert after == "y[64,128] = MatMul(x, const[96,128])"
    (choice,) = result.choices
    assert choice.algorithm == "dense"
    reasons = {other.algorithm: other.reason for other in choice.alternatives}
    assert reasons["sparse 16x1"] == "not faster by enough"


def test_estimates_decide_where_nothing_is_measured() -> None:
    after, result = rewritten(ClusterSparse(), PRODUCT, {"w": mask(96, 128, (1, 16), 0.05)})
    assert "BlockSparseMatMul" in after
    assert not result.choices[0].measured


def test_a_matrix_of_zeros() -> None:
    after, _ = rewritten(ClusterSparse(), PRODUCT, {"w": np.zeros((96, 128))})
    assert "const[0,1," in after


def test_weights_that_are_shared_stay_for_the_other(rewrite: Callable[..., Any]) -> None:
    text = """g (float[64,96] x, float[96,128] w) => (float[64,128] y, float[128,96] v)
        { y = MatMul(x, w)  v = Transpose(w) }"""
    after, _ = rewritten(ClusterSparse(costs=Fixed(1e-3, b16x1=1e-6)), text, {"w": mask(96, 128, (1, 16), 0.1)})
    assert "Transpose(const[96,128])" in after


def test_the_densities_are_told() -> None:
    _, result = rewritten(ClusterSparse(), PRODUCT, {"w": mask(96, 128, (1, 16), 0.1, shuffled=True)})
    (note,) = result.notes
    assert note == (
        "matmul0: 8.7% of the weights are not zero; 44.5% of the vectors of 16 outputs hold one, 8.7% clustered, "
        "76.8% would at random"
    )


NODE = {False: "matmul0", True: "gemm0"}

FAST_COPIES = Machine(bandwidth=2e12)
"""A machine on which Gather and Concat cost next to nothing, so that small products show what large ones choose."""

WIDE = "g (float[64,256] x, float[256,256] w) => (float[64,256] y) { y = MatMul(x, w) }"


def test_square_blocks_are_clustered_on_both_sides() -> None:
    kept = mask(256, 256, (16, 16), 0.2, shuffled=True)[np.random.default_rng(1).permutation(256)]
    after, result = rewritten(ClusterSparse(costs=CostModel(FAST_COPIES)), WIDE, {"w": kept})
    blocks = int(kept.sum()) // 256
    assert after.splitlines() == [
        "matmul0.gather[64,256] = Gather(x, const[256]) {axis=1}",
        f"matmul0.blocksparsematmul[64,256] = BlockSparseMatMul(matmul0.gather, const[{blocks},16,16], "
        f"const[{blocks}], const[{blocks}]) {{outputs=[256]}}",
        "y[64,256] = Gather(matmul0.blocksparsematmul, const[256]) {axis=1}",
    ]
    assert result.choices[0].algorithm == "sparse 16x16 clustered"


@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_outputs_are_cut_into_ranges(shuffled: bool, bias: bool) -> None:
    """One half is dense, the other one of few blocks: each is computed in its own way."""
    kept = np.concatenate([np.ones((256, 128)), mask(256, 128, (1, 16), 0.1)], axis=1)
    kept = kept[:, np.random.default_rng(0).permutation(256)] if shuffled else kept
    text = WIDE.replace("y = MatMul(x, w)", "y = Gemm(x, w, b)").replace(" w)", " w, float[256] b)", 1)
    masks = {"w": kept, "b": np.ones(256)} if bias else {"w": kept}
    after, result = rewritten(ClusterSparse(costs=CostModel(FAST_COPIES)), text if bias else WIDE, masks)
    assert result.choices[0].algorithm == "sparse 2 ranges" + (" clustered" if shuffled else "")
    assert "MatMul(x, const[256,128])" in after
    assert "BlockSparseMatMul(x, const[" in after
    assert ("Gather" in after) == shuffled
    order = ", in another order," if shuffled else ""
    assert result.notes[-1] == f"{NODE[bias]}: of the 256 outputs{order} 128 dense, then 128 in blocks of 16x1"
    assert ("Add" in after) == bias


def test_ranges_are_measured_piece_by_piece() -> None:
    """What is timed are the nodes that are emitted."""
    timed: list[Workload] = []

    class Pieces(Fixed):
        def _timing(self, workload: Workload) -> Timing:
            timed.append(workload)
            return Timing(1e-5, 1e-5, 1e-5, "") if workload.shape == (64, 128) else super()._timing(workload)

    kept = np.concatenate([np.ones((256, 128)), mask(256, 128, (1, 16), 0.1)], axis=1)
    costs = Pieces(1e-3, b16x1=1e-5)
    costs.machine = FAST_COPIES
    model = parse(WIDE, {"w": (256, 256)})
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor((value.const_value.numpy() * kept).astype(np.float32), name="w")
    (choice,) = ClusterSparse(costs=costs)(model).choices
    assert (choice.algorithm, choice.measured) == ("sparse 2 ranges", True)
    assert choice.seconds == pytest.approx(2e-5 + 2 * 64 * 256 * 4 / FAST_COPIES.bandwidth)
    emitted = [workload_of(node) for node in model.graph if "MatMul" in node.op_type]
    assert len(emitted) == 2
    assert set(emitted) <= set(timed)


def test_one_kind_of_block_is_not_cut() -> None:
    _, result = rewritten(ClusterSparse(costs=CostModel(FAST_COPIES)), WIDE, {"w": mask(256, 256, (1, 16), 0.1)})
    assert not any("ranges" in other.algorithm for other in result.choices[0].alternatives)


@pytest.mark.parametrize("node", ["y = MatMul(s, v)", "y = Gemm(x, v, s)"])
def test_products_that_read_products(node: str) -> None:
    """The second one reads what the first one became, with nothing between them."""
    text = "g (float[64,96] x, float[96,96] w, float[96,96] v) => (float[64,96] y) { s = MatMul(x, w) " + node + " }"
    kept = mask(96, 96, (1, 16), 0.1)
    after, result = rewritten(ClusterSparse(costs=Fixed(1e-3, b16x1=1e-6)), text, {"w": kept, "v": kept})
    assert after.count("BlockSparseMatMul(") == len(result.choices) == 2


@pytest.mark.parametrize("rows", [1, 4, 5])
@pytest.mark.parametrize("values", [3, 300])
def test_few_values_are_read_from_compressed_columns(rows: int, values: int) -> None:
    """Where they are few, and few rows read them: a code says which value it is."""
    text = f"g (float[{rows},96] x, float[96,128] w, float[128] b) => (float[{rows},128] y) {{ y = Gemm(x, w, b) }}"
    model = parse(text, {"w": (96, 128), "b": (128,)})
    rng = np.random.default_rng(0)
    book = rng.standard_normal(values)
    weights = book[rng.integers(values, size=(96, 128))] * (rng.random((96, 128)) < 0.2)
    model.graph.initializers["w"].const_value = ir.Tensor(weights.astype(np.float32), name="w")
    feeds = random_inputs(model, 0)
    expected = run_onnxruntime(model, feeds)
    result = ClusterSparse(measured=9, costs=Fixed(1e-3, columns=1e-6))(model)
    assert isinstance(result, PassResult)
    compressed = "CompressedColumnsMatMul" in listing(model)
    assert compressed == (rows <= 4 and values == 3)
    if compressed:
        assert result.choices[0].algorithm == "sparse columns"
        require_equal(expected, run_onnxruntime(model, feeds), "columns", {"float32": Tolerance(1e-5, 1e-5)})
