"""Rule of normalize for matrix products whose leading axes were flattened to rows for them."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Editor, Rule, dims, is_op, only_use


def _rows_apart(editor: Editor, node: ir.Node) -> str | None:
    """Reshape(Gemm(x, w, b)) to more axes before the last -> Add(MatMul(Reshape(x), w), b).

    A residual sum or activation after the Reshape then follows the product directly, and can be fused into its kernel.
    """
    flat, shape = node.inputs[0], dims(node.outputs[0])
    gemm = flat.producer() if flat is not None else None
    if flat is None or gemm is None or not is_op(gemm, "Gemm") or shape is None:
        return None
    x, w = gemm.inputs[:2]
    b = gemm.inputs[2] if len(gemm.inputs) > 2 else None
    rows, width = dims(flat) or (0, 0)
    if len(shape) < 3 or 0 in shape or shape[-1] != width or math.prod(shape[:-1]) != rows:
        return None
    if any(gemm.attributes.get_int(name, 0) for name in ("transA", "transB")):
        return f"Gemm {gemm.name} before it transposes"
    if any(gemm.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return f"Gemm {gemm.name} before it scales by other than constants"
    if only_use(flat) is not node:
        return f"Gemm {gemm.name} before it has other uses"
    depth = dims(w)
    if depth is None:
        return None
    if b is not None and (dims(b) or (0, 0))[:-1] not in ((), (1,)):
        return f"the bias of Gemm {gemm.name} differs from row to row"
    kind, y = flat.dtype, str(node.outputs[0].name)
    target = editor.constant(np.array((*shape[:-1], depth[0]), np.int64), f"{node.name}.shape")
    apart = editor.insert(
        node,
        "Reshape",
        [x, target],
        shape=(*shape[:-1], depth[0]),
        dtype=kind,
        name=f"{gemm.name}.rows",
        output=f"{y}.rows",
        origin=[gemm],
    )
    product = editor.insert(
        node,
        "MatMul",
        [apart, w],
        shape=shape,
        dtype=kind,
        name=f"{gemm.name}.matmul",
        output=f"{y}.product",
        origin=[gemm],
    )
    if b is not None:
        product = editor.insert(
            node,
            "Add",
            [product, b],
            shape=shape,
            dtype=kind,
            name=f"{gemm.name}.add",
            output=f"{y}.sum",
            origin=[gemm, node],
        )
    editor.swap(node, product)
    return None


PRODUCTS: dict[str, tuple[Rule, ...]] = {"Reshape": (_rows_apart,)}
