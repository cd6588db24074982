"""Text shared by function bodies that gather the windows of a convolution."""

from __future__ import annotations

# In:  `padded` (its axes 2 and 3 are the plane), `kernel` [2]; attributes strides, dilations.
# Out: `rows` [OH, kh] and `columns` [OW, kw], the plane indices that each output position reads; `out_plane` [2].
# OH = (H - dilation * (kh - 1) - 1) // stride + 1 on the padded height H, as ONNX defines Conv.
WINDOW = """
    strides = Constant <value_ints: ints = @strides>()
    dilations = Constant <value_ints: ints = @dilations>()
    zero = Constant <value_int = 0>()
    one = Constant <value_int = 1>()
    last_axis = Constant <value_ints = [1]>()
    plane = Shape <start = 2, end = 4>(padded)
    gaps = Sub(kernel, one)
    reach = Mul(gaps, dilations)
    room = Sub(plane, reach)
    room_after_first = Sub(room, one)
    steps = Div(room_after_first, strides)
    out_plane = Add(steps, one)

    out_height = Gather(out_plane, zero)
    kernel_height = Gather(kernel, zero)
    stride_rows = Gather(strides, zero)
    dilation_rows = Gather(dilations, zero)
    out_row_numbers = Range(zero, out_height, one)
    kernel_row_numbers = Range(zero, kernel_height, one)
    first_rows = Mul(out_row_numbers, stride_rows)
    row_offsets = Mul(kernel_row_numbers, dilation_rows)
    first_rows_column = Unsqueeze(first_rows, last_axis)
    rows = Add(first_rows_column, row_offsets)

    out_width = Gather(out_plane, one)
    kernel_width = Gather(kernel, one)
    stride_columns = Gather(strides, one)
    dilation_columns = Gather(dilations, one)
    out_column_numbers = Range(zero, out_width, one)
    kernel_column_numbers = Range(zero, kernel_width, one)
    first_columns = Mul(out_column_numbers, stride_columns)
    column_offsets = Mul(kernel_column_numbers, dilation_columns)
    first_columns_column = Unsqueeze(first_columns, last_axis)
    columns = Add(first_columns_column, column_offsets)
"""
