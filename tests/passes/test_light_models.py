"""The default pipeline on the architectures that the onnx package ships, with weights that make outputs differ."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.passes import DEFAULT
from graphopt.pipeline.observe import Check, Verify
from graphopt.pipeline.pipeline import Pipeline

LIGHT = Path(onnx.__file__).parent / "backend/test/data/light"

# Operators after the pipeline: conversions at the borders only, and around what stays planar.
# vgg19 is left out: it has convolutions of 3x3 and pools alone, as others have.
CONVERSIONS = {
    "bvlc_alexnet": (1, 1),
    "densenet121": (1, 1),
    "inception_v1": (1, 1),
    "inception_v2": (1, 1),
    "resnet50": (1, 1),
    "squeezenet": (1, 1),
    "zfnet512": (1, 1),
}
SLOW = {"bvlc_alexnet", "densenet121", "zfnet512"}
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in (*CONVERSIONS, "shufflenet")]


def randomize(model: ir.Model) -> None:
    """He-scaled weights, and everything else between 0.5 and 1.5: the shipped ones are all the same number."""
    generator = np.random.default_rng(0)
    for name, value in model.graph.initializers.items():
        if value.dtype != ir.DataType.FLOAT or value.shape is None:
            continue
        shape = value.shape.numpy()
        fan_in = int(np.prod(shape[1:]))
        wide = len(shape) >= 2 and fan_in > 1
        numbers = generator.standard_normal(shape) * np.sqrt(2 / fan_in) if wide else generator.uniform(0.5, 1.5, shape)
        value.const_value = ir.Tensor(numbers.astype(np.float32), name=name)


@pytest.mark.parametrize("name", NAMES)
def test_default_pipeline(name: str) -> None:
    model = graphopt.load(LIGHT / f"light_{name}.onnx").model
    randomize(model)
    Pipeline.parse(DEFAULT).run(model, [Check(), Verify()])
    counts = Counter(node.op_type for node in model.graph)
    if name in CONVERSIONS:
        assert (counts["ToBlocked"], counts["FromBlocked"]) == CONVERSIONS[name]
        assert not counts["Conv"]
    assert not counts["BatchNormalization"]
