"""Views of tensors, and kernels that read through transposes and reshapes instead of having them done."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphopt.compiler import compile_model
from graphopt.program.program import NativeSegment
from graphopt.targets.gpu.kernels.views import View, groups


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ((2, 5, 12), (2, 5, 3, 4), ["0|0", "1|1", "2|23"]),
        ((2, 5, 3, 4), (2, 5, 12), ["0|0", "1|1", "23|2"]),
        ((6, 4), (4, 6), ["01|01"]),
        ((2, 3, 1), (2, 3), ["0|0", "12|1"]),
        ((6,), (2, 3, 1, 1), ["0|0123"]),
        ((), (), []),
    ],
)
def test_groups(old: Any, new: Any, expected: list[str]) -> None:
    assert ["|".join("".join(map(str, each)) for each in pair) for pair in groups(old, new)] == expected


@given(st.data())
def test_moves_give_the_same_elements(data: st.DataObject) -> None:
    """Any chain of transposes and reshapes: the element at a place is the source's at the view's index."""
    array = source = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    view = View.whole(source.shape)
    for _ in range(data.draw(st.integers(0, 3))):
        move = data.draw(st.sampled_from(["permute", "reshape", "slice"]))
        if move == "slice":
            starts = [data.draw(st.integers(0, extent - 1)) for extent in array.shape]
            stops = [data.draw(st.integers(start + 1, e)) for start, e in zip(starts, array.shape, strict=True)]
            array = array[tuple(slice(*each) for each in zip(starts, stops, strict=True))]
            view = view.sliced(starts, array.shape)
        elif move == "permute" or array.size != 120:
            order = data.draw(st.permutations(range(array.ndim)))
            array, view = array.transpose(order), view.permuted(order)
        else:
            shape = data.draw(st.sampled_from([(6, 20), (2, 12, 5), (120,), (3, 2, 2, 10), (1, 4, 1, 30)]))
            array, view = array.reshape(shape), view.reshaped(shape)
    assert view.shape == array.shape
    for place in np.ndindex(*array.shape):
        assert source[tuple(int(at) for at in view.index(place))] == array[place]


def test_contiguous() -> None:
    """Heads taken out of a row of numbers are rows still; a transposed matrix is not."""
    heads = View.whole((2, 7, 64)).reshaped((2, 7, 4, 16)).permuted((0, 2, 1, 3))
    assert heads.contiguous((2, 7, 64), 8)
    assert not heads.permuted((0, 1, 3, 2)).contiguous((2, 7, 64), 8)
    assert not View.whole((2, 7, 60)).reshaped((2, 7, 5, 12)).permuted((0, 2, 1, 3)).contiguous((2, 7, 60), 8)


def test_joined_products_are_read_in_place(opencl: Any) -> None:
    """One product for q, k and v; attention reads its thirds, so that there are two kernels in all."""
    compiled = compile_model(attention_model(), target="opencl", verify="ends")
    assert "join-products" in str(compiled.pipeline)
    segments = [segment for stage in compiled.artifact.program.stages for segment in stage.segments]
    calls = [call.symbol for each in segments if isinstance(each, NativeSegment) for call in each.calls]
    assert [symbol.rsplit("_", 1)[0] for symbol in calls] == ["matmul", "attention"]


def attention_model(order: str = "0, 2, 1, 3") -> onnx.ModelProto:
    """Three products, heads, attention, heads back."""
    heads = "\n".join(
        f"""
        {x}p = MatMul(x, w{x})
        {x}r = Reshape({x}p, split)
        {x}h = Transpose<perm = [0, 2, 1, 3]>({x}r)
        """
        for x in "qkv"
    )
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    attention (float[2, 9, 32] x) => (float[2, 9, 32] y)
    <float[32, 32] wq, float[32, 32] wk, float[32, 32] wv, float half = {{0.35}},
     int64[4] split = {{2, 9, 4, 8}}, int64[3] join = {{2, 9, 32}}> {{
        {heads}
        kt = Transpose<perm = [0, 1, 3, 2]>(kh)
        s = MatMul(qh, kt)
        scaled = Mul(s, half)
        p = Softmax<axis = -1>(scaled)
        a = MatMul(p, vh)
        t = Transpose<perm = [{order}]>(a)
        y = Reshape(t, join)
    }}
    """
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    for name in ("wq", "wk", "wv"):
        weight = rng.standard_normal((32, 32)).astype(np.float32) / 4
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    return model


@pytest.mark.parametrize(("order", "transposes"), [("0, 2, 1, 3", 0), ("0, 1, 2, 3", 0), ("2, 0, 1, 3", 0)])
def test_attention_reads_and_writes_through_transposes(opencl: Any, order: str, transposes: int) -> None:
    compiled = compile_model(attention_model(order), target="opencl", verify="ends")
    segments = [segment for stage in compiled.artifact.program.stages for segment in stage.segments]
    calls = [call.symbol for each in segments if isinstance(each, NativeSegment) for call in each.calls]
    assert sum("attention" in symbol for symbol in calls) == 1
    assert sum("transpose" in symbol for symbol in calls) == transposes


def test_who_else_reads_a_result_gets_it_as_it_is(opencl: Any) -> None:
    """The attention's result is an output too: it is written plainly, and its transpose is a kernel."""
    model = attention_model()
    model.graph.output.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [2, 4, 9, 8]))
    compiled = compile_model(model, target="opencl", verify="ends")
    assert [port.name for port in compiled.artifact.program.outputs] == ["y", "a"]


def test_attention_reads_parts_of_a_transposed_product(opencl: Any) -> None:
    """One weight for q, k and v, whose product is turned and cut: nothing of that is a kernel."""
    parts = "\n".join(
        f"{x}s = Slice(turned, n{i}, n{i + 1}, n0)  {x} = Squeeze({x}s, n0)" for i, x in enumerate(["q", "k", "v"])
    )
    text = f"""
    <ir_version: 10, opset_import: ["" : 20]>
    packed (float[2, 9, 32] x) => (float[2, 9, 32] y)
    <float[32, 96] w, float half = {{0.35}}, int64[5] split = {{2, 9, 3, 4, 8}}, int64[3] join = {{2, 9, 32}},
     int64[1] n0 = {{0}}, int64[1] n1 = {{1}}, int64[1] n2 = {{2}}, int64[1] n3 = {{3}}> {{
        p = MatMul(x, w)
        r = Reshape(p, split)
        turned = Transpose<perm = [2, 0, 3, 1, 4]>(r)
        {parts}
        kt = Transpose<perm = [0, 1, 3, 2]>(k)
        s = MatMul(q, kt)
        scaled = Mul(s, half)
        weights = Softmax<axis = -1>(scaled)
        a = MatMul(weights, v)
        t = Transpose<perm = [0, 2, 1, 3]>(a)
        y = Reshape(t, join)
    }}
    """
    model = onnx.parser.parse_model(text)
    weight = np.random.default_rng(0).standard_normal((32, 96)).astype(np.float32) / 4
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    compiled = compile_model(model, target="opencl", verify="ends")
    segments = [segment for stage in compiled.artifact.program.stages for segment in stage.segments]
    calls = [call.symbol for each in segments if isinstance(each, NativeSegment) for call in each.calls]
    assert [symbol.rsplit("_", 1)[0] for symbol in calls] == ["matmul", "attention"]
