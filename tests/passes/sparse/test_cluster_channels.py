"""Channels get the order in which the layers that make and read them need the fewest blocks."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from graphopt.cost.roofline import Machine
from graphopt.graph.edit import Editor
from graphopt.passes.sparse.cluster_channels import cluster_channels
from graphopt.verify.oracle import Tolerance, random_inputs, run_onnxruntime
from tests.helpers.equal import require_equal
from tests.helpers.text_models import parse

Mask = NDArray[np.bool_]


def planted(inputs: int, outputs: int, order: NDArray[np.int64], seed: int, depth: int = 1) -> Mask:
    """[inputs, outputs]: blocks of `depth` x 16, the outputs in another order."""
    kept = np.random.default_rng(seed).random((inputs // depth, outputs // 16)) < 0.2
    return np.kron(kept, np.ones((depth, 16), np.bool_))[:, order]


def clustered(text: str, weights: dict[str, Mask]) -> tuple[list[str], ir.Model]:
    """The sentences, and the model, which computes what it did."""
    model = parse(text, {name: mask.shape for name, mask in weights.items()})
    for name, mask in weights.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor((value.const_value.numpy() * mask).astype(np.float32), name=name)
    feeds = random_inputs(model, 0)
    before = run_onnxruntime(model, feeds)
    notes = cluster_channels(Editor(model, "test"), Machine(), 0.6)
    require_equal(before, run_onnxruntime(model, feeds), "permuted", {"float32": Tolerance(1e-4, 1e-4)})
    return notes, model


def blocks(model: ir.Model, node: int, depth: int = 1) -> int:
    """Blocks of `depth` x 16 of the matrix of a node that hold something."""
    weight = model.graph.node(node).inputs[1].const_value.numpy()
    k, n = weight.shape
    return int((weight.reshape(k // depth, depth, n // 16, 16) != 0).any(axis=(1, 3)).sum())


def order(extent: int, seed: int = 0) -> NDArray[np.int64]:
    return np.random.default_rng(seed).permutation(extent)


RESIDUAL = """g (float[64,64] x, float[64,128] w, float[128,128] a, float[128,8] v) => (float[64,8] y)
    { t = MatMul(x, w) r = Relu(t) s = MatMul(r, a) u = Add(s, t) y = MatMul(u, v) }"""


def test_planted_groups_are_found_across_a_residual_addition() -> None:
    """Both producers of the class get the same order, in which both are dense blocks."""
    shuffled = order(128)
    masks = {"w": planted(64, 128, shuffled, 1), "a": planted(128, 128, shuffled, 2), "v": np.ones((128, 8), bool)}
    (note,), model = clustered(RESIDUAL, masks)
    assert note.startswith("outputs of matmul0, matmul2 are permuted: ")
    assert blocks(model, 0) == masks["w"].sum() // 16
    assert blocks(model, 2) == masks["a"].sum() // 16


def test_producers_that_disagree_get_the_order_that_costs_least() -> None:
    """One of them has more weights, but is computed for one row only: the other one has its order."""
    masks = {
        "w": planted(256, 128, order(128, 3), 1),
        "b": planted(512, 128, order(128, 4), 2),
        "v": np.ones((128, 8), bool),
    }
    (note,), model = clustered(
        """g (float[64,256] x, float[1,512] z, float[256,128] w, float[512,128] b, float[128,8] v) => (float[64,8] y)
        { t = MatMul(x, w) s = MatMul(z, b) u = Add(s, t) y = MatMul(u, v) }""",
        masks,
    )
    assert "outputs of matmul0, matmul1 are permuted, in the order of matmul0 because they disagree: " in note
    assert blocks(model, 0) == masks["w"].sum() // 16


def test_heads_are_sorted_each_for_itself() -> None:
    """q and k agree within each head, v is its own; what crosses heads cannot be sorted."""
    within = np.concatenate([order(64, seed) + 64 * seed for seed in range(2)])
    masks = {name: planted(64, 128, within, seed) for seed, name in enumerate("abc")}
    masks["o"] = np.ones((128, 8), bool)
    notes, model = clustered(
        """g (float[1,32,64] x, float[64,128] a, float[64,128] b, float[64,128] c, float[128,8] o) => (float[1,32,8] y)
        <int64[4] s = {1, 32, 2, 64}, int64[3] u = {1, 32, 128}>
        { q = MatMul(x, a) k = MatMul(x, b) v = MatMul(x, c)
          r = Reshape(q, s) t = Transpose <perm = [0, 2, 1, 3]>(r)
          l = Reshape(k, s) m = Transpose <perm = [0, 2, 3, 1]>(l)
          w = Reshape(v, s) z = Transpose <perm = [0, 2, 1, 3]>(w) d = MatMul(t, m) e = Softmax(d) f = MatMul(e, z)
          g = Transpose <perm = [0, 2, 1, 3]>(f) h = Reshape(g, u) y = MatMul(h, o) }""",
        masks,
    )
    assert [note.partition(":")[0] for note in notes] == [
        "outputs of matmul0, matmul1 are permuted, within 2 parts each",
        "outputs of matmul2 are permuted, within 2 parts each",
    ]
    assert [blocks(model, node) for node in range(3)] == [masks[name].sum() // 16 for name in "abc"]


@pytest.mark.parametrize("dense_first", [False, True])
def test_channels_are_grouped_for_square_blocks_of_what_reads_them(dense_first: bool) -> None:
    """The order of the hidden channels serves the outputs of the first product and the inputs of the second."""
    hidden = order(256)
    masks = {
        "w": np.ones((64, 256), bool) if dense_first else planted(64, 256, hidden, 1),
        "v": planted(256, 256, np.arange(256), 2, depth=16)[np.argsort(order(256)) if dense_first else hidden],
    }
    notes, model = clustered(
        """g (float[64,64] x, float[64,256] w, float[256,256] v) => (float[64,256] y)
        { t = MatMul(x, w) r = Relu(t) y = MatMul(r, v) }""",
        masks,
    )
    assert blocks(model, 2, depth=16) == masks["v"].sum() // 256
    if dense_first:
        assert notes == ["inputs of matmul2 are permuted: their square blocks hold fewer zeros"]
    else:
        assert blocks(model, 0) == masks["w"].sum() // 16


def test_random_masks_stay_as_they_are() -> None:
    generator = np.random.default_rng(0)
    masks = {"w": generator.random((64, 128)) < 0.2, "a": generator.random((128, 128)) < 0.2}
    notes, _ = clustered(RESIDUAL, masks | {"v": np.ones((128, 8), bool)})
    assert notes == []


def test_many_layers_of_one_class_are_counted() -> None:
    shuffled = order(64)
    names = "abcdefghi"
    nodes = " ".join(f"{name}_ = MatMul(x, {name})" for name in names)
    text = (
        f"g (float[64,64] x, {', '.join(f'float[64,64] {name}' for name in names)}, float[64,8] v) => (float[64,8] y) "
        f"{{ {nodes} t = Sum({', '.join(f'{name}_' for name in names)}) y = MatMul(t, v) }}"
    )
    masks = {name: planted(64, 64, shuffled, seed) for seed, name in enumerate(names)}
    (note,), _ = clustered(text, masks | {"v": np.ones((64, 8), bool)})
    assert note.startswith("outputs of matmul0, matmul1, matmul2, matmul3, matmul4, matmul5 and 3 more are permuted: ")
