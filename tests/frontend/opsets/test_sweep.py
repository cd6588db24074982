"""Old opsets mean after loading what ONNX Runtime computes from the file as it was.

Each graph is loaded at every opset of its range that changed one of its operators, and ONNX Runtime runs both: on
normal numbers, and on NaN, infinities, denormals and the largest numbers.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import graphopt
from graphopt.frontend.load import load
from graphopt.graph.opsets import OPSET
from graphopt.verify.oracle import Tolerance
from tests.helpers.equal import require_equal

LAST = onnx.defs.onnx_opset_version()
SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40, 3e38, -3e38, 0.5, 2.5, -1.5])
STRICT = {"float32": Tolerance(1e-6, 1e-7), "float64": Tolerance(1e-12, 1e-14), "float16": Tolerance(1e-3, 1e-4)}
UNARY = [
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
]
BINARY = ["Add", "Div", "Mul", "Pow", "Sub", "PRelu"]
COMPARISONS = ["Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"]
REDUCTIONS = ["L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]
AXES = ("keepdims = 1", "axes = [1]", "axes = [0, 2], keepdims = 0", "keepdims = 0", "axes = [-1]")
COORDINATES = ["half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_half_pixel_for_nn"]
SCALES = ("2.0,2.0", "0.5,0.5", "0.4,1.6", "1.9,0.7", "0.3,0.3")
FED = {
    "Resize10_computed_nearest": np.array([1, 1, 1.7, 0.6], np.float32),
    "Resize10_computed_linear": np.array([1, 1, 1.7, 0.6], np.float32),
    "Softmax_dynamic": np.array([4, 3, 2]),
    "ConstantOfShape": np.array([2, 3]),
}
"""The input `s` of the graphs whose shapes depend on it."""


ORDINARY = {"GroupNormalization"}
"""Compared on ordinary numbers only: ONNX's function takes mean(x^2) - mean(x)^2, which overflows before ours does."""

COMPILED = [
    "Softmax_1",
    "Hardmax_0",
    "LogSoftmax_minus2",
    "Clip",
    "Dropout_mask",
    "Pad_edge",
    "Slice",
    "Split_equal",
    "TopK_1",
    "Upsample9_linear_1",
    "BatchNormalization_spatial",
    "GroupNormalization",
    "GRU_reset",
    "RoiAlign",
    "SimplifiedLayerNormalization_half",
    "ImageScaler",
    "Crop_scale",
    "If",
    "Loop",
    "Scan_8",
    "Resize10-nearest-0.4,1.6",
]


def families() -> Iterator[tuple[str, int, int, str]]:
    """Name, first and last opset, graph: of operators that look alike."""
    for op in UNARY:
        yield op, 6, LAST, f"g (float[2,3,4] x) => (float[2,3,4] y) {{ y = {op}(x) }}"
    for op in BINARY:
        yield op, 7, LAST, f"g (float[2,3,4] x, float[3,1] z) => (float[2,3,4] y) {{ y = {op}(x, z) }}"
    for op in COMPARISONS:
        yield op, 7, LAST, f"g (float[2,3,4] x, float[4] z) => (bool[2,3,4] y) {{ y = {op}(x, z) }}"
    for what, attributes, kind in itertools.product(REDUCTIONS, AXES, ("float", "int32")):
        first, last = 11 if "-1" in attributes else 1, 12 if what == "Sum" else 17
        graph = f"g ({kind}[2,3,4] x) => ({kind}[S] y) {{ y = Reduce{what}<{attributes}>(x) }}"
        yield f"Reduce{what}-{attributes}-{kind}", first, last, graph
    for (op, gates), direction in itertools.product(
        (("RNN", 1), ("GRU", 3), ("LSTM", 4)), ("forward", "bidirectional")
    ):
        d = 2 if direction == "bidirectional" else 1
        graph = f"""g (float[3,2,4] x, float[{d},{gates * 5},4] w, float[{d},{gates * 5},5] r)
            => (float[3,{d},2,5] y, float[{d},2,5] h) {{
            y, h = {op}<hidden_size = 5, direction = "{direction}">(x, w, r) }}"""
        yield f"{op}-{direction}", 7, LAST, graph
    for mode, scales in itertools.product(("nearest", "linear"), SCALES):
        graph = f"""g (float[1,2,7,6] x) => (float[1,2,H,W] y) {{
            s = Constant<value = float[4] {{1.0, 1.0, {scales}}}>() y = Resize<mode = "{mode}">(x, s) }}"""
        yield f"Resize10-{mode}-{scales}", 10, 10, graph
    for mode, coordinates in itertools.product(("nearest", "linear", "cubic"), COORDINATES):
        graph = f"""g (float[1,2,7,6] x) => (float[1,2,H,W] y) {{
            r = Constant<value = float[0] {{}}>() s = Constant<value = float[4] {{1.0, 1.0, 0.6, 1.7}}>()
            y = Resize<mode = "{mode}", coordinate_transformation_mode = "{coordinates}">(x, r, s) }}"""
        yield f"Resize11-{mode}-{coordinates}", 11, 12, graph


def listed() -> Iterator[tuple[str, int, int, str]]:
    """The others, from the file beside this one."""
    text = Path(__file__).with_name("sweep.txt").read_text()
    for name, first, last, graph in re.findall(r"^(\w+) (\d+)-(\d+|\+)\n((?:  .*\n)+)", text, re.MULTILINE):
        yield name, int(first), LAST if last == "+" else int(last), graph


CASES = {name: rest for name, *rest in (*families(), *listed())}


@functools.cache
def history() -> dict[str, set[int]]:
    """Per operator the opsets that changed it."""
    found: dict[str, set[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, set()).add(schema.since_version)
    return found


def models(first: int, last: int, graph: str) -> Iterator[tuple[int, onnx.ModelProto]]:
    operators = re.findall(r"([A-Z]\w+) ?[<(]", graph)
    changes = set().union(*(history().get(operator, ()) for operator in operators))
    for opset in sorted({first, 7, *changes}):
        if first <= opset <= last:
            ir_version = 3 if opset < 9 else 4 if opset < 13 else 10
            header = f'<ir_version: {ir_version}, opset_import: ["": {opset}]>'
            yield opset, onnx.parser.parse_model(f"{header} {graph}")


def feeds(model: onnx.ModelProto, special: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    made = {}
    for info in model.graph.input:
        tensor = info.type.tensor_type
        shape = [dim.dim_value for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if dtype.kind == "f":
            x = rng.standard_normal(shape).astype(dtype)
            if special:
                places = rng.choice(x.size, x.size // 2, replace=False)
                with np.errstate(over="ignore"):
                    x.reshape(-1)[places] = rng.permuted(np.resize(SPECIAL, len(places))).astype(dtype)
        else:
            x = (
                rng.integers(0, 2, shape).astype(dtype)
                if dtype.kind == "b"
                else rng.integers(1, 5, shape).astype(dtype)
            )
        made[info.name] = np.asarray(x)
    return made


def session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", CASES)
def test_old_opsets_mean_what_they_meant(name: str) -> None:
    first, last, graph = CASES[name]
    compared = 0
    for opset, model in models(first, last, graph):
        try:
            original = session(model.SerializeToString())
        except Exception:  # ONNX Runtime does not have every operator at every opset
            continue
        loaded = load(model).model
        assert loaded.opset_imports[""] == max(opset, OPSET)
        ours = session(ir.to_proto(loaded).SerializeToString())
        for special in (False,) if name in ORDINARY else (False, True):
            given = feeds(model, special) | ({"s": FED[name]} if name in FED else {})
            names = [output.name for output in original.get_outputs()]
            expected, actual = (dict(zip(names, each.run(names, given), strict=True)) for each in (original, ours))
            require_equal(expected, actual, f"opset {opset}", STRICT)
            compared += 1
    assert compared


@pytest.mark.parametrize("name", COMPILED)
def test_old_opsets_compile(name: str) -> None:
    _, model = next(models(*CASES[name]))
    given = feeds(model, special=False)
    original = session(model.SerializeToString())
    names = [output.name for output in original.get_outputs()]
    actual = graphopt.compile(model).session().run(given)
    require_equal(dict(zip(names, original.run(names, given), strict=True)), actual, "compiled")
