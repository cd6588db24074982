"""The convolution by Fourier transforms of tiles, `graphopt.Conv2dFft`."""

from __future__ import annotations

from graphopt.program.program import ITEM_BYTES
from graphopt.targets.common.converters.base import EPILOGUE, OPAQUE, Context, Inputs, Outputs, dtype_of, shape_of
from graphopt.targets.common.converters.refusals import NotSupported
from graphopt.targets.common.kernels.blocks import SCHEDULED
from graphopt.targets.cpu.kernels.conv import fft, winograd


def conv2d_fft(c: Context, inputs: Inputs) -> Outputs:
    """A Conv2dFft node as three kernels.

    Raises:
        NotSupported: a tile that is too long for straight-line code, or no floats.
    """
    x, u, bias = inputs
    n, groups = c.integer("tile"), c.integer("group", 1)
    top, left, bottom, right = c.integers("pads", (0, 0, 0, 0))
    kernel_rows, kernel_columns = c.integers("kernel_shape")
    kernel, pads = (kernel_rows, kernel_columns), (top, left, bottom, right)
    if n % 2 or not 4 <= n <= fft.LONGEST:
        raise NotSupported(f"tiles of {n} are not even numbers from 4 to {fft.LONGEST}")
    if dtype_of(x) not in ("float32", "float64"):
        raise NotSupported(f"the kernels of Conv2dFft do not compute in {dtype_of(x)}")
    out_rows, out_columns = c.out_shape[2:4]
    out = (out_rows, out_columns)
    blocks = shape_of(u)[1] * groups
    if shape_of(bias)[0] != blocks or shape_of(u)[2] * groups != shape_of(x)[1]:
        raise NotSupported(f"the weights of {c.node.name} have other channels than its input or its bias")
    rows, columns = fft.tile_grid(out, n, kernel)
    itemsize = ITEM_BYTES[dtype_of(x)]
    turned = fft.turns(n, rows * columns, (shape_of(u)[2], shape_of(u)[1]), itemsize, shape_of(u)[4])
    v = c.definitions.emit(
        c.builder,
        "fft_input",
        lambda p: fft.transform_input(p, n, kernel, pads, out, groups, turned),
        (x,),
        {"op_pattern": OPAQUE, SCHEDULED: 1},
    )
    mm = c.te("fft_product", lambda p, q: winograd.product(p, q, c.machine), v, u, pattern=OPAQUE)
    return c.te(
        "fft_output",
        lambda p, q: fft.transform_output(p, q, n, kernel, out, groups, turned),
        mm,
        bias,
        pattern=EPILOGUE,
    )
