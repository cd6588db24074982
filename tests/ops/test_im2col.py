import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.ops.im2col import pack_im2col_weight


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    strides=st.lists(st.integers(1, 3), min_size=2, max_size=2),
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    dilations=st.lists(st.integers(1, 2), min_size=2, max_size=2),
    kernel=st.lists(st.integers(1, 4), min_size=2, max_size=2),
    plane=st.tuples(st.integers(7, 12), st.integers(7, 12)),
    c=st.integers(1, 6),
    o=st.integers(1, 6),
)
def test_conv2d_im2col(run_node, strides, pads, dilations, kernel, plane, c, o) -> None:
    generator = np.random.default_rng(0)
    x, w, bias = (generator.standard_normal(s).astype(np.float32) for s in ((2, c, *plane), (o, c, *kernel), (o,)))
    attributes = {"strides": strides, "pads": pads, "dilations": dilations}
    expected = run_node("Conv", [x, w, bias], attributes, domain="")
    actual = run_node("Conv2dIm2col", [x, pack_im2col_weight(w), bias], attributes | {"kernel_shape": kernel})
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
