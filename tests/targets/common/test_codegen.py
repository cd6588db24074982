"""Only what TVM raises becomes an error of code generation."""

from __future__ import annotations

import pytest
import tvm

from graphopt.errors import CodegenError
from graphopt.targets.common.codegen import codegen


def test_what_tvm_raises_is_translated() -> None:
    module = tvm.compile(tvm.IRModule({}), tvm.target.Target({"kind": "llvm"}))
    with pytest.raises(CodegenError, match="Cannot open file"), codegen():
        module.mod.write_to_file("/nowhere/kernel.o", "o")


@pytest.mark.parametrize("error", [RuntimeError("ours"), ValueError("ours"), OSError("the disk")])
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), codegen():
        raise error


def test_an_error_without_text_is_an_interrupt() -> None:
    with pytest.raises(KeyboardInterrupt), codegen():
        raise tvm.error.InternalError("")
