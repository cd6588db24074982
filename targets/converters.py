"""Our own converters, ONNX node -> Relax: the custom operators, and the standard ones that TVM gets slow or wrong.

A converter takes a `Context` and the inputs as Relax expressions (None where an optional input is absent) and returns
one expression or a list. What a kernel computes is a TE definition from `kernels/`; this file only reads attributes
and shapes. One literal table at the end; nothing registers itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
from tvm import relax, te, tirx

from graphopt.ops.winograd import matrices
from graphopt.targets.kernels import conv_direct, conv_winograd, depthwise, gemm, lrn, rowwise
from graphopt.targets.kernels import math as fast
from graphopt.targets.machine import CpuMachine

EPILOGUE, OPAQUE, INJECTIVE = 4, 8, 2
"""TVM's operator patterns: elementwise consumers may fuse; nothing fuses; index arithmetic only."""

Converter = Callable[["Context", list[Any]], Any]


@dataclass(frozen=True, slots=True)
class Context:
    """What a converter may use: the builder to emit into, the machine to choose tiles for, the node's attributes."""

    builder: Any
    machine: CpuMachine
    node: ir.Node

    def te(self, name: str, function: Callable[..., Any], *args: Any, pattern: int) -> Any:
        """Emit a TE definition over Relax expressions as one kernel called `name`."""
        return self.builder.emit_te(function, *args, primfunc_name_hint=name, primfunc_attrs={"op_pattern": pattern})

    def reshape(self, x: Any, shape: tuple[int, ...]) -> Any:
        """Emit a view; nothing where the shape is already right."""
        return x if shape_of(x) == shape else self.builder.emit(relax.op.reshape(x, shape))

    def integers(self, name: str, default: tuple[int, ...] = ()) -> tuple[int, ...]:
        """An attribute that is a list of integers."""
        attribute = self.node.attributes.get(name)
        return tuple(int(v) for v in attribute.as_ints()) if isinstance(attribute, ir.Attr) else default

    def integer(self, name: str, default: int = 0) -> int:
        """An integer attribute."""
        attribute = self.node.attributes.get(name)
        return int(attribute.as_int()) if isinstance(attribute, ir.Attr) else default

    def real(self, name: str, default: float = 0.0) -> float:
        """A float attribute."""
        attribute = self.node.attributes.get(name)
        return float(attribute.as_float()) if isinstance(attribute, ir.Attr) else default

    def text(self, name: str, default: str = "") -> str:
        """A string attribute."""
        attribute = self.node.attributes.get(name)
        return str(attribute.as_string()) if isinstance(attribute, ir.Attr) else default

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The static shape that shape inference gave the first output."""
        shape = self.node.outputs[0].shape
        assert shape is not None
        return tuple(shape.numpy())


def shape_of(x: Any) -> tuple[int, ...]:
    """Static shape of a Relax expression."""
    return tuple(int(d) for d in x.ty.shape)


def dtype_of(x: Any) -> str:
    """Dtype of a Relax expression."""
    return str(x.ty.dtype)


# ---------------------------------------------------------------- layout and convolution on blocked channels


def to_blocked(c: Context, inputs: list[Any]) -> Any:
    block = c.integer("block")
    if block == 1:
        return c.reshape(inputs[0], (*shape_of(inputs[0]), 1))
    _, channels, _, _ = shape_of(inputs[0])

    def compute(x: Any) -> Any:
        n, _, h, w = (int(d) for d in x.shape)

        def element(i: Any, o: Any, y: Any, z: Any, lane: Any) -> Any:
            channel = o * block + lane
            value = x[i, channel, y, z]
            return (
                value if channels % block == 0 else tirx.if_then_else(channel < channels, value, tirx.const(0, x.dtype))
            )

        return te.compute((n, -(-channels // block), h, w, block), element, name="to_blocked")

    return c.te("to_blocked", compute, inputs[0], pattern=INJECTIVE)


def from_blocked(c: Context, inputs: list[Any]) -> Any:
    channels = c.integer("channels")

    def compute(x: Any) -> Any:
        n, _, h, w, b = (int(d) for d in x.shape)
        return te.compute(
            (n, channels, h, w),
            lambda i, o, y, z: x[i, tirx.floordiv(o, b), y, z, tirx.floormod(o, b)],
            name="from_blocked",
        )

    return c.te("from_blocked", compute, inputs[0], pattern=INJECTIVE)


def _padded(c: Context, x: Any, pads: tuple[int, ...]) -> Any:
    if not any(pads):
        return x
    return c.te("pad", lambda v: conv_direct.pad_input(v, _four(pads)), x, pattern=INJECTIVE)


def _four(pads: tuple[int, ...]) -> tuple[int, int, int, int]:
    top, left, bottom, right = pads
    return top, left, bottom, right


def _two(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second


def conv2d_blocked(c: Context, inputs: list[Any]) -> Any:
    x, w, bias = inputs
    padded = _padded(c, x, c.integers("pads", (0, 0, 0, 0)))
    strides, dilations = _two(c.integers("strides", (1, 1))), _two(c.integers("dilations", (1, 1)))
    return c.te(
        "conv_direct",
        lambda p, q, r: conv_direct.compute(p, q, r, strides, dilations, c.machine),
        padded,
        w,
        bias,
        pattern=EPILOGUE,
    )


def depthwise_blocked(c: Context, inputs: list[Any]) -> Any:
    x, w, bias = inputs
    padded = _padded(c, x, c.integers("pads", (0, 0, 0, 0)))
    strides, dilations = _two(c.integers("strides", (1, 1))), _two(c.integers("dilations", (1, 1)))
    return c.te(
        "depthwise", lambda p, q, r: depthwise.depthwise(p, q, r, strides, dilations), padded, w, bias, pattern=EPILOGUE
    )


def winograd(c: Context, inputs: list[Any]) -> Any:
    x, u, bias = inputs
    m, pads = c.integer("m"), _four(c.integers("pads", (0, 0, 0, 0)))
    out = _two(c.out_shape[2:4])
    at, _, bt = matrices(m)
    v = c.te("winograd_input", lambda p: conv_winograd.transform_input(p, m, pads, out, bt), x, pattern=OPAQUE)
    mm = c.te("winograd_product", lambda p, q: conv_winograd.product(p, q, c.machine), v, u, pattern=OPAQUE)
    return c.te(
        "winograd_output", lambda p, q: conv_winograd.transform_output(p, q, m, out, at), mm, bias, pattern=EPILOGUE
    )


def pool_blocked(mode: str) -> Converter:
    def convert(c: Context, inputs: list[Any]) -> Any:
        kernel = _two(c.integers("kernel_shape"))
        strides, pads = _two(c.integers("strides", (1, 1))), _four(c.integers("pads", (0, 0, 0, 0)))
        dilations, out = _two(c.integers("dilations", (1, 1))), _two(c.out_shape[2:4])
        include = bool(c.integer("count_include_pad"))
        return c.te(
            f"pool_{mode}",
            lambda x: depthwise.pool(x, mode, kernel, strides, pads, dilations, out, include),
            inputs[0],
            pattern=EPILOGUE,
        )

    return convert


def global_average_pool_blocked(c: Context, inputs: list[Any]) -> Any:
    kernel = _two(shape_of(inputs[0])[2:4])
    return c.te(
        "pool_global",
        lambda x: depthwise.pool(x, "average", kernel, (1, 1), (0, 0, 0, 0), (1, 1), (1, 1), False),
        inputs[0],
        pattern=EPILOGUE,
    )


def lrn_blocked(c: Context, inputs: list[Any]) -> Any:
    channels, size = c.integer("channels"), c.integer("size")
    alpha, beta, bias = c.real("alpha", 1e-4), c.real("beta", 0.75), c.real("bias", 1.0)

    return c.te("lrn", lambda x: lrn.compute(x, channels, size, alpha, beta, bias), inputs[0], pattern=OPAQUE)


# ---------------------------------------------------------------- convolution as patches times weights (any layout)


def conv(c: Context, inputs: list[Any]) -> Any:
    """Conv of any rank and grouping on the plain layout: patches straight into panels, then one product per group."""
    x, w = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    if dtype_of(x) not in ("float32", "float64"):
        return NotImplemented
    groups, out = c.integer("group", 1), c.out_shape
    image = shape_of(x)[2:]
    kernel = shape_of(w)[2:] if len(shape_of(w)) > 2 else c.integers("kernel_shape")
    rank = len(kernel)
    if rank == 0:
        return NotImplemented
    strides, dilations = c.integers("strides", (1,) * rank), c.integers("dilations", (1,) * rank)
    begins = _begin_pads(c, image, kernel, strides, dilations, out[2:])
    batch, channels = shape_of(x)[:2]
    per_group = out[1] // groups
    if groups == 1 and math.prod(out[2:]) == 1 and kernel == image and not any(begins):
        # One output position that sees the whole image: a matrix product, with the weights on the streaming side.
        depth = channels * math.prod(kernel)
        y = _product(c, c.reshape(x, (batch, depth)), c.reshape(w, (out[1], depth)), out, True, 1 + rank)
        if bias is None:
            return y
        return c.builder.emit(relax.op.add(y, c.reshape(bias, (1, out[1], *(1,) * rank))))
    a = c.reshape(w, (groups, per_group, channels // groups * math.prod(kernel)))
    positions = math.prod(out[2:])
    tile = gemm.choose_tile(per_group, positions, channels // groups * math.prod(kernel), c.machine, dtype_of(x))
    panels = c.te(
        "patches",
        lambda v: gemm.pack_patches(v, groups, kernel, strides, begins, dilations, out[2:], tile.width),
        x,
        pattern=OPAQUE,
    )
    parts = (1, 1, rank)
    if bias is None:
        return c.te("gemm", lambda p, q: gemm.compute(p, q, out, parts, tile.rows, groups), a, panels, pattern=EPILOGUE)
    return c.te(
        "gemm", lambda p, q, r: gemm.compute(p, q, out, parts, tile.rows, groups, r), a, panels, bias, pattern=EPILOGUE
    )


def _begin_pads(
    c: Context,
    image: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    out: tuple[int, ...],
) -> tuple[int, ...]:
    rank = len(kernel)
    mode = c.text("auto_pad", "NOTSET")
    if mode in ("NOTSET", ""):
        return c.integers("pads", (0,) * (2 * rank))[:rank]
    begins = []
    for axis in range(rank):
        total = max(0, (out[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1 - image[axis])
        begins.append(0 if mode == "VALID" else total // 2 if mode == "SAME_UPPER" else total - total // 2)
    return tuple(begins)


# ---------------------------------------------------------------- matrix products


def _product(c: Context, a: Any, b: Any, out: tuple[int, ...], transposed: bool = False, trailing: int = 1) -> Any:
    """a[..., M, K] times b[..., K, N] ([..., N, K] if transposed) whose batch axes are equal, or absent on one side.

    The last `trailing` axes of `out` hold N.
    """
    sa, sb = shape_of(a), shape_of(b)
    k = sa[-1]
    n = sb[-2] if transposed else sb[-1]
    right_batch = math.prod(sb[:-2])
    if right_batch == 1:  # every leading axis of the left side is one more row
        batch, m, parts = 1, math.prod(sa[:-1]), (0, len(out) - trailing, trailing)
    else:
        batch, m, parts = math.prod(sa[:-2]), sa[-2], (len(out) - 2, 1, 1)
    tile = gemm.choose_tile(m, n, k, c.machine, dtype_of(a))
    right = c.reshape(b, (right_batch, sb[-2], sb[-1]))
    panels = c.te("pack", lambda v: gemm.pack(v, tile.width, transposed), right, pattern=OPAQUE)
    left = c.reshape(a, (batch, m, k))
    return c.te("gemm", lambda p, q: gemm.compute(p, q, out, parts, tile.rows), left, panels, pattern=EPILOGUE)


def matmul(c: Context, inputs: list[Any]) -> Any:
    a, b = inputs
    sa, sb = shape_of(a), shape_of(b)
    if dtype_of(a) not in ("float32", "float64") or len(sa) < 2 or len(sb) < 2 or 0 in (*sa, *sb):
        return NotImplemented
    if math.prod(sb[:-2]) != 1 and sa[:-2] != sb[:-2]:
        return NotImplemented
    return _product(c, a, b, c.out_shape)


def fully_connected(c: Context, inputs: list[Any]) -> Any:
    a, b = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    dtype = dtype_of(a)
    if dtype not in ("float32", "float64") or 0 in (*shape_of(a), *shape_of(b)):
        return NotImplemented
    if c.integer("transA"):
        a = c.builder.emit(relax.op.permute_dims(a, [1, 0]))
    y = _product(c, a, b, c.out_shape, bool(c.integer("transB")))
    alpha, beta = c.real("alpha", 1.0), c.real("beta", 1.0)
    if alpha != 1.0:
        y = c.builder.emit(relax.op.multiply(y, relax.const(alpha, dtype)))
    if bias is None or beta == 0.0:
        return y
    if beta != 1.0:
        bias = c.builder.emit(relax.op.multiply(bias, relax.const(beta, dtype)))
    return c.builder.emit(relax.op.add(y, bias))


def attention(c: Context, inputs: list[Any]) -> Any:
    q, k, v = inputs[:3]
    scale = c.real("scale", 1.0)
    sq, sk = shape_of(q), shape_of(k)
    scores = _product(c, q, k, (*sq[:-1], sk[-2]), transposed=True)
    if len(inputs) > 3:
        scaled = c.builder.emit(relax.op.multiply(scores, relax.const(scale, dtype_of(q))))
        scores, scale = c.builder.emit(relax.op.add(scaled, inputs[3])), 1.0
    rows = math.prod(sq[:-1])
    flat = c.reshape(scores, (rows, sk[-2]))
    weights = c.te("softmax", lambda s: rowwise.softmax(s, scale), flat, pattern=OPAQUE)
    return _product(c, c.reshape(weights, (*sq[:-1], sk[-2])), v, c.out_shape)


# ---------------------------------------------------------------- rows and elements


def softmax(logarithm: bool) -> Converter:
    def convert(c: Context, inputs: list[Any]) -> Any:
        x = inputs[0]
        shape = shape_of(x)
        axis = c.integer("axis", -1) % max(len(shape), 1)
        if dtype_of(x) not in ("float32", "float64") or not shape or 0 in shape or axis != len(shape) - 1:
            return NotImplemented
        flat = c.reshape(x, (math.prod(shape[:-1]), shape[-1]))
        return c.reshape(c.te("softmax", lambda v: rowwise.softmax(v, 1.0, logarithm), flat, pattern=OPAQUE), shape)

    return convert


def layer_norm(c: Context, inputs: list[Any]) -> Any:
    x, weight = inputs[:2]
    bias = inputs[2] if len(inputs) > 2 else None
    shape = shape_of(x)
    axis = c.integer("axis", -1) % max(len(shape), 1)
    n = math.prod(shape[axis:])
    used = [o for o in c.node.outputs[1:] if o.uses() or o.is_graph_output()]
    if dtype_of(x) != "float32" or 0 in shape or used or math.prod(shape_of(weight)) != n:
        return NotImplemented
    epsilon = c.real("epsilon", 1e-5)
    flat = c.reshape(x, (math.prod(shape[:axis]), n))
    args = [flat, c.reshape(weight, (n,)), *([] if bias is None else [c.reshape(bias, (n,))])]
    y = c.te("layer_norm", lambda v, w, b=None: rowwise.layer_norm(v, w, b, epsilon), *args, pattern=OPAQUE)
    return [c.reshape(y, shape), *(None for _ in c.node.outputs[1:])]


def elementwise(function: Callable[[Any], Any]) -> Converter:
    """A unary float function of one element."""

    def convert(c: Context, inputs: list[Any]) -> Any:
        if dtype_of(inputs[0]) != "float32" or not shape_of(inputs[0]):
            return NotImplemented
        name = c.node.op_type.lower()
        return c.te(name, lambda x: te.compute(x.shape, lambda *i: function(x[i]), name=name), inputs[0], pattern=0)

    return convert


def gelu(c: Context, inputs: list[Any]) -> Any:
    half, one = tirx.const(0.5, "float32"), tirx.const(1.0, "float32")

    def exact(x: Any) -> Any:
        return x * half * (one + fast.erf(x * tirx.const(math.sqrt(0.5), "float32")))

    def approximate(x: Any) -> Any:
        inner = x * tirx.const(math.sqrt(2 / math.pi), "float32") * (one + tirx.const(0.044715, "float32") * x * x)
        return x * half * (one + fast.tanh(inner))

    return elementwise(approximate if c.text("approximate", "none") == "tanh" else exact)(c, inputs)


def _refuse_isinf(node: ir.Node) -> str | None:
    flags = {
        name: node.attributes[name].as_int()
        for name in ("detect_negative", "detect_positive")
        if name in node.attributes
    }
    return "TVM ignores detect_negative and detect_positive of IsInf" if 0 in flags.values() else None


def _refuse_depth(node: ir.Node) -> str | None:
    return "TVM reorders SpaceToDepth in the other order"


def _refuse_output_shape(node: ir.Node) -> str | None:
    return "TVM ignores output_shape of ConvTranspose" if "output_shape" in node.attributes else None


def _refuse_extra_outputs(node: ir.Node) -> str | None:
    return f"TVM computes no second output of {node.op_type}" if len(node.outputs) > 1 else None


WRONG_IN_TVM: dict[str, Callable[[ir.Node], str | None]] = {
    "IsInf": _refuse_isinf,
    "SpaceToDepth": _refuse_depth,
    "ConvTranspose": _refuse_output_shape,
    "MaxPool": _refuse_extra_outputs,
    "Dropout": _refuse_extra_outputs,
    "NonMaxSuppression": lambda node: "the number of boxes is known at run time only",
    "Attention": lambda node: "TVM converts the opset-23 Attention as another operator of that name",
}
"""Operators that TVM imports to wrong numbers, as predicates that give the reason (measured with the node suite)."""

CUSTOM: dict[str, Converter] = {
    "ToBlocked": to_blocked,
    "FromBlocked": from_blocked,
    "Conv2dBlocked": conv2d_blocked,
    "DepthwiseConv2dBlocked": depthwise_blocked,
    "Conv2dWinograd": winograd,
    "Conv2dIm2col": conv,
    "MaxPoolBlocked": pool_blocked("max"),
    "AveragePoolBlocked": pool_blocked("average"),
    "GlobalAveragePoolBlocked": global_average_pool_blocked,
    "LRNBlocked": lrn_blocked,
    "Attention": attention,
    "AttentionMasked": attention,
}

STANDARD: dict[str, Converter] = {
    "Conv": conv,
    "MatMul": matmul,
    "Gemm": fully_connected,
    "Softmax": softmax(logarithm=False),
    "LogSoftmax": softmax(logarithm=True),
    "LayerNormalization": layer_norm,
    "Exp": elementwise(fast.exp),
    "Sigmoid": elementwise(fast.sigmoid),
    "Tanh": elementwise(fast.tanh),
    "Erf": elementwise(fast.erf),
    "Gelu": gelu,
}


def lookup(node: ir.Node) -> Converter | None:
    """Our converter of `node`. A converter may still return NotImplemented: then TVM's own is used, if there is one."""
    return (CUSTOM if node.domain == "graphopt" else STANDARD).get(node.op_type)
