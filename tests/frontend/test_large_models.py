"""Weights in other files stay mapped, also beyond two gigabytes."""

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from graphopt.frontend.load import load


def external(tmp_path: Path, elements: int = 4096) -> Path:
    weight = np.arange(elements, dtype=np.float32).reshape(4, -1)
    initializer = numpy_helper.from_array(weight, "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 4])],
        [helper.make_tensor_value_info("y", 1, [1, elements // 4])],
        [initializer],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=0)
    return path


def test_external_weights_stay_mapped(tmp_path: Path) -> None:
    model = load(external(tmp_path)).model
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    np.testing.assert_array_equal(tensor.numpy().reshape(-1), np.arange(4096, dtype=np.float32))


def test_models_over_two_gigabytes_load_without_reading_into_memory(tmp_path: Path) -> None:
    import resource

    path = external(tmp_path)
    proto = onnx.load(path, load_external_data=False)
    del proto.graph.node[:]
    rows = (1 << 28) + 4096  # more than 2 GiB of bfloat16 pairs; the file is sparse and costs no disk
    proto.graph.node.append(helper.make_node("Gather", ["w", "i"], ["y"]))
    proto.graph.initializer[0].data_type = onnx.TensorProto.BOOL
    proto.graph.initializer[0].dims[:] = [rows, 8]
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "length":
            entry.value = str(rows * 8)
    del proto.graph.input[:], proto.graph.output[:]
    proto.graph.input.append(helper.make_tensor_value_info("i", onnx.TensorProto.INT64, [2]))
    proto.graph.output.append(helper.make_tensor_value_info("y", onnx.TensorProto.BOOL, [2, 8]))
    path.write_bytes(proto.SerializeToString())
    os.truncate(tmp_path / "weights.data", rows * 8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = load(path).model
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    assert tensor.nbytes > 1 << 31
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10
