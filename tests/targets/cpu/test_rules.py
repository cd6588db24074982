"""Every PrimFunc gets a schedule; a rule that does not fit costs speed and a note, and never the numbers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from graphopt.cost.workload import SKIP_ZEROS, TILE
from graphopt.targets.cpu import rules
from graphopt.targets.cpu.target import CpuTarget
from graphopt.verify.oracle import run_onnxruntime
from tests.helpers.block_sparse import block_sparse
from tests.helpers.equal import require_equal


def numbers(*shape: int) -> Any:
    return np.random.default_rng([1, *shape]).standard_normal(shape).astype(np.float32)


WINOGRAD = ("y = graphopt.Conv2dWinograd<m=2,pads=[1,1,1,1]>(x, w, b)", (1, 1, 6, 7, 16), (16, 1, 1, 16, 16))
BLOCKS, NARROW = block_sparse(20, 33, (1, 16), 0.3), block_sparse(20, 33, (1, 4), 0.3)
BYTES = "q, s, z = DynamicQuantizeLinear(x) v = Cast<to=3>(w)"
CASES = {
    "gemm": ("y = MatMul(x, w)", (9, 20), (20, 33)),
    "extreme": ("y = GlobalMaxPool(x) z = Mul(w, w)", (2, 3, 37), (2, 2)),
    "ends": ("y, s, z = DynamicQuantizeLinear(x) v = Add(w, w)", (9, 20), (2, 2)),
    "integer_gemm": (f"{BYTES} y = MatMulInteger(q, v, z)", (9, 20), (20, 33)),
    "integer_conv": (f"{BYTES} y = ConvInteger<pads=[1,1,1,1]>(q, v, z)", (1, 4, 6, 7), (8, 4, 3, 3)),
    "rowwise": ("s = Softmax(x) y = Mul(s, w)", (9, 20), (9, 20)),
    "conv_direct": (
        "c = graphopt.Conv2dBlocked<strides=[1,1],pads=[1,1,1,1],dilations=[1,1],group=1>(x, w, b) y = Relu(c)",
        (1, 1, 6, 7, 16), (1, 1, 3, 3, 16, 16),
    ),
    "lrn": (
        "y = graphopt.LRNBlocked<channels=16, size=3, alpha=0.1, beta=0.75, bias=1.0>(x) z = Mul(w, w)",
        (1, 1, 6, 7, 16), (1, 1, 3, 16),
    ),
    "window": (
        "y = graphopt.DepthwiseConv2dBlocked<strides=[1,1],pads=[1,1,1,1],dilations=[1,1]>(x, w, b)",
        (1, 1, 6, 7, 16), (1, 3, 3, 16),
    ),
    "winograd_product": WINOGRAD,
    "winograd_input": WINOGRAD,
    "winograd_output": WINOGRAD,
    "winograd_fused": WINOGRAD,
    "fft_output": (
        "y = graphopt.Conv2dFft<tile=8, kernel_shape=[5, 5], pads=[2, 2, 2, 2], group=1>(x, w, b)",
        (1, 1, 6, 7, 16), (94, 1, 1, 16, 16),
    ),
    "gemm_of_sparse_inputs": ("y = MatMul(x, w)", (1, 20), (20, 33)),
    "sparse_outputs": (BLOCKS.call, (9, 20), BLOCKS.constants),
    "sparse_rows": (NARROW.call, (9, 20), NARROW.constants),
    "sparse_conv": (
        "graphopt.BlockSparseConv <outputs = [33], kernel_shape = [1, 1], strides = [1, 1], pads = [0, 0, 0, 0], "
        "dilations = [1, 1]>(x, blocks, rows, starts, bias)",
        (1, 2, 6, 7, 16), {**BLOCKS.constants, "bias": numbers(3, 16)},
    ),
    "weight_gradient": (
        "y = graphopt.Conv2dWeightGradientBlocked"
        "<kernel_shape=[3,3],strides=[1,1],pads=[1,1,1,1],dilations=[1,1],group=1>(x, w)",
        (1, 1, 6, 7, 16), (1, 1, 6, 7, 16),
    ),
    "depthwise_weight_gradient": (
        "y = graphopt.DepthwiseWeightGradientBlocked"
        "<kernel_shape=[3,3],strides=[1,1],pads=[1,1,1,1],dilations=[1,1]>(x, w)",
        (1, 1, 6, 7, 16), (1, 1, 6, 7, 16),
    ),
    "winograd_weight": ("y = graphopt.WinogradWeight<m=2>(x) z = Mul(w, w)", (1, 1, 3, 3, 16, 16), (2, 2)),
    "channel_sums_blocked": ("y = graphopt.ChannelSumsBlocked<channels=20>(x) z = Mul(w, w)", (2, 2, 6, 7, 16), (2, 2)),
}  # fmt: skip


TILES = {"winograd_fused": "fused1:2x1"}
"""By rule, the tile that leads to it where the default one does not."""


@pytest.mark.parametrize("rule", CASES)
@pytest.mark.parametrize("error", [ValueError("nothing fits"), TypeError("nothing fits")])
def test_a_rule_that_does_not_fit_leaves_a_note_and_the_right_numbers(
    lab: Any, rule: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = replace(lab, target=CpuTarget())  # one that has not built these kernels yet
    body, x, w = CASES[rule]
    real = rules.RULES[rule]

    def fails_late(sch: Any, *rest: Any) -> Any:
        """Raises after it has changed the schedule, which must not show."""
        real(sch, *rest)
        raise error

    monkeypatch.setitem(rules.RULES, rule, fails_late)
    feeds = {"x": numbers(*x)}
    constants = w if isinstance(w, dict) else {"w": numbers(*w)}
    if "(x, w, b)" in body:
        constants = {**constants, "b": numbers(1, 16)}
    model = lab.model(f"y = {body}" if isinstance(w, dict) else body, feeds, constants)
    if rule == "gemm_of_sparse_inputs":
        model.graph[0].metadata_props[SKIP_ZEROS] = "1"
    if rule in TILES:
        model.graph[0].metadata_props[TILE] = TILES[rule]
    lowered = lab.lower(model)
    (note,) = lowered.notes
    assert f"the schedule rule {rule} does not fit its shape (nothing fits)" in note
    assert note.startswith("kernel ")
    require_equal(run_onnxruntime(model, feeds), lab.execute(lowered, feeds), "without the rule")


def test_every_rule_is_the_anchor_of_some_kernel() -> None:
    assert set(CASES) == set(rules.RULES)


def test_a_kernel_without_a_rule_gets_the_generic_schedule(every_lab: Any) -> None:
    """Parallel and in vectors, with no note."""
    feeds = {"x": numbers(64, 512), "z": numbers(64, 512)}
    lowered = every_lab.same("a = Add(x, z) b = Mul(a, x) y = Sub(b, z)", feeds)
    (call,) = lowered.calls
    text = str(lowered.functions[call.symbol])
    assert "T.parallel" in text
    assert "T.vectorized" in text


def test_a_small_kernel_wakes_no_other_core(lab: Any) -> None:
    lowered = lab.same("y = Add(x, x)", {"x": numbers(4, 5)})
    assert "T.parallel" not in str(lowered.functions[lowered.calls[0].symbol])


def test_loops_written_by_hand_stay_as_they_are(lab: Any) -> None:
    feeds = {"x": numbers(4, 3), "i": np.array([[0, 1, 2]]), "u": numbers(1, 3)}
    model = lab.model("y = ScatterElements(x, i, u)", feeds)
    lowered = lab.lower(model)
    (note,) = lowered.notes
    assert note.endswith(": no schedule rule applies; the kernel runs on one thread")
    require_equal(run_onnxruntime(model, feeds), lab.execute(lowered, feeds), "as it is")
