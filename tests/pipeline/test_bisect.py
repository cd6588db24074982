"""Wrong rewrites are planted and must be found, down to the pass and the node."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common
import pytest

from graphopt.errors import ModelError
from graphopt.graph.edit import Editor
from graphopt.passes import Fuse, Layout, Normalize, SelectConv
from graphopt.pipeline.bisect import Verdict, bisect
from graphopt.pipeline.observe import Dump
from graphopt.pipeline.pass_base import Pass, PassResult
from graphopt.pipeline.pipeline import Pipeline

TEXT = """
<ir_version: 11, opset_import: ["": 20]>
g (float[1,16,8,8] x) => (float[1,10] y) <int64[2] s = {1, -1}>
{
  c1 = Conv<pads = [1, 1, 1, 1]>(x, w1)
  n1 = BatchNormalization(c1, s1, b1, m1, v1)
  r1 = Relu(n1)
  c2 = Conv<pads = [1, 1, 1, 1]>(r1, w2)
  a2 = Add(c2, x)
  r2 = Relu(a2)
  p = GlobalAveragePool(r2)
  f = Reshape(p, s)
  g = Gemm<transB = 1>(f, w3)
  y = Softmax(g)
}
"""
VECTORS = ("s1", "b1", "m1", "v1")
SHAPES = {"w1": (16, 16, 3, 3), "w2": (16, 16, 3, 3), "w3": (10, 16), **dict.fromkeys(VECTORS, (16,))}


def model() -> ir.Model:
    declared = ", ".join(f"float[{','.join(map(str, shape))}] {name}" for name, shape in SHAPES.items())
    loaded = ir.from_onnx_text(TEXT.replace("(float[1,16,8,8] x)", f"(float[1,16,8,8] x, {declared})"))
    generator = np.random.default_rng(0)
    for value in list(loaded.graph.inputs)[1:]:
        shape = SHAPES[str(value.name)]
        numbers = generator.uniform(0.5, 1.5, shape) * (1 if len(shape) == 1 else generator.choice([-0.2, 0.2], shape))
        value.const_value = ir.Tensor(numbers.astype(np.float32), name=value.name)
        loaded.graph.inputs.remove(value)
        loaded.graph.register_initializer(value)
    for node in loaded.graph:
        node.name = f"node_{node.outputs[0].name}"
    ir.passes.common.ShapeInferencePass()(loaded)
    return loaded


@dataclass(frozen=True)
class Plant(Pass):
    """A wrong rewrite."""

    name: ClassVar[str] = "plant"
    damage: Callable[[ir.Model], None] = lambda model: None

    def call(self, model: ir.Model) -> PassResult:
        self.damage(model)
        return PassResult(model, True)


def node_of(model: ir.Model, op_type: str, number: int = 0) -> ir.Node:
    return [node for node in model.graph if node.op_type == op_type][number]


def wrong_attribute(model: ir.Model) -> None:
    node_of(model, "Conv2dBlocked", 1).attributes["pads"] = ir.AttrInt64s("pads", [0, 1, 2, 1])


def wrong_weight(model: ir.Model) -> None:
    value = node_of(model, "Conv2dBlocked", 1).inputs[1]
    numbers = value.const_value.numpy().copy()
    numbers[0, 0, 1, 1, 3, 5] = 7.0
    value.const_value = ir.Tensor(numbers, name=value.name)


def wrong_operator(model: ir.Model) -> None:
    node = node_of(model, "Relu", 1)
    node.op_type = "Abs"


def wrong_behind_a_new_node(model: ir.Model) -> None:
    """The Relu becomes Neg(Neg(Relu)) with one Neg forgotten: the wrong value is new, its consumer keeps its name."""
    relu = node_of(model, "Relu", 1)
    editor = Editor(model, "plant")
    x, y = relu.inputs[0], relu.outputs[0]
    like = {"shape": y.shape, "dtype": y.dtype, "origin": [relu]}
    negative = editor.insert(relu, "Neg", [x], name="neg", output="neg", **like)
    again = editor.insert(relu, "Relu", [negative], name="relu2", output="r", **like)
    editor.swap(relu, again)


def wrong_output(model: ir.Model) -> None:
    node = node_of(model, "Softmax")
    node.attributes["axis"] = ir.AttrInt64("axis", 0)


PLANTED = {
    "attribute": (wrong_attribute, "node_c2.Conv2dBlocked", "node_c2"),
    "weight": (wrong_weight, "node_c2.Conv2dBlocked", "node_c2"),
    "operator": (wrong_operator, "node_r2.blocked", "node_r2"),
    "new node": (wrong_behind_a_new_node, "relu2", "node_r2"),
    "output": (wrong_output, "node_y", "node_y"),
}


def run(tmp_path: Path, damage: Callable[[ir.Model], None] | None) -> Verdict:
    from graphopt.passes.conv.select_conv import Algorithm

    select = SelectConv(algorithms=(Algorithm.BLOCKED,))
    passes: list[Pass] = [Normalize(), Fuse(), select, Layout()]
    if damage:
        passes.append(Plant(damage))
    Pipeline((*passes, Normalize())).run(model(), [Dump(tmp_path)])
    return bisect(tmp_path)


def test_all_is_well_in_one_line(tmp_path: Path) -> None:
    verdict = run(tmp_path, None)
    assert verdict.ok
    assert verdict.sentence == f"all 6 dumps in {tmp_path} compute the same outputs"


@pytest.mark.parametrize("name", PLANTED)
def test_planted_rewrite_is_found(tmp_path: Path, name: str) -> None:
    damage, node, origin = PLANTED[name]
    verdict = run(tmp_path, damage)
    assert not verdict.ok
    assert (verdict.dump, verdict.spelling) == ("005_plant.onnx", "plant")
    assert (verdict.node, verdict.origin) == (node, origin)
    assert verdict.suspects[0] == node
    assert "pass plant wrote 005_plant.onnx" in verdict.sentence
    assert node in verdict.sentence


def test_suspects_hold_the_new_nodes_between(tmp_path: Path) -> None:
    assert run(tmp_path, wrong_behind_a_new_node).suspects == ("relu2", "neg")


def test_wrong_rewrite_from_planar_to_blocked_is_found(tmp_path: Path) -> None:
    """select-conv itself goes wrong: the planar value before is compared with the blocked one after."""

    @dataclass(frozen=True)
    class WrongSelect(SelectConv):
        def call(self, model: ir.Model) -> PassResult:
            result = super().call(model)
            wrong_weight(model)
            return result

    from graphopt.passes.conv.select_conv import Algorithm

    select = WrongSelect(algorithms=(Algorithm.BLOCKED,))
    Pipeline((Normalize(), Fuse(), select)).run(model(), [Dump(tmp_path)])
    verdict = bisect(tmp_path)
    assert (verdict.spelling, verdict.node) == ("select-conv{algorithms=blocked}", "node_c2.Conv2dBlocked")


def test_a_dump_that_does_not_run(tmp_path: Path) -> None:
    def break_model(model: ir.Model) -> None:
        node_of(model, "Softmax").op_type = "NoSuchOperator"

    verdict = run(tmp_path, break_model)
    assert not verdict.ok
    assert "pass plant wrote 005_plant.onnx, which does not run" in verdict.sentence


def test_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds 0 dumps"):
        bisect(tmp_path)
