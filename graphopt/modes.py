"""The words of options that several parts of graphopt speak."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """What products compute in."""

    FP32 = "fp32"
    TF32 = "tf32"
    FP16 = "fp16"
    BF16 = "bf16"


class VerifyMode(StrEnum):
    """What is compared with ONNX Runtime while compiling."""

    OFF = "off"
    PASSES = "passes"
    ENDS = "ends"
    EACH = "each"

    @property
    def program(self) -> bool:
        """Whether the finished program is compared with the model as given."""
        return self in (VerifyMode.ENDS, VerifyMode.EACH)

    @property
    def steps(self) -> bool:
        """Whether what every pass made is compared with what it was given."""
        return self in (VerifyMode.PASSES, VerifyMode.EACH)
