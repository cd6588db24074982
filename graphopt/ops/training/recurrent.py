"""LSTM and GRU of one direction that keep their gates, and their gradients by the pre-activations.

X [T, N, I], W [G H, I], R [G H, H], B [2 G H], states [N, H], G gates in the order of ONNX. Results for all steps:
Y, C [T, N, H], gates [T, N, G H], after their activation. The gradients of X, W, R and B follow from dG
[T, N, G H], the gradient of what goes into the gates, as products over all steps at once.
"""

from __future__ import annotations

LSTM_TRAINING = """
LSTMTraining (X, W, R, B, h0, c0) => (Y, gates, C)
{
    W_turned = Transpose <perm = [1, 0]>(W)
    R_turned = Transpose <perm = [1, 0]>(R)
    products = MatMul(X, W_turned)
    B_input, B_hidden = Split <num_outputs = 2>(B)
    bias = Add(B_input, B_hidden)
    given = Add(products, bias)
    h_last, c_last, Y, gates, C = Scan <num_scan_inputs = 1, body = step (h, c, x) => (h_next, c_next, y, g, c_kept)
    {
        hidden = MatMul(h, R_turned)
        sums = Add(x, hidden)
        i_sum, o_sum, f_sum, u_sum = Split <axis = 1, num_outputs = 4>(sums)
        i = Sigmoid(i_sum)
        o = Sigmoid(o_sum)
        f = Sigmoid(f_sum)
        u = Tanh(u_sum)
        old = Mul(f, c)
        new = Mul(i, u)
        c_next = Add(old, new)
        squashed = Tanh(c_next)
        h_next = Mul(o, squashed)
        y = Identity(h_next)
        c_kept = Identity(c_next)
        g = Concat <axis = 1>(i, o, f, u)
    }>(h0, c0, given)
}
"""

# From the last step to the first; c_before holds the cell before each step.
LSTM_GRADIENT = """
LSTMGradient (dY, gates, C, c0, R, dh_last, dc_last) => (dG, dh0, dc0)
{
    first = Constant <value_ints = [0]>()
    minus_one = Constant <value_ints = [-1]>()
    c0_step = Unsqueeze(c0, first)
    C_but_last = Slice(C, first, minus_one, first)
    c_before = Concat <axis = 0>(c0_step, C_but_last)
    unit_float = Constant <value_float = 1.0>()
    unit = CastLike(unit_float, dY)
    dh0, dc0, dG = Scan <num_scan_inputs = 4, scan_input_directions = [1, 1, 1, 1], scan_output_directions = [1],
                         body = step (dh, dc, dy, g, c, c_old) => (dh_next, dc_next, dg)
    {
        i, o, f, u = Split <axis = 1, num_outputs = 4>(g)
        squashed = Tanh(c)
        dh_all = Add(dh, dy)
        do = Mul(dh_all, squashed)
        squashed_2 = Mul(squashed, squashed)
        slope = Sub(unit, squashed_2)
        dh_o = Mul(dh_all, o)
        dc_h = Mul(dh_o, slope)
        dc_all = Add(dc, dc_h)
        di = Mul(dc_all, u)
        df = Mul(dc_all, c_old)
        du = Mul(dc_all, i)
        dc_next = Mul(dc_all, f)
        i_not = Sub(unit, i)
        i_slope = Mul(i, i_not)
        di_sum = Mul(di, i_slope)
        o_not = Sub(unit, o)
        o_slope = Mul(o, o_not)
        do_sum = Mul(do, o_slope)
        f_not = Sub(unit, f)
        f_slope = Mul(f, f_not)
        df_sum = Mul(df, f_slope)
        u_2 = Mul(u, u)
        u_slope = Sub(unit, u_2)
        du_sum = Mul(du, u_slope)
        dg = Concat <axis = 1>(di_sum, do_sum, df_sum, du_sum)
        dh_next = MatMul(dg, R)
    }>(dh_last, dc_last, dY, gates, C, c_before)
}
"""

# linear_before_reset = 1: u = tanh(x + r * U) with U = h Rh + bias. Gates z, r, u; U is kept too.
GRU_TRAINING = """
GRUTraining (X, W, R, B, h0) => (Y, gates, U)
{
    W_turned = Transpose <perm = [1, 0]>(W)
    R_turned = Transpose <perm = [1, 0]>(R)
    products = MatMul(X, W_turned)
    B_input, B_hidden = Split <num_outputs = 2>(B)
    given = Add(products, B_input)
    unit_float = Constant <value_float = 1.0>()
    unit = CastLike(unit_float, X)
    h_last, Y, gates, U = Scan <num_scan_inputs = 1, body = step (h, x) => (h_next, y, g, linear_kept)
    {
        hidden_products = MatMul(h, R_turned)
        hidden = Add(hidden_products, B_hidden)
        x_z, x_r, x_u = Split <axis = 1, num_outputs = 3>(x)
        h_z, h_r, linear = Split <axis = 1, num_outputs = 3>(hidden)
        z_sum = Add(x_z, h_z)
        z = Sigmoid(z_sum)
        r_sum = Add(x_r, h_r)
        r = Sigmoid(r_sum)
        reset = Mul(r, linear)
        u_sum = Add(x_u, reset)
        u = Tanh(u_sum)
        z_not = Sub(unit, z)
        new = Mul(z_not, u)
        old = Mul(z, h)
        h_next = Add(new, old)
        y = Identity(h_next)
        linear_kept = Identity(linear)
        g = Concat <axis = 1>(z, r, u)
    }>(h0, given)
}
"""

# dG is the gradient of what the input adds; of the hidden side only the third part differs: dU = r * its dG.
GRU_GRADIENT = """
GRUGradient (dY, gates, U, Y, h0, R, dh_last) => (dG, dU, dh0)
{
    first = Constant <value_ints = [0]>()
    minus_one = Constant <value_ints = [-1]>()
    h0_step = Unsqueeze(h0, first)
    Y_but_last = Slice(Y, first, minus_one, first)
    h_before = Concat <axis = 0>(h0_step, Y_but_last)
    unit_float = Constant <value_float = 1.0>()
    unit = CastLike(unit_float, dY)
    dh0, dG, dU = Scan <num_scan_inputs = 4, scan_input_directions = [1, 1, 1, 1], scan_output_directions = [1, 1],
                        body = step (dh, dy, g, linear, h_old) => (dh_next, dg, dlinear_kept)
    {
        z, r, u = Split <axis = 1, num_outputs = 3>(g)
        dh_all = Add(dh, dy)
        kept_less_new = Sub(h_old, u)
        dz = Mul(dh_all, kept_less_new)
        z_not = Sub(unit, z)
        du = Mul(dh_all, z_not)
        u_2 = Mul(u, u)
        u_slope = Sub(unit, u_2)
        du_sum = Mul(du, u_slope)
        dr = Mul(du_sum, linear)
        r_not = Sub(unit, r)
        r_slope = Mul(r, r_not)
        dr_sum = Mul(dr, r_slope)
        z_slope = Mul(z, z_not)
        dz_sum = Mul(dz, z_slope)
        dlinear = Mul(du_sum, r)
        dlinear_kept = Identity(dlinear)
        dg = Concat <axis = 1>(dz_sum, dr_sum, du_sum)
        dhidden = Concat <axis = 1>(dz_sum, dr_sum, dlinear)
        dh_hidden = MatMul(dhidden, R)
        dh_kept = Mul(dh_all, z)
        dh_next = Add(dh_hidden, dh_kept)
    }>(dh_last, dY, gates, U, h_before)
}
"""
