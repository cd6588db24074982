"""TVM's default path from ONNX to code, as a baseline: it has none of graphopt's schedules or passes.

ONNX -> relax.frontend.onnx -> tvm.compile with the default Relax and TIR pipelines of the target -> virtual machine
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt.runtime.devices import library
from graphopt.targets.cpu import machine

if TYPE_CHECKING:
    import onnx


def compile_default(model: onnx.ModelProto) -> Callable[[Sequence[Any]], list[Any]]:
    """A function of the graph's inputs, in order, that gives its outputs; arrays on both sides."""
    library.compiler()
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(model, keep_params_in_input=False)
    executable = tvm.compile(module, target=tvm.target.Target(machine.detect().llvm_target))
    device = tvm.cpu()
    main = relax.VirtualMachine(executable, device)["main"]

    def run(inputs: Sequence[Any]) -> list[Any]:
        result = main(*(tvm.runtime.tensor(np.ascontiguousarray(each), device) for each in inputs))
        single = hasattr(result, "numpy")
        return [each.numpy() for each in ([result] if single else result)]

    return run
