"""Precisions of matrix products, and how far each may move the outputs from those in float32."""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.errors import GraphoptError
from graphopt.modes import Precision
from graphopt.verify.oracle import TOLERANCES, Tolerance

TF32_TOLERANCE = Tolerance(2.0**-7, 1e-5)
"""Tolerance of float32 outputs when matrix products round their factors to TF32 and accumulate in float32.

TF32 keeps 10 bits after the leading one, so rounding a factor changes it by at most 2^-11 of itself, and a product of
two by 2^-10. Errors of the terms of a sum are independent: relative to the length of its terms, which is about the size
of the largest result, they stay below 2^-11. From layer to layer they add up as squares do: 64 layers make 8 * 2^-11,
and twice that is 2^-7. The range is that of float32, so small outputs need no more room than they do in float32; 1e-5
is for outputs that are differences of larger numbers.
"""

PRECISIONS: Mapping[str, Tolerance] = {
    Precision.FP32: TOLERANCES["float32"],
    Precision.TF32: TF32_TOLERANCE,
    Precision.FP16: TOLERANCES["float16"],
    Precision.BF16: TOLERANCES["bfloat16"],
}
"""Tolerance of float32 outputs against those in fp32, by the precision of matrix products."""


def tolerances(precision: str) -> Mapping[str, Tolerance]:
    """Tolerances of outputs against those in fp32, by dtype.

    Raises:
        GraphoptError: there is no such precision.
    """
    if precision not in PRECISIONS:
        raise GraphoptError(f"--precision {precision} is unknown; choose one of {', '.join(PRECISIONS)}.")
    return {**TOLERANCES, "float32": PRECISIONS[precision]}
