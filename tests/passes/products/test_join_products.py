"""before -> after; the `rewrite` fixture checks validity, numbers and idempotence each time."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir
import pytest

from graphopt.passes import Fuse, JoinProducts
from graphopt.pipeline.pass_base import Pass, PassResult


@dataclass(frozen=True)
class Joined(Pass):
    """fuse, which makes the attention, then join-products."""

    name: ClassVar[str] = "fuse-and-join"

    def call(self, model: ir.Model) -> PassResult:
        first = Fuse()(model)
        second = JoinProducts()(model)
        assert isinstance(second, PassResult)
        return PassResult(model, first.modified or second.modified, notes=second.notes)


WEIGHTS = dict.fromkeys(("wq", "wk", "wv"), (8, 8)) | dict.fromkeys(("bq", "bk", "bv"), (8,))
HEAD = (
    "g (float[1,3,8] x, float[8,8] wq, float[8,8] wk, float[8,8] wv, float[8] bq, float[8] bk, float[8] bv)"
    " => (float[1,2,3,4] y{more}) <int64[4] heads = {{1, 3, 2, 4}}, float half = {{0.5}}> {{"
)
TAIL = (
    " qr = Reshape(q, heads) kr = Reshape(k, heads) vr = Reshape(v, heads)"
    " qh = Transpose<perm = [0, 2, 1, 3]>(qr) kh = Transpose<perm = [0, 2, 3, 1]>(kr)"
    " vh = Transpose<perm = [0, 2, 1, 3]>(vr)"
    " s = MatMul(qh, kh) c = Mul(s, half) p = Softmax<axis = -1>(c) y = MatMul(p, vh) }"
)


def model(products: str, more: str = "") -> str:
    return HEAD.format(more=more) + products + TAIL


def products(listing: str) -> list[str]:
    return [line for line in listing.splitlines() if " = MatMul(" in line or " = Add(" in line or " = Slice(" in line]


BIASED = " ".join(f"m{n} = MatMul(x, w{n}) {n} = Add(m{n}, b{n})" for n in "qkv")


def test_three_products_with_biases(rewrite) -> None:
    after, result = rewrite(Joined(), model(BIASED), WEIGHTS)
    joined = [line.split(" = ")[1] for line in products(after)]
    assert joined[0] == "MatMul(x, const[8,24])"
    assert joined[1].startswith("Add(")
    assert joined[1].endswith("const[24])")
    assert len(joined) == 5
    assert all(line.startswith("Slice(") for line in joined[2:])
    assert result.notes == ("3 products as 1",)


def test_products_without_biases(rewrite) -> None:
    after, _ = rewrite(Joined(), model("q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv)"), WEIGHTS)
    assert "MatMul(x, const[8,24])" in after


@pytest.mark.parametrize(
    ("text", "more"),
    [
        ("q = MatMul(x, wq) z = Relu(x) k = MatMul(z, wk) t = Tanh(x) v = MatMul(t, wv)", ""),
        ("q = MatMul(x, wq) mk = MatMul(x, wk) k = Relu(mk) mv = MatMul(x, wv) v = Tanh(mv)", ""),
        ("q = MatMul(x, wq) mk = MatMul(x, wk) k = Add(mk, bk) v = Relu(x)", ""),
        ("q = MatMul(x, wq) k = MatMul(x, wk) mv = MatMul(x, wv) v = Relu(mv)", ", float[1,3,8] k"),
    ],
    ids=["of different tensors", "changed on the way", "with and without a bias", "read by others too"],
)
def test_products_that_stay(rewrite, text: str, more: str) -> None:
    after, result = rewrite(Joined(), model(text, more), WEIGHTS)
    assert "const[8,8]" in after
    assert "Slice" not in after
    assert result.notes == ()


def test_products_that_feed_no_attention(rewrite) -> None:
    text = (
        "g (float[2,8] x, float[8,8] wq, float[8,8] wk) => (float[2,8] y) { q = MatMul(x, wq) k = MatMul(x, wk) "
        "y = Mul(q, k) }"
    )
    after, result = rewrite(JoinProducts(), text, {"wq": (8, 8), "wk": (8, 8)})
    assert after.count("MatMul") == 2
    assert not result.modified
