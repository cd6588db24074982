"""Values of options that several parts of graphopt share."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """The number format that matrix products are computed in."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"


class VerifyMode(StrEnum):
    """The comparisons with ONNX Runtime while compiling."""

    OFF = "off"
    PASSES = "passes"
    ENDS = "ends"
    EACH = "each"

    @property
    def program(self) -> bool:
        """Whether the finished program is compared with the original model."""
        return self in (VerifyMode.ENDS, VerifyMode.EACH)

    @property
    def steps(self) -> bool:
        """Whether the model after every pass is compared with the model before it."""
        return self in (VerifyMode.PASSES, VerifyMode.EACH)
