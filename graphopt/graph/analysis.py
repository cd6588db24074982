"""Statistics of a model from its static shapes: parameters, bytes and floating-point operations.

A multiply-add counts as two operations, an elementwise operation as one per element of its result, data movement as
none. A node of a model-local function costs what its dense counterpart costs (a Winograd convolution does fewer), so
that FLOP/s compare across algorithms.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import onnx_ir as ir

from graphopt.graph.constness import stored
from graphopt.program.program import ITEM_BYTES

_FREE = frozenset({
    "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DepthToSpace", "Expand", "Flatten", "FromBlocked",
    "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Range", "Reshape", "ScatterElements", "ScatterND",
    "Shape", "Size", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "ToBlocked", "Transpose", "Unsqueeze",
})  # fmt: skip
# Operations per element of the result, where one is too few; the exponential counts as one.
_PER_ELEMENT = {
    "BatchNormalization": 2, "Gelu": 5, "HardSwish": 4, "LayerNormalization": 8, "LogSoftmax": 5, "Softmax": 5,
    "InstanceNormalization": 8, "GroupNormalization": 8, "RMSNormalization": 5, "SimplifiedLayerNormalization": 5,
}  # fmt: skip
_POOLS = frozenset({"AveragePool", "AveragePoolBlocked", "LpPool", "MaxPool", "MaxPoolBlocked"})
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def elements(value: ir.Value | None) -> int:
    """Elements of a value; 0 for an absent one and for one whose shape is not static."""
    if value is None or value.shape is None or not value.shape.is_static():
        return 0
    return math.prod(value.shape.numpy())


def nbytes(value: ir.Value | None) -> int:
    """Bytes of a value's tensor; 0 for an absent one, and where shape or dtype is not known."""
    if value is None or value.dtype is None or value.dtype == ir.DataType.STRING:
        return 0
    return math.ceil(elements(value) * value.dtype.itemsize)


def static_type(value: ir.Value) -> tuple[str, tuple[int, ...]] | None:
    """(dtype, shape) of a value whose bytes can lie in an arena, else None."""
    if value.dtype is None or value.shape is None or not isinstance(value.type, ir.TensorType):
        return None
    try:
        dtype = str(value.dtype.numpy())
    except (TypeError, KeyError):
        return None
    shape = tuple(d for d in value.shape.dims if isinstance(d, int))
    return (dtype, shape) if dtype in ITEM_BYTES and len(shape) == len(value.shape.dims) else None


def parameters(model: ir.Model) -> int:
    """Elements of all floating point initializers, in all graphs; integer constants are shapes and indices."""
    tensors = (stored(value) for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.size for tensor in tensors if tensor is not None and tensor.dtype.is_floating_point())


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers of all graphs."""
    tensors = (stored(value) for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def flops(model: ir.Model) -> int:
    """Operations of one run of the main graph: a branch or loop body counts once."""
    return sum(node_flops(node) for node in model.graph.all_nodes())


def node_flops(node: ir.Node) -> int:
    """Operations of one run of `node`; 0 for data movement and where a shape is not static."""
    result = elements(node.outputs[0]) if node.outputs else 0
    kind = node.op_type
    if kind in _FREE or any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values()):
        return 0
    if kind in _PRODUCTS:
        return _PRODUCTS[kind](node, result)
    if kind in _POOLS:
        return result * math.prod(node.attributes["kernel_shape"].as_ints())
    if kind in _GATES:
        return _recurrent(node)
    if kind in ("LRN", "LRNBlocked"):
        return result * (2 * node.attributes.get_int("size", 1) + 3)
    if kind.startswith(("Reduce", "Arg", "GlobalAverage", "GlobalMax", "CumSum")):
        return elements(node.inputs[0])
    if kind in ("Sum", "Max", "Min", "Mean"):
        return result * max(len(node.inputs) - 1, 1)
    return result * _PER_ELEMENT.get(kind, 1)


def _dims(value: ir.Value | None) -> tuple[int, ...]:
    return value.shape.numpy() if value is not None and value.shape is not None and value.shape.is_static() else ()


def _conv(node: ir.Node, result: int) -> int:
    """w[O, C/g, *kernel]: each result sums C/g * prod(kernel) products."""
    weight = _dims(node.inputs[1])
    bias = result if len(node.inputs) > 2 and node.inputs[2] is not None else 0
    return 2 * result * math.prod(weight[1:]) + bias if weight else 0


def _quantized_conv(node: ir.Node, result: int) -> int:
    """x, its scale and zero point, then w[O, C/g, *kernel]."""
    return 2 * result * math.prod(_dims(node.inputs[3])[1:])


def _conv_transpose(node: ir.Node, _: int) -> int:
    """w[C, O/g, *kernel]: each input element is multiplied with O/g * prod(kernel) weights."""
    return 2 * elements(node.inputs[0]) * math.prod(_dims(node.inputs[1])[1:])


def _conv_blocked(node: ir.Node, result: int) -> int:
    """w[CO, CIg, kh, kw, bi, b]: each result sums CIg * kh * kw * bi products."""
    weight = _dims(node.inputs[1])
    return result * (2 * math.prod(weight[1:5]) + 1) if len(weight) == 6 else 0


def _depthwise_blocked(node: ir.Node, result: int) -> int:
    """w[CB, kh, kw, b]."""
    weight = _dims(node.inputs[1])
    return result * (2 * math.prod(weight[1:3]) + 1) if len(weight) == 4 else 0


def _winograd(node: ir.Node, result: int) -> int:
    """u[(m+2)^2, CO, CI, b, b]: counted as the 3x3 convolution it replaces, so that FLOP/s compare."""
    weight = _dims(node.inputs[1])
    return result * (2 * 9 * weight[2] * weight[3] + 1) if len(weight) == 5 else 0


def _winograd_axis(node: ir.Node, result: int) -> int:
    """u[m + r - 1, CO, CI, b, b]: counted as the convolution with r taps that it replaces."""
    weight, m = _dims(node.inputs[1]), node.attributes.get_int("m", 1) or 1
    return result * (2 * (weight[0] - m + 1) * weight[2] * weight[3] + 1) if len(weight) == 5 else 0


def _fft(node: ir.Node, result: int) -> int:
    """Counted as the convolution it replaces: x[N, CI, H, W, b], C / group channels in each sum."""
    x, taps = _dims(node.inputs[0]), math.prod(node.attributes["kernel_shape"].as_ints())
    group = node.attributes.get_int("group", 1) or 1
    return result * (2 * taps * x[1] * x[4] // group + 1) if len(x) == 5 else 0


def _gemm(node: ir.Node, result: int) -> int:
    """Y[M, N] = A[M, K] B[K, N] + C."""
    shape = _dims(node.inputs[0])
    if len(shape) != 2:
        return 0
    inner = shape[0] if node.attributes.get_int("transA", 0) else shape[1]
    bias = result if len(node.inputs) > 2 and node.inputs[2] is not None else 0
    return 2 * result * inner + bias


def _matmul(node: ir.Node, result: int) -> int:
    shape = _dims(node.inputs[0])
    return 2 * result * shape[-1] if shape else 0


def _block_sparse(node: ir.Node, result: int) -> int:
    """blocks[B, bk, bn], each multiplied with every row of x or position of the map."""
    blocks, out = _dims(node.inputs[1]), _dims(node.outputs[0])
    if len(blocks) != 3 or not result:
        return 0
    rows = result // (out[-1] if node.op_type == "BlockSparseMatMul" else out[1] * out[4])
    return 2 * rows * math.prod(blocks)


def _compressed_columns(node: ir.Node, result: int) -> int:
    """codes[E], each multiplied with every row of x."""
    entries, out = _dims(node.inputs[1]), _dims(node.outputs[0])
    return 2 * entries[0] * (result // out[-1]) if entries and result else 0


def _im2col(node: ir.Node, result: int) -> int:
    """w[O, C * kh * kw]."""
    weight = _dims(node.inputs[1])
    return result * (2 * weight[1] + 1) if len(weight) == 2 else 0


def _attention(node: ir.Node, _: int) -> int:
    """q[B, H, S, D], k[B, H, T, D], v[B, H, T, E]: two GEMMs, and a softmax of S x T scores per head."""
    query, key, value = (_dims(operand) for operand in node.inputs[:3])
    if len(query) == 3:  # the standard operator also takes [B, S, H * D]
        heads = node.attributes.get_int("q_num_heads", 1), node.attributes.get_int("kv_num_heads", 1)
        query, key, value = (
            (dims[0], count, dims[1], dims[2] // count) if len(dims) == 3 and count > 0 else ()
            for dims, count in zip((query, key, value), (heads[0], heads[1], heads[1]), strict=True)
        )
    if not len(query) == len(key) == len(value) == 4:
        return 0
    scores = query[0] * query[1] * query[2] * key[2]
    return scores * (2 * query[3] + 2 * value[3] + 6)


def _einsum(node: ir.Node, _: int) -> int:
    """A product over the whole index space, of as many factors as there are operands."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    terms = equation.split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, operand in zip(terms, node.inputs, strict=False):
        if "." in term or len(term) != len(_dims(operand)):
            return 0
        sizes.update(zip(term, _dims(operand), strict=True))
    return len(terms) * math.prod(sizes.values())


def _recurrent(node: ir.Node) -> int:
    """x[T, B, I], w[directions, gates * H, I], r[directions, gates * H, H]: two GEMMs per step and gate."""
    sequence, weight, recurrence = (_dims(operand) for operand in node.inputs[:3])
    if not len(sequence) == len(weight) == len(recurrence) == 3:
        return 0
    steps = sequence[0] * sequence[1]  # T * B in either layout
    products = 2 * (math.prod(weight) + math.prod(recurrence))
    gates = recurrence[0] * _GATES[node.op_type] * recurrence[2]
    return steps * (products + 4 * gates)  # bias, sum and activation, and the cell's own update


_PRODUCTS = {
    "Attention": _attention, "AttentionMasked": _attention, "BlockSparseConv": _block_sparse,
    "BlockSparseMatMul": _block_sparse, "CompressedColumnsMatMul": _compressed_columns, "Conv": _conv,
    "Conv2dBlocked": _conv_blocked, "Conv2dFft": _fft, "Conv2dIm2col": _im2col, "Conv2dWinograd": _winograd,
    "Conv2dWinogradAxis": _winograd_axis, "ConvInteger": _conv, "ConvTranspose": _conv_transpose,
    "DepthwiseConv2dBlocked": _depthwise_blocked, "Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul,
    "MatMulInteger": _matmul, "QLinearConv": _quantized_conv,
}  # fmt: skip


def producers(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes whose results `node` reads, once each, in the order of its inputs."""
    nodes = (value.producer() for value in node.inputs if value is not None)
    return iter(dict.fromkeys(producer for producer in nodes if producer is not None))


def consumers(node: ir.Node) -> Iterator[ir.Node]:
    """The nodes that read a result of `node`, once each; a graph that captures the value counts with its inner node."""
    return iter(dict.fromkeys(use.node for value in node.outputs for use in value.uses()))
